"""The gradient by the same lists as the forward pass: of queries, and one row for each node and each picked key of a tile.

With P the softmax, s its scores and dO what comes in: dS = P * (dO V' - rowsum(dO * O)), dQ = scale dS K, dK = scale dS' Q, dV = P' dO
(Dao et al. 2022). A node's row is the mean (1 / W) sum_j w_j k_j over its keys that are not picked, so key j gets w_j G of it, where
G = dK of the row / W. Summed over tiles, G is summed by nodes of the pyramid (`keys`), which would count picked keys too: each pick's
row has w_j G of its own node taken off.
"""

import triton
import triton.language as tl

from dsopt.backends.cuda.sparse.kernels.common import first_exact, seen_by


@triton.jit
def _gradients(q, k, v, grad, lse, delta, added, seen, scale, PRECISION: tl.constexpr):
    """Return the softmax P and the gradient of its scores, (rows, keys)."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * 1.4426950408889634)
    scores = tl.where(seen, scores + (added * 1.4426950408889634)[None, :], float("-inf"))
    parts = tl.exp2(scores - lse[:, None])
    towards = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    return parts, parts * (towards - delta[:, None])


@triton.jit
def backward(
    Q, K, V, BIAS, HEADS, PICKS, COUNT, OWNER, REST_K, REST_V, REST_LOG, O, DO, LSE, DELTA, DQ, NODE_DK, NODE_DV, PICK_DK, PICK_DV,
    scale, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, bias_b, bias_h,
    heads, kv_heads, listed, queries, keys, offset, tile, room,
    D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr, NODES: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_BIAS: tl.constexpr, SPARSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles, batch * listed). O, DO: (B, heads, T, E).  DQ: (B, heads, T, D).  DELTA: (B, heads, T) float32, rowsum(dO * O).

    NODE_DK (n, NODES, D), NODE_DV (n, NODES, E): G of the tile's nodes.  PICK_DK (n, room, D), PICK_DV (n, room, E): its picks' rows.
    All float32. The other arguments are those of `forward`.
    """
    both = tl.program_id(1)
    job = both.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    batch = (both // listed).to(tl.int64)
    head = tl.load(HEADS + both % listed).to(tl.int64)
    kv = head // (heads // kv_heads)
    Q += batch * q_b + head * q_h
    K += batch * k_b + kv * k_h
    V += batch * v_b + kv * v_h
    if HAS_BIAS:
        BIAS += batch * bias_b + head * bias_h
    tile_first = tl.program_id(0) * tile
    row = tile_first + tl.arange(0, ROWS)
    is_row = (tl.arange(0, ROWS) < tile) & (row < queries)
    d = tl.arange(0, DP)
    e = tl.arange(0, EP)
    real_d = (d < D)[None, :]
    real_e = (e < E)[None, :]
    out = (batch * heads + head) * queries + row
    q = tl.load(Q + row[:, None].to(tl.int64) * q_t + d[None, :], mask=is_row[:, None] & real_d, other=0.0)
    grad = tl.load(DO + out[:, None] * E + e[None, :], mask=is_row[:, None] & real_e, other=0.0)
    result = tl.load(O + out[:, None] * E + e[None, :], mask=is_row[:, None] & real_e, other=0.0)
    lse = tl.load(LSE + out, mask=is_row, other=float("inf"))
    delta = tl.sum(grad.to(tl.float32) * result.to(tl.float32), 1)
    tl.store(DELTA + out, delta, mask=is_row)
    dq = tl.zeros((ROWS, DP), tl.float32)

    if SPARSE:
        node = tl.arange(0, NODES)
        at = job * NODES + node
        node_k = tl.load(REST_K + at[:, None] * D + d[None, :], mask=real_d, other=0.0)
        node_v = tl.load(REST_V + at[:, None] * E + e[None, :], mask=real_e, other=0.0)
        node_log = tl.load(REST_LOG + at)
        is_node = node_log > float("-inf")
        node_log = tl.where(is_node, node_log, 0.0)
        node_parts, node_towards = _gradients(
            q, node_k, node_v, grad, lse, delta, node_log, is_node[None, :], scale, PRECISION
        )
        share = tl.where(is_node, tl.exp(-node_log), 0.0)
        node_dv = tl.dot(tl.trans(node_parts.to(grad.dtype)), grad, input_precision=PRECISION) * share[:, None]
        tl.store(NODE_DV + at[:, None] * E + e[None, :], node_dv, mask=real_e)
        node_towards = node_towards.to(q.dtype)
        node_dk = tl.dot(tl.trans(node_towards), q, input_precision=PRECISION) * (scale * share)[:, None]
        tl.store(NODE_DK + at[:, None] * D + d[None, :], node_dk, mask=real_d)
        dq = tl.dot(node_towards, node_k, dq, input_precision=PRECISION)
        # The rows are read again below, by other threads.
        tl.debug_barrier()

        count = tl.load(COUNT + job)
        for start in range(0, count, N):
            slot = start + tl.arange(0, N)
            is_pick = slot < count
            at_pick = job * room + slot
            pick = tl.load(PICKS + at_pick, mask=is_pick, other=0)
            owner = job * NODES + tl.load(OWNER + at_pick, mask=is_pick, other=0)
            k = tl.load(K + pick[:, None] * k_t + d[None, :], mask=is_pick[:, None] & real_d, other=0.0)
            v = tl.load(V + pick[:, None] * v_t + e[None, :], mask=is_pick[:, None] & real_e, other=0.0)
            added = tl.zeros((N,), tl.float32)
            if HAS_BIAS:
                added = tl.load(BIAS + pick, mask=is_pick, other=float("-inf"))
            parts, towards = _gradients(q, k, v, grad, lse, delta, added, is_pick[None, :], scale, PRECISION)
            weight = tl.exp(added)[:, None]
            dv = tl.dot(tl.trans(parts.to(grad.dtype)), grad, input_precision=PRECISION)
            dv -= weight * tl.load(NODE_DV + owner[:, None] * E + e[None, :], mask=is_pick[:, None] & real_e, other=0.0)
            tl.store(PICK_DV + at_pick[:, None] * E + e[None, :], dv, mask=is_pick[:, None] & real_e)
            rounded = towards.to(q.dtype)
            dk = tl.dot(tl.trans(rounded), q, input_precision=PRECISION) * scale
            dk -= weight * tl.load(NODE_DK + owner[:, None] * D + d[None, :], mask=is_pick[:, None] & real_d, other=0.0)
            tl.store(PICK_DK + at_pick[:, None] * D + d[None, :], dk, mask=is_pick[:, None] & real_d)
            dq = tl.dot(rounded, k, dq, input_precision=PRECISION)

    first = first_exact(tile_first, tile, offset, keys, CAUSAL, SPARSE)
    last = seen_by(tl.minimum(tile_first + tile, queries) - 1, offset, keys, CAUSAL)
    sees = seen_by(row, offset, keys, CAUSAL)
    for start in range(first, last, N):
        key = start + tl.arange(0, N)
        is_key = key < last
        k = tl.load(K + key[:, None] * k_t + d[None, :], mask=is_key[:, None] & real_d, other=0.0)
        v = tl.load(V + key[:, None] * v_t + e[None, :], mask=is_key[:, None] & real_e, other=0.0)
        added = tl.zeros((N,), tl.float32)
        if HAS_BIAS:
            added = tl.load(BIAS + key, mask=is_key, other=float("-inf"))
        seen = key[None, :] < tl.minimum(sees, last)[:, None]
        parts, towards = _gradients(q, k, v, grad, lse, delta, added, seen, scale, PRECISION)
        dq = tl.dot(towards.to(q.dtype), k, dq, input_precision=PRECISION)
    tl.store(DQ + out[:, None] * D + d[None, :], (dq * scale).to(DQ.dtype.element_ty), mask=is_row[:, None] & real_d)

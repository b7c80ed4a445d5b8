"""The softmax over nodes, the keys at the tile's own place, and picked keys: an online softmax that nodes begin."""

import triton
import triton.language as tl

from dsopt.backends.cuda.sparse.kernels.common import first_exact, seen_by

# Online softmax: Milakov & Gimelshein 2018; with products on the way: Dao et al. 2022 (FlashAttention). All exponents are of 2.


@triton.jit
def _step(q, k, v, added, seen, scale, highest, total, result, PRECISION: tl.constexpr):
    """Take some keys more into the softmax. added: (keys,), to be added to scores; seen: (rows, keys)."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * 1.4426950408889634)
    scores = tl.where(seen, scores + (added * 1.4426950408889634)[None, :], float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 1))
    # A row that has seen nothing yet: -inf - -inf is no number.
    base = tl.where(higher == float("-inf"), 0.0, higher)
    parts = tl.exp2(scores - base[:, None])
    fade = tl.exp2(highest - base)
    total = total * fade + tl.sum(parts, 1)
    result = tl.dot(parts.to(v.dtype), v, result * fade[:, None], input_precision=PRECISION)
    return higher, total, result


@triton.jit
def forward(
    Q, K, V, BIAS, HEADS, PICKS, COUNT, REST_K, REST_V, REST_LOG, O, LSE,
    scale, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, bias_b, bias_h,
    heads, kv_heads, listed, queries, keys, offset, tile, room,
    D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr, NODES: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_BIAS: tl.constexpr, SPARSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles, batch * listed). O: (B, heads, T, E).  LSE: (B, heads, T) float32, to the base of 2; inf for rows that see nothing.

    Not SPARSE: all keys are exact. The other arguments are those of `select`.
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
    q = tl.load(Q + row[:, None].to(tl.int64) * q_t + d[None, :], mask=is_row[:, None] & (d < D)[None, :], other=0.0)
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    result = tl.zeros((ROWS, EP), tl.float32)
    if SPARSE:
        node = tl.arange(0, NODES)
        node_k = tl.load(REST_K + (job * NODES + node)[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)
        node_v = tl.load(REST_V + (job * NODES + node)[:, None] * E + e[None, :], mask=(e < E)[None, :], other=0.0)
        node_log = tl.load(REST_LOG + job * NODES + node)
        is_node = node_log > float("-inf")
        highest, total, result = _step(
            q, node_k, node_v, tl.where(is_node, node_log, 0.0), is_node[None, :], scale,
            highest, total, result, PRECISION,
        )  # fmt: skip
    first = first_exact(tile_first, tile, offset, keys, CAUSAL, SPARSE)
    last = seen_by(tl.minimum(tile_first + tile, queries) - 1, offset, keys, CAUSAL)
    sees = seen_by(row, offset, keys, CAUSAL)
    for start in range(first, last, N):
        key = start + tl.arange(0, N)
        is_key = key < last
        k = tl.load(K + key[:, None] * k_t + d[None, :], mask=is_key[:, None] & (d < D)[None, :], other=0.0)
        v = tl.load(V + key[:, None] * v_t + e[None, :], mask=is_key[:, None] & (e < E)[None, :], other=0.0)
        added = tl.zeros((N,), tl.float32)
        if HAS_BIAS:
            added = tl.load(BIAS + key, mask=is_key, other=float("-inf"))
        highest, total, result = _step(
            q, k, v, added, key[None, :] < tl.minimum(sees, last)[:, None], scale, highest, total, result, PRECISION
        )  # fmt: skip
    if SPARSE:
        count = tl.load(COUNT + job)
        for start in range(0, count, N):
            slot = start + tl.arange(0, N)
            is_key = slot < count
            key = tl.load(PICKS + job * room + slot, mask=is_key, other=0)
            k = tl.load(K + key[:, None] * k_t + d[None, :], mask=is_key[:, None] & (d < D)[None, :], other=0.0)
            v = tl.load(V + key[:, None] * v_t + e[None, :], mask=is_key[:, None] & (e < E)[None, :], other=0.0)
            added = tl.zeros((N,), tl.float32)
            if HAS_BIAS:
                added = tl.load(BIAS + key, mask=is_key, other=float("-inf"))
            highest, total, result = _step(q, k, v, added, is_key[None, :], scale, highest, total, result, PRECISION)
    some = total > 0
    result = result / tl.where(some, total, 1.0)[:, None]
    out = (batch * heads + head) * queries + row
    tl.store(O + out[:, None] * E + e[None, :], result.to(O.dtype.element_ty), mask=is_row[:, None] & (e < E)[None, :])
    tl.store(LSE + out, tl.where(some, highest + tl.log2(tl.where(some, total, 1.0)), float("inf")), mask=is_row)

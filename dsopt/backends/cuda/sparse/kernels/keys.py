"""The gradient of keys and values by inverse lists: each program owns some keys, so nothing is added to by two of them.

Rows of gradients (of picks, of nodes) are sorted by where they belong, in the order of tiles. The rows of a block of places lie one
behind the other: they are added up by a product with a matrix that has a 1 where a row belongs, in one order at every run.
"""

import triton
import triton.language as tl

from dsopt.backends.cuda.sparse.kernels.common import before, first_exact, seen_by


@triton.jit
def _sum_rows(ROWS, ORDER, SORTED, begin, end, first, channels, result, N: tl.constexpr, PRECISION: tl.constexpr):
    """Add rows[order[i]] for begin <= i < end to result[sorted[i] - first]."""
    channel = tl.arange(0, result.shape[1])
    place = tl.arange(0, result.shape[0])
    for start in range(begin, end, N):
        entry = start + tl.arange(0, N)
        is_entry = entry < end
        source = tl.load(ORDER + entry, mask=is_entry, other=0)
        target = tl.load(SORTED + entry, mask=is_entry, other=-1) - first
        mask = is_entry[:, None] & (channel < channels)[None, :]
        row = tl.load(ROWS + source[:, None].to(tl.int64) * channels + channel[None, :], mask=mask, other=0.0)
        belongs = tl.where((target[None, :] == place[:, None]) & is_entry[None, :], 1.0, 0.0)
        result = tl.dot(belongs, row, result, input_precision=PRECISION)
    return result


@triton.jit
def sum_rows(
    LIST_ROWS, ORDER, SORTED, START, SUMS, places,
    WIDTH: tl.constexpr, WIDTH_P: tl.constexpr, BLOCK: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (blocks of places,). SUMS: (places, WIDTH) float32, of LIST_ROWS (n, WIDTH) float32.

    ORDER (n,) int32: rows sorted by the place to which they belong.  SORTED (n,) int32: those places.  START (places + 1,) int32: the
    first entry of each place.
    """
    first = tl.program_id(0) * BLOCK
    last = tl.minimum(first + BLOCK, places)
    sums = tl.zeros((BLOCK, WIDTH_P), tl.float32)
    sums = _sum_rows(
        LIST_ROWS, ORDER, SORTED, tl.load(START + first), tl.load(START + last), first, WIDTH, sums, N, PRECISION
    )
    place = first + tl.arange(0, BLOCK)
    channel = tl.arange(0, WIDTH_P)
    mask = (place < places)[:, None] & (channel < WIDTH)[None, :]
    tl.store(SUMS + place[:, None].to(tl.int64) * WIDTH + channel[None, :], sums, mask=mask)


@triton.jit
def _of_ancestors(SUMS, key, leaves, top, channels, result):
    """Add the sums of all nodes above some keys. SUMS: (nodes, channels) of one pyramid."""
    channel = tl.arange(0, result.shape[1])
    for level in range(top + 1):
        node = key // (8 << level)
        mask = (node < (leaves >> level))[:, None] & (channel < channels)[None, :]
        place = (before(level, leaves) + node)[:, None].to(tl.int64) * channels + channel[None, :]
        result += tl.load(SUMS + place, mask=mask, other=0.0)
    return result


@triton.jit
def keys_backward(
    Q, K, V, BIAS, HEADS, FIRST_HEAD, DO, LSE, DELTA, PICK_DK, PICK_DV, ORDER, SORTED, START, NODE_DK, NODE_DV, DK, DV,
    scale, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, bias_b, bias_h,
    heads, kv_heads, pyramids, queries, keys, offset, tile, leaves, nodes, top,
    D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr, BLOCK: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_BIAS: tl.constexpr, SPARSE: tl.constexpr, ADDS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (blocks of keys, batch * kv_heads). DK: (B, kv_heads, S, D) and DV: (..., E), without gaps; ADDS: to what is there.

    HEADS (listed,), FIRST_HEAD (kv_heads + 1,) int32: the heads of queries that are done, and the first of each head of keys.
    ORDER, SORTED, START: see `sum_rows`, of PICK_DK and PICK_DV, by head of keys and key.  NODE_DK, NODE_DV: (B, pyramids, nodes, ...).
    """
    both = tl.program_id(1)
    batch = (both // kv_heads).to(tl.int64)
    kv = both % kv_heads
    first = tl.program_id(0) * BLOCK
    last = tl.minimum(first + BLOCK, keys)
    key = first + tl.arange(0, BLOCK)
    is_key = key < keys
    d = tl.arange(0, DP)
    e = tl.arange(0, EP)
    mask_k = is_key[:, None] & (d < D)[None, :]
    mask_v = is_key[:, None] & (e < E)[None, :]
    dk = tl.zeros((BLOCK, DP), tl.float32)
    dv = tl.zeros((BLOCK, EP), tl.float32)
    first_head = tl.load(FIRST_HEAD + kv)
    last_head = tl.load(FIRST_HEAD + kv + 1)

    k = tl.load(
        K + batch * k_b + kv.to(tl.int64) * k_h + key[:, None].to(tl.int64) * k_t + d[None, :], mask=mask_k, other=0.0
    )
    v = tl.load(
        V + batch * v_b + kv.to(tl.int64) * v_h + key[:, None].to(tl.int64) * v_t + e[None, :], mask=mask_v, other=0.0
    )
    begin = 0
    end = queries
    if CAUSAL:
        # A row sees key j from row j - offset on; behind it, tiles of which every row sees the whole block have it in nodes and picks.
        begin = tl.maximum(first - offset, 0)
    if SPARSE:
        # Keys behind the last leaf are exact for all rows.
        if last <= keys // 8 * 8:
            end = 0
            if CAUSAL:
                end = tl.minimum(queries, tl.maximum(last + 8 - offset, 0) + tile)
    for number in range(first_head, last_head):
        head = tl.load(HEADS + number).to(tl.int64)
        added = tl.zeros((BLOCK,), tl.float32)
        if HAS_BIAS:
            added = tl.load(BIAS + batch * bias_b + head * bias_h + key, mask=is_key, other=float("-inf"))
        for start in range(begin, end, N):
            row = start + tl.arange(0, N)
            is_row = row < queries
            out = (batch * heads + head) * queries + row
            place = batch * q_b + head * q_h + row.to(tl.int64) * q_t
            q = tl.load(Q + place[:, None] + d[None, :], mask=is_row[:, None] & (d < D)[None, :], other=0.0)
            grad = tl.load(DO + out[:, None] * E + e[None, :], mask=is_row[:, None] & (e < E)[None, :], other=0.0)
            lse = tl.load(LSE + out, mask=is_row, other=float("inf"))
            delta = tl.load(DELTA + out, mask=is_row, other=0.0)
            sees = seen_by(row, offset, keys, CAUSAL)
            exact = first_exact(row, tile, offset, keys, CAUSAL, SPARSE)
            seen = (key[:, None] >= exact[None, :]) & (key[:, None] < sees[None, :]) & is_row[None, :]
            scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * 1.4426950408889634)
            scores = tl.where(seen, scores + (added * 1.4426950408889634)[:, None], float("-inf"))
            parts = tl.exp2(scores - lse[None, :])
            dv = tl.dot(parts.to(grad.dtype), grad, dv, input_precision=PRECISION)
            towards = parts * (tl.dot(v, tl.trans(grad), input_precision=PRECISION) - delta[None, :])
            dk = tl.dot(towards.to(q.dtype), q, dk, input_precision=PRECISION)
    dk *= scale
    if SPARSE:
        dk, dv = _inherited(
            BIAS, HEADS, PICK_DK, PICK_DV, ORDER, SORTED, START, NODE_DK, NODE_DV, batch, kv, first, last, first_head, last_head,
            bias_b, bias_h, heads, kv_heads, pyramids, keys, leaves, nodes, top, dk, dv, D, E, N, HAS_BIAS, PRECISION,
        )  # fmt: skip

    DK += (both.to(tl.int64) * keys + key)[:, None] * D + d[None, :]
    DV += (both.to(tl.int64) * keys + key)[:, None] * E + e[None, :]
    if ADDS:
        dk += tl.load(DK, mask=mask_k, other=0.0).to(tl.float32)
        dv += tl.load(DV, mask=mask_v, other=0.0).to(tl.float32)
    tl.store(DK, dk.to(DK.dtype.element_ty), mask=mask_k)
    tl.store(DV, dv.to(DV.dtype.element_ty), mask=mask_v)


@triton.jit
def _inherited(
    BIAS, HEADS, PICK_DK, PICK_DV, ORDER, SORTED, START, NODE_DK, NODE_DV, batch, kv, first, last, first_head, last_head,
    bias_b, bias_h, heads, kv_heads, pyramids, keys, leaves, nodes, top, dk, dv,
    D: tl.constexpr, E: tl.constexpr, N: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return what keys get as members of nodes, weight by weight, and as picks."""
    key = first + tl.arange(0, dk.shape[0])
    if pyramids == kv_heads:
        pyramid_heads = tl.minimum(last_head - first_head, 1)
    else:
        pyramid_heads = last_head - first_head
    for number in range(pyramid_heads):
        head = tl.load(HEADS + first_head + number)
        sums = (batch * pyramids + head // (heads // pyramids)) * nodes
        of_k = _of_ancestors(NODE_DK + sums * D, key, leaves, top, D, tl.zeros(dk.shape, tl.float32))
        of_v = _of_ancestors(NODE_DV + sums * E, key, leaves, top, E, tl.zeros(dv.shape, tl.float32))
        if HAS_BIAS:
            bias = tl.load(
                BIAS + batch * bias_b + head.to(tl.int64) * bias_h + key, mask=key < keys, other=float("-inf")
            )
            of_k *= tl.exp(bias)[:, None]
            of_v *= tl.exp(bias)[:, None]
        dk += of_k
        dv += of_v
    place = (batch.to(tl.int32) * kv_heads + kv) * keys
    begin = tl.load(START + place + first)
    end = tl.load(START + place + last)
    dk = _sum_rows(PICK_DK, ORDER, SORTED, begin, end, place + first, D, dk, N, PRECISION)
    dv = _sum_rows(PICK_DV, ORDER, SORTED, begin, end, place + first, E, dv, N, PRECISION)
    return dk, dv

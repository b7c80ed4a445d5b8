"""One tile's search for keys, its cover, and what is left of the cover's nodes once the keys are taken out, in one launch.

Lists that a tile makes and reads again go through memory of its own, with a barrier between: all within one program.
"""

import triton
import triton.language as tl

from dsopt.backends.cuda.sparse.kernels.common import before, best, first_exact
from dsopt.sparse_schedule import LEAST_REST, OPENED

_OPENED, _LEAST_REST = tl.constexpr(OPENED), tl.constexpr(LEAST_REST)


@triton.jit
def _products(X, PROBE, index, valid, stride, channels: tl.constexpr, C: tl.constexpr):
    """Return the products of some rows (N) of X with the probe, float32."""
    total = tl.zeros((index.shape[0],), tl.float32)
    for first in range(0, channels, C):
        channel = first + tl.arange(0, C)
        probe = tl.load(PROBE + channel, mask=channel < channels, other=0.0)
        place = index[:, None].to(tl.int64) * stride + channel[None, :]
        x = tl.load(X + place, mask=valid[:, None] & (channel < channels)[None, :], other=0.0)
        total += tl.sum(x.to(tl.float32) * probe[None, :], 1)
    return total


@triton.jit
def _node_scores(
    SUMS, WEIGHTS, PROBE, index, valid, level, leaves, D: tl.constexpr, C: tl.constexpr, HAS_BIAS: tl.constexpr
):
    """Return the scores of the mean keys of nodes of one level, with the logarithm of their mean weight; -inf for none."""
    row = before(level, leaves) + index
    total = _products(SUMS, PROBE, row, valid, D, D, C)
    if HAS_BIAS:
        weight = tl.load(WEIGHTS + row * 2, mask=valid, other=0.0)
        count = tl.load(WEIGHTS + row * 2 + 1, mask=valid, other=0.0)
        some = weight > 0
        safe = tl.where(some, weight, 1.0)
        return tl.where(some, total / safe + tl.log(safe / tl.where(some, count, 1.0)), float("-inf"))
    else:
        return tl.where(valid, total / (8 << level), float("-inf"))


@triton.jit
def _search_level(
    SUMS, WEIGHTS, PROBE, LIST, index, valid, level, leaves, near_first, near_last, beam,
    D: tl.constexpr, C: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Store the best nodes of a level, ascending, and return how many. A node that has a key that must be picked is one of the best."""
    scores = _node_scores(SUMS, WEIGHTS, PROBE, index, valid, level, leaves, D, C, HAS_BIAS)
    size = 8 << level
    is_near = (index * size < near_last) & ((index + 1) * size > near_first) & (near_first < near_last)
    scores = tl.where(is_near & valid & (scores > float("-inf")), float("inf"), scores)
    chosen, place, found = best(scores, valid, beam)
    tl.debug_barrier()
    tl.store(LIST + place, index, mask=chosen)
    tl.debug_barrier()
    return found


@triton.jit
def _children(LIST, found, number, complete):
    """Return both children of each listed node, and the level's last node if its partner is no whole node of the prefix."""
    parent = tl.load(LIST + number // 2, mask=number < 2 * found, other=0)
    index = tl.where(number < 2 * found, 2 * parent + (number & 1), complete - 1)
    return index, number < 2 * found + (complete & 1)


@triton.jit
def _cover(
    SUMS, WEIGHTS, PROBE, LIST, NODE, FIRST, SIZE, prefix, leaves, top, fine,
    D: tl.constexpr, C: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Store nodes that have every key of the prefix once, and return how many."""
    number = tl.arange(0, 16)
    index = number
    valid = number < (prefix >> top)
    count = 0
    for step in range(top - fine):
        level = top - step
        scores = _node_scores(SUMS, WEIGHTS, PROBE, index, valid, level, leaves, D, C, HAS_BIAS)
        opened, place, found = best(scores, valid, _OPENED)
        tl.debug_barrier()
        tl.store(LIST + place, index, mask=opened)
        tl.debug_barrier()
        count = _closed(NODE, FIRST, SIZE, index, valid & (opened == 0), level, leaves, count)
        index, valid = _children(LIST, found, number, prefix >> (level - 1))
    count = _closed(NODE, FIRST, SIZE, index, valid, fine, leaves, count)
    for level in range(fine):
        complete = prefix >> level
        count = _closed(NODE, FIRST, SIZE, number * 0 + complete - 1, number < (complete & 1), level, leaves, count)
    return count


@triton.jit
def _closed(NODE, FIRST, SIZE, index, valid, level, leaves, count):
    place = count + tl.cumsum(valid.to(tl.int32), 0) - 1
    size = 8 << level
    tl.store(NODE + place, before(level, leaves) + index, mask=valid)
    tl.store(FIRST + place, index * size, mask=valid)
    tl.store(SIZE + place, valid.to(tl.int32) * size, mask=valid)
    return count + tl.sum(valid.to(tl.int32), 0)


@triton.jit
def _rest(
    X, SUMS, REST, PICKS, BIAS, first, last, row, rest, is_any, found, x_t,
    D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store the means of what is left of nodes. REST: (nodes, D)."""
    channel = tl.arange(0, DP)
    real = (channel < D)[None, :]
    sums = tl.load(SUMS + row[:, None].to(tl.int64) * D + channel[None, :], mask=is_any[:, None] & real, other=0.0)
    taken = tl.zeros(sums.shape, tl.float32)
    for start in range(0, found, N):
        number = start + tl.arange(0, N)
        pick = tl.load(PICKS + number, mask=number < found, other=-1)
        x = tl.load(
            X + pick[:, None].to(tl.int64) * x_t + channel[None, :], mask=(pick >= 0)[:, None] & real, other=0.0
        )
        inside = (pick[None, :] >= first[:, None]) & (pick[None, :] < last[:, None])
        if HAS_BIAS:
            # A weight is no number of 16 bits, and what is left may be a small part of the sum.
            weight = tl.exp(tl.load(BIAS + pick, mask=pick >= 0, other=float("-inf")))
            x = x.to(tl.float32) * weight[:, None]
            taken = tl.dot(tl.where(inside, 1.0, 0.0), x, taken, input_precision="ieee")
        else:
            taken = tl.dot(tl.where(inside, 1.0, 0.0).to(x.dtype), x, taken, input_precision=PRECISION)
    mean = tl.where(is_any[:, None], (sums - taken) / rest[:, None], 0.0)
    place = tl.arange(0, first.shape[0])[:, None] * D + channel[None, :]
    tl.store(REST + place, mean.to(REST.dtype.element_ty), mask=(row >= 0)[:, None] & real)


@triton.jit
def _probe(Q, PROBE, tile_first, tile, queries, scale, q_t, D: tl.constexpr, DP: tl.constexpr, CAUSAL: tl.constexpr):
    """Store the mean of the tile's scaled queries; if CAUSAL of the queries that end with its first: see selection.probes."""
    channel = tl.arange(0, DP)
    total = tl.zeros((DP,), tl.float32)
    if CAUSAL:
        rows = tl.minimum(tile, tile_first + 1)
        Q += (tile_first - rows + 1).to(tl.int64) * q_t
    else:
        rows = tl.minimum(tile, queries - tile_first)
        Q += tile_first.to(tl.int64) * q_t
    for start in range(0, rows, 8):
        row = start + tl.arange(0, 8)
        place = row[:, None] * q_t + channel[None, :]
        q = tl.load(Q + place, mask=(row < rows)[:, None] & (channel < D)[None, :], other=0.0)
        total += tl.sum(q.to(tl.float32), 0)
    tl.store(PROBE + channel, total * scale / rows)
    tl.debug_barrier()


@triton.jit
def select(
    Q, K, V, BIAS, HEADS, KEY_SUMS, VALUE_SUMS, WEIGHTS,
    PROBE, LIST, PICKS, COUNT, OWNER, NODE, FIRST, SIZE, REST_K, REST_V, REST_LOG,
    scale, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, bias_b, bias_h,
    heads, kv_heads, pyramids, listed, queries, keys, offset, tile, window, leaves, nodes, first, top, fine, beam, picks, room,
    D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr, N_FIRST: tl.constexpr, N_LEVEL: tl.constexpr,
    N_KEYS: tl.constexpr, NODES: tl.constexpr, N: tl.constexpr, C: tl.constexpr, CAUSAL: tl.constexpr, HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles, batch * listed). HEADS: (listed,) int32, the heads that are done.

    Q, K, V, BIAS by strides; KEY_SUMS, VALUE_SUMS, WEIGHTS: see `pool`.  For each program: PROBE (DP,) float32, LIST (N_LEVEL,) are its
    own; PICKS (room,) int32, ascending; COUNT: how many; OWNER (room,) int32: the node in which each pick lies; NODE (NODES,) int32:
    rows of the pyramid, -1 for none; FIRST, SIZE (NODES,) int32: their keys; REST_K (NODES, D) and REST_V (NODES, E): means of what is
    not picked; REST_LOG (NODES,) float32: the logarithm of its weight, -inf for none.
    """
    tile_first = tl.program_id(0) * tile
    both = tl.program_id(1)
    job = both.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    batch = (both // listed).to(tl.int64)
    head = tl.load(HEADS + both % listed)
    kv = (head // (heads // kv_heads)).to(tl.int64)
    Q += batch * q_b + head.to(tl.int64) * q_h
    K += batch * k_b + kv * k_h
    of_head = (batch * pyramids + head // (heads // pyramids)) * nodes
    KEY_SUMS += of_head * D
    if HAS_BIAS:
        WEIGHTS += of_head * 2
        BIAS += batch * bias_b + head.to(tl.int64) * bias_h
    PROBE += job * DP
    LIST += job * N_LEVEL
    PICKS += job * room
    prefix = first_exact(tile_first, tile, offset, keys, CAUSAL, True) // 8
    near_first = tile_first + offset
    near_last = near_first
    if window > 0:
        near_first -= window
        near_last += tile + window
    _probe(Q, PROBE, tile_first, tile, queries, scale, q_t, D, DP, CAUSAL)

    number = tl.arange(0, N_FIRST)
    found = _search_level(
        KEY_SUMS, WEIGHTS, PROBE, LIST, number, number < (prefix >> first), first, leaves, near_first, near_last, beam, D, C, HAS_BIAS
    )  # fmt: skip
    number = tl.arange(0, N_LEVEL)
    for step in range(first):
        level = first - 1 - step
        index, valid = _children(LIST, found, number, prefix >> level)
        found = _search_level(
            KEY_SUMS, WEIGHTS, PROBE, LIST, index, valid, level, leaves, near_first, near_last, beam, D, C, HAS_BIAS
        )  # fmt: skip
    number = tl.arange(0, N_KEYS)
    valid = number < 8 * found
    key = tl.load(LIST + number // 8, mask=valid, other=0) * 8 + number % 8
    scores = _products(K, PROBE, key, valid, k_t, D, C)
    is_near = (key >= near_first) & (key < near_last)
    if HAS_BIAS:
        bias = tl.load(BIAS + key, mask=valid, other=float("-inf"))
        scores += bias
        is_near = is_near & (bias > float("-inf"))
    scores = tl.where(is_near & valid, float("inf"), scores)
    chosen, place, found = best(scores, valid, picks)
    tl.store(PICKS + place, key, mask=chosen)
    tl.store(COUNT + job, found)

    # Not before: pointers that wait take registers from the search.
    OWNER += job * room
    NODE += job * NODES
    FIRST += job * NODES
    SIZE += job * NODES
    tl.debug_barrier()
    count = _cover(KEY_SUMS, WEIGHTS, PROBE, LIST, NODE, FIRST, SIZE, prefix, leaves, top, fine, D, 16, HAS_BIAS)
    tl.debug_barrier()
    number = tl.arange(0, NODES)
    is_node = number < count
    tl.store(NODE + number, -1, mask=is_node == 0)
    row = tl.load(NODE + number, mask=is_node, other=0)
    start = tl.load(FIRST + number, mask=is_node, other=0)
    size = tl.load(SIZE + number, mask=is_node, other=0)
    if HAS_BIAS:
        total = tl.load(WEIGHTS + row * 2, mask=is_node, other=0.0)
    else:
        total = size.to(tl.float32)
    taken = tl.zeros((NODES,), tl.float32)
    for begin in range(0, found, N):
        slot = begin + tl.arange(0, N)
        pick = tl.load(PICKS + slot, mask=slot < found, other=-1)
        inside = (pick[None, :] >= start[:, None]) & (pick[None, :] < (start + size)[:, None])
        weight = tl.where(pick >= 0, 1.0, 0.0)
        if HAS_BIAS:
            weight = tl.exp(tl.load(BIAS + pick, mask=pick >= 0, other=float("-inf")))
        taken += tl.sum(tl.where(inside, weight[None, :], 0.0), 1)
        owner = tl.max(tl.where(inside, number[:, None], -1), 0)
        tl.store(OWNER + slot, owner, mask=slot < found)
    rest = total - taken
    is_any = is_node & (rest > _LEAST_REST * total)
    rest = tl.where(is_any, rest, 1.0)
    tl.store(REST_LOG + job * NODES + number, tl.where(is_any, tl.log(rest), float("-inf")))
    _rest(
        K,
        KEY_SUMS,
        REST_K + job * NODES * D,
        PICKS,
        BIAS,
        start,
        start + size,
        row,
        rest,
        is_any,
        found,
        k_t,
        D,
        DP,
        N,
        HAS_BIAS,
        PRECISION,
    )
    V += batch * v_b + kv * v_h
    VALUE_SUMS += of_head * E
    _rest(
        V,
        VALUE_SUMS,
        REST_V + job * NODES * E,
        PICKS,
        BIAS,
        start,
        start + size,
        row,
        rest,
        is_any,
        found,
        v_t,
        E,
        EP,
        N,
        HAS_BIAS,
        PRECISION,
    )

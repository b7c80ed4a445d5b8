"""Keys and values added up in a pyramid, in one launch.

A program adds up the leaves below one node of the cover's top level, for some channels: nothing above is ever read, so programs need
nothing of each other. Blocks of leaves are added up by pairs in registers; of the levels above a block, one running sum each.
"""

import triton
import triton.language as tl


@triton.jit
def _block(
    X, BIAS, leaf, channel, channels, leaves, x_t, BLOCK: tl.constexpr, IS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr
):
    """Return (BLOCK, channels), sums over the keys of leaves; of weights: their sum, and how many are not 0."""
    key = tl.reshape(leaf[:, None] * 8 + tl.arange(0, 8)[None, :], (BLOCK * 8,))
    inside = key < leaves * 8
    if HAS_BIAS:
        weight = tl.exp(tl.load(BIAS + key, mask=inside, other=float("-inf")))
    if IS_WEIGHT:
        x = tl.where(channel[None, :] == 0, weight[:, None], (weight > 0).to(tl.float32)[:, None])
    else:
        place = key[:, None].to(tl.int64) * x_t + channel[None, :]
        x = tl.load(X + place, mask=inside[:, None] & (channel < channels)[None, :], other=0.0).to(tl.float32)
        if HAS_BIAS:
            x = tl.where(weight[:, None] > 0, x * weight[:, None], 0.0)
    return tl.sum(tl.reshape(x, (BLOCK, 8, channel.shape[0])), 1)


@triton.jit
def _sums(
    X, BIAS, SUMS, channel, channels, leaves, top, x_t,
    LOG: tl.constexpr, UPPER: tl.constexpr, IS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Store the sums of all levels up to `top` below one node. SUMS: (nodes, channels) of one head, levels one behind the other."""
    BLOCK: tl.constexpr = 1 << LOG
    C: tl.constexpr = channel.shape[0]
    start = tl.program_id(0) << top
    upper = LOG + 1 + tl.arange(0, UPPER)
    upper_first = upper * 0
    for lower in range(top):
        upper_first += tl.where(lower < upper, leaves >> lower, 0)
    running = tl.zeros((UPPER, C), tl.float32)
    for number in range(1 << (top - LOG)):
        leaf = start + number * BLOCK
        x = _block(X, BIAS, leaf + tl.arange(0, BLOCK), channel, channels, leaves, x_t, BLOCK, IS_WEIGHT, HAS_BIAS)
        level_first = 0
        for level in tl.static_range(LOG + 1):
            if level > 0:
                x = tl.sum(tl.reshape(x, (BLOCK >> level, 2, C)), 1)
            node = (leaf >> level) + tl.arange(0, BLOCK >> level)
            place = (level_first + node)[:, None] * channels + channel[None, :]
            tl.store(SUMS + place, x, mask=(node < (leaves >> level))[:, None] & (channel < channels)[None, :])
            level_first += leaves >> level
        running += x
        node = leaf >> upper
        is_done = (((number + 1) & ((1 << (upper - LOG)) - 1)) == 0) & (upper <= top)
        is_whole = is_done & (node < (leaves >> upper))
        place = (upper_first + node)[:, None] * channels + channel[None, :]
        tl.store(SUMS + place, running, mask=is_whole[:, None] & (channel < channels)[None, :])
        running = tl.where(is_done[:, None], 0.0, running)


@triton.jit
def pool(
    K, V, BIAS, KEY_SUMS, VALUE_SUMS, WEIGHTS,
    k_b, k_h, k_t, v_b, v_h, v_t, bias_b, bias_h, kv_heads, pyramids, leaves, nodes, top,
    D: tl.constexpr, E: tl.constexpr, C: tl.constexpr, LOG: tl.constexpr, UPPER: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Grid: (nodes of level `top`, one that is not complete too; batch * pyramids; parts of channels, the weights' too if there is a bias).

    K: (B, kv_heads, S, D) and V: (..., E) by strides; BIAS: (B, pyramids, S) float32.  KEY_SUMS: (B, pyramids, nodes, D), VALUE_SUMS:
    (..., E), WEIGHTS: (..., 2), float32.
    """
    both = tl.program_id(1)
    part = tl.program_id(2)
    batch = (both // pyramids).to(tl.int64)
    head = both % pyramids
    group = pyramids // kv_heads
    of_head = both.to(tl.int64) * nodes
    KEY_PARTS: tl.constexpr = (D + C - 1) // C
    VALUE_PARTS: tl.constexpr = (E + C - 1) // C
    bias = BIAS
    if HAS_BIAS:
        bias = BIAS + batch * bias_b + head * bias_h
    if part < KEY_PARTS:
        channel = part * C + tl.arange(0, C)
        x = K + batch * k_b + (head // group).to(tl.int64) * k_h
        _sums(x, bias, KEY_SUMS + of_head * D, channel, D, leaves, top, k_t, LOG, UPPER, False, HAS_BIAS)
    elif part < KEY_PARTS + VALUE_PARTS:
        channel = (part - KEY_PARTS) * C + tl.arange(0, C)
        x = V + batch * v_b + (head // group).to(tl.int64) * v_h
        _sums(x, bias, VALUE_SUMS + of_head * E, channel, E, leaves, top, v_t, LOG, UPPER, False, HAS_BIAS)
    elif HAS_BIAS:
        _sums(V, bias, WEIGHTS + of_head * 2, tl.arange(0, 2), 2, leaves, top, v_t, LOG, UPPER, True, HAS_BIAS)

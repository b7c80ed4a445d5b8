"""What several kernels need: which keys a row may see, and the choice of the highest scores."""

import triton
import triton.language as tl


@triton.jit
def seen_by(row, offset, keys, CAUSAL: tl.constexpr):
    """Return how many keys a row may attend to, from the first on."""
    if CAUSAL:
        return tl.minimum(tl.maximum(row + offset + 1, 0), keys)
    else:
        return row * 0 + keys


@triton.jit
def first_exact(row, tile, offset, keys, CAUSAL: tl.constexpr, SPARSE: tl.constexpr):
    """Return the first key that the row's tile attends to exactly: the one behind the leaves that all of its rows may see."""
    if SPARSE:
        return seen_by(row // tile * tile, offset, keys, CAUSAL) // 8 * 8
    else:
        return row * 0


@triton.jit
def before(level, leaves):
    """Return how many nodes of a pyramid lie on the levels below one level."""
    total = 0
    for lower in range(level):
        total += leaves >> lower
    return total


@triton.jit
def best(scores, valid, count):
    """Choose the `count` highest scores, of equal ones the first; -inf is never chosen.

    Returns which are chosen, the place of each among them (places ascend with the number), and how many they are. The bits of floats,
    with negative ones turned, are in the order of the floats: the lowest score chosen is found two bits at a time.
    """
    valid = valid & (scores > float("-inf"))
    bits = (scores + 0.0).to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    order = tl.where(valid, order, -2147483648)
    lowest = -2147483648
    # Three counts in one number: a sum over a block costs more than what is summed.
    BITS: tl.constexpr = 10 if scores.shape[0] <= 512 else 20
    packed = tl.int32 if scores.shape[0] <= 512 else tl.int64
    for step in range(16):
        part = 1 << (30 - 2 * step)
        one = (order >= lowest + part).to(packed)
        two = (order >= lowest + 2 * part).to(packed)
        three = (order >= lowest + 3 * part).to(packed)
        counts = tl.sum(one + (two << BITS) + (three << (2 * BITS)), 0)
        mask = (1 << BITS) - 1
        if (counts & mask).to(tl.int32) >= count:
            higher = ((counts >> BITS) & mask).to(tl.int32) >= count
            highest = (counts >> (2 * BITS)).to(tl.int32) >= count
            lowest += part * (1 + higher.to(tl.int32) + highest.to(tl.int32))
    above = order > lowest
    equal = valid & (order == lowest)
    allowed = count - tl.sum(above.to(tl.int32), 0)
    chosen = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= allowed))
    place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    return chosen, place, tl.sum(chosen.to(tl.int32), 0)

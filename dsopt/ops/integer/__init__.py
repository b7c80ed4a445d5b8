"""q_conv, q_linear, ...: operators on integers only, as a chip computes them.

`lower-integer` writes them. The NumPy reference of each is plain and exact (int64, or float64 where every value is a whole number
below 2^53) and is the oracle: code for a CPU, a GPU or a microcontroller gives the same bits.

Arguments that many share:

    x_zero, y_zero       zero points of an input and of the result
    low, high            range of the result; a fused ReLU makes it narrower
    bits                 8 or 16: the result is int8 or int16
    multiplier, shift    requantisation per output channel, int32 (see `dsopt.ops.rounding`)
    weight, weight_shape, weight_bits
                         8: int8 of `weight_shape`; 4: uint8 (weight_shape[0], ceil(rest / 2)), two values a byte, the first one in
                         the low half
    factors, group       (N, ceil(K / group)) uint8: what the products of each group of inputs are multiplied by
    wide                 whether the sum is kept in int64
"""

from dsopt.ops.integer import elementwise, embedding, linear, normalization, pooling, recurrent, residual  # noqa: F401  registers

"""The dsopt:: operators that passes put into a program: schema, shape rule, gradient and reference in one place.

    fused       convolution, linear layer and addition with their activation
    quantized   quantize, dequantize, fake_quantize: the form that training and ONNX see
    dynamic     linear layers whose activations are rounded when they run
    recurrent   LSTM and GRU whose inner values are fake-quantised
    integer     q_conv, q_linear, ...: integers only, as a chip computes them; their NumPy references are the oracle of all code
    sparse_attention    attention that looks at some keys one by one and at the rest through means, in O(n log n)
    rounding    how real numbers become integers: the one place where that is decided

Importing this package registers the operators; it may be imported any number of times.
"""

from dsopt.ops import dynamic, fused, integer, quantized, recurrent, sparse_attention  # noqa: F401  registers them
from dsopt.ops.fused import ACTIVATIONS, activate

__all__ = ["ACTIVATIONS", "activate"]

"""How the function of a layer is called: after the user's module and its operator."""

from __future__ import annotations

from dsopt.backends.tir.registry import identifier

_KERNEL_WORDS = {
    "batch_norm": "norm", "conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "conv_act": "conv", "convolution": "conv",
    "add_act": "add", "layer_norm": "norm", "linear_act": "linear", "scaled_dot_product_attention": "attention",
    "sparse_attention": "attention",
    "dequantize_channel": "dequantize", "q_layer_norm": "norm",
    "q_conv_add": "conv",
    **{f"q_{word}": word for word in ("conv", "linear", "matmul", "add", "mul", "rescale", "lookup", "embedding", "softmax",
                                      "max_pool", "avg_pool", "mean", "lstm", "gru")},
}  # fmt: skip
"""Operator -> the word for it, where that is not its own name."""


def label(layer: str, operator: str) -> str:
    """Return a C identifier. layer: the path of the module, perhaps empty.  operator: such as "aten.relu.default"."""
    word = operator.split(".")[1] if "." in operator else operator
    layer, word = layer or "net", _KERNEL_WORDS.get(word, word)
    return identifier(layer if layer.rpartition(".")[2] == word else f"{layer}.{word}")

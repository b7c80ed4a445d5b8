"""The lowerings, one file for each family of operators. Importing this package registers them all."""

from importlib import import_module

FAMILIES = ("attention", "convolution", "creation", "elementwise", "indexing", "integer_elementwise", "integer_embedding",
            "integer_linear", "integer_normalization", "integer_pooling", "integer_recurrent", "integer_residual", "matmul",
            "normalization", "pooling", "quantize",
            "recurrent", "reduction", "relayout", "resize", "softmax", "sorting", "unary")  # fmt: skip

for _family in FAMILIES:
    import_module(f"{__name__}.{_family}")

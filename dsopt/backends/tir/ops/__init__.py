"""The lowerings, one file for each family of operators. Importing this package registers them all."""

from dsopt.backends.tir.ops import (  # noqa: F401
    attention,
    convolution,
    creation,
    elementwise,
    indexing,
    matmul,
    normalization,
    pooling,
    recurrent,
    reduction,
    relayout,
    resize,
    softmax,
)

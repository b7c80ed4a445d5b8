"""The families of operators that are tested together: inputs, and a function for each case."""

from __future__ import annotations

import torch

from tests.backends.tir.case import Family, normal, positive
from tests.backends.tir.elementwise_cases import ACTIVATIONS, BINARY, INTEGER, POSITIVE, REDUCE, UNARY
from tests.backends.tir.layer_cases import CONV, MATMUL, RECURRENT, SDPA
from tests.backends.tir.relayout_cases import INDEX, RELAYOUT

FAMILIES: dict[str, Family] = {
    "unary": Family((normal(3, 37, scale=2.0),), {**UNARY, **{k: v for k, v in ACTIVATIONS.items() if k != "glu"}}),
    "glu": Family((normal(3, 8),), {"glu": ACTIVATIONS["glu"]}),
    "positive": Family((positive(4, 23),), POSITIVE),
    "binary": Family((normal(5, 7), normal(5, 7, seed=1), normal(7, seed=2), torch.tensor(0.7)), BINARY),
    "integer": Family((torch.arange(12).reshape(3, 4) % 7, torch.arange(12).reshape(3, 4) % 5 + 1), INTEGER),
    "reduce": Family((normal(4, 3, 6),), REDUCE),
    "relayout": Family((normal(4, 3, 6),), RELAYOUT),
    "index": Family(
        (normal(4, 8), torch.tensor([[1, 0, 3, 2], [2, 2, 1, 0], [3, 1, 0, 2], [0, 3, 2, 1]]), normal(4, 8) > 0), INDEX
    ),
    "conv": Family((normal(2, 6, 9, 11), normal(2, 6, 17, seed=1), normal(1, 2, 4, 6, 6, seed=2)), CONV),
    "matmul": Family((normal(5, 8), normal(2, 3, 8, seed=1)), MATMUL),
    "attention": Family((normal(2, 4, 5, 8), normal(2, 4, 7, 8, seed=1), normal(5, 7, seed=2)), SDPA),
    "recurrent": Family((normal(4, 3, 5),), RECURRENT),
}

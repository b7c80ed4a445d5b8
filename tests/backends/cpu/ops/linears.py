"""Linear layers and matrix products."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from tests.backends.cpu.cases import Cases, floats, ints, module

CASES = Cases()


class Tied(nn.Module):
    """An embedding whose table is the output layer's weight as well."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(tokens))


CASES.add("linear_matrix", module(lambda: nn.Linear(5, 3)), floats("B", 5))
CASES.add("linear_no_bias", module(lambda: nn.Linear(5, 3, bias=False)), floats("B", 5))
CASES.add("linear_vector", module(lambda: nn.Linear(5, 3)), floats(5))
CASES.add("linear_sequence", module(lambda: nn.Linear(5, 3)), floats("B", 7, 5))
CASES.add("linear_rank_4", module(lambda: nn.Linear(5, 3)), floats("B", 2, 7, 5))
CASES.add("linear_double", module(lambda: nn.Linear(5, 3).double()), floats("B", 5, dtype=torch.float64))
CASES.add("linear_given_weight", F.linear, floats("B", 3, 5), floats(2, 5), floats(2))
CASES.add("linear_tied", module(Tied), ints("B", 3, high=7))
CASES.add(
    "linear_act",
    lambda x, w, b: torch.ops.dsopt.linear_act(x, w, b, "gelu", []),
    floats("B", 5),
    floats(3, 5),
    floats(3),
)
CASES.add(
    "linear_act_sequence",
    lambda x, w: torch.ops.dsopt.linear_act(x, w, None, "relu", []),
    floats("B", 2, 5),
    floats(3, 5),
)
CASES.add("matmul_2_2", torch.matmul, floats("B", 5), floats(5, 3))
CASES.add("matmul_1_2", torch.matmul, floats(5), floats(5, 3))
CASES.add("matmul_2_1", torch.matmul, floats("B", 5), floats(5))
CASES.add("matmul_1_1", torch.matmul, floats(5), floats(5))
CASES.add("matmul_3_2", torch.matmul, floats("B", 2, 5), floats(5, 3))
CASES.add("matmul_4_3", torch.matmul, floats("B", 2, 4, 5), floats(2, 5, 3))
CASES.add("matmul_int", torch.matmul, ints("B", 5), ints(5, 3))
CASES.add("matmul_int32", torch.matmul, ints("B", 5, dtype=torch.int32), ints(5, 3, dtype=torch.int32))
CASES.add("matmul_small_int", torch.matmul, ints("B", 5, dtype=torch.int8), ints(5, 3, dtype=torch.int8))
CASES.add(
    "matmul_half", torch.matmul, floats("B", 5, dtype=torch.float16), floats(5, 3, dtype=torch.float16), largest=2e-3
)
CASES.add("mm", torch.mm, floats("B", 5), floats(5, 3))
CASES.add("bmm", torch.bmm, floats("B", 4, 5), floats("B", 5, 3))
CASES.add("mv", torch.mv, floats("B", 5), floats(5))
CASES.add("dot", torch.dot, floats(5), floats(5))
CASES.add("addmm", lambda c, a, b: torch.addmm(c, a, b), floats(3), floats("B", 5), floats(5, 3))
CASES.add(
    "addmm_factors",
    lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2),
    floats("B", 3),
    floats("B", 5),
    floats(5, 3),
)
CASES.add("addmm_no_bias", lambda c, a, b: torch.addmm(c, a, b, beta=0), floats(3), floats("B", 5), floats(5, 3))
CASES.add("addmm_int", lambda c, a, b: torch.addmm(c, a, b, alpha=2), ints(3), ints("B", 5), ints(5, 3))
CASES.add(
    "baddbmm",
    lambda c, a, b: torch.baddbmm(c, a, b, beta=0.5, alpha=3),
    floats("B", 4, 3),
    floats("B", 4, 5),
    floats("B", 5, 3),
)
CASES.add("addbmm", lambda c, a, b: torch.addbmm(c, a, b), floats(4, 3), floats(2, 4, 5), floats(2, 5, 3))
CASES.add("addmv", lambda c, a, b: torch.addmv(c, a, b), floats("B"), floats("B", 5), floats(5))
CASES.add("addr", lambda c, a, b: torch.addr(c, a, b, alpha=2), floats("B", 3), floats("B"), floats(3))
CASES.add("outer", torch.outer, floats("B"), floats(3))
CASES.add("bilinear", module(lambda: nn.Bilinear(3, 4, 5)), floats("B", 3), floats("B", 4))
for _equation, _shapes in (
    ("ij,jk->ik", (("B", 5), (5, 3))),
    ("bij,bjk->bik", (("B", 4, 5), ("B", 5, 3))),
    ("bhtd,bhsd->bhts", (("B", 2, 3, 4), ("B", 2, 5, 4))),
    ("bthd,bshd->bhts", (("B", 3, 2, 4), ("B", 5, 2, 4))),
    ("bhts,bhsd->bthd", (("B", 2, 3, 5), ("B", 2, 5, 4))),
    ("bij,jk->bik", (("B", 4, 5), (5, 3))),
    ("bi,bi->b", (("B", 5), ("B", 5))),
    ("bij->bji", (("B", 4, 5),)),
    ("bij->b", (("B", 4, 5),)),
    ("i,j->ij", (("B",), (3,))),
    ("bi,ij,j", (("B", 4), (4, 5), (5,))),
    ("...ij,...jk->...ik", (("B", 2, 4, 5), ("B", 2, 5, 3))),
    ("nchw,cd->ndhw", (("B", 3, 2, 4), (3, 5))),
    ("ii->i", ((4, 4),)),
):
    CASES.add(
        f"einsum_{_equation}", partial(lambda e, *xs: torch.einsum(e, *xs), _equation), *(floats(*s) for s in _shapes)
    )

"""Models that cannot be exported, each with the line at fault and the advice that a user should get."""

# The bodies below are written as users write them.
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import uninteresting_files

from dsopt.errors import CaptureError
from dsopt.frontend.diagnose import explain_export_failure
from dsopt.frontend.export import export_module
from dsopt.ir.torch_private import guards_name_model_lines


class Expected(NamedTuple):
    """What the error must say of a model: code, words of the first sentence, the line at fault, words of the advice."""

    code: str
    what: str
    line: str
    advice: str
    args: tuple[Any, ...] = (torch.randn(4, 8),)
    dynamic: Mapping[str, Any] = {}


CASES: list[tuple[type[nn.Module], Expected]] = []


def fails(*expected: Any, **more: Any) -> Any:
    def note(kind: type[nn.Module]) -> type[nn.Module]:
        CASES.append((kind, Expected(*expected, **more)))
        return kind

    return note


BATCH = {"x": {0: ("batch", 2, 64)}}


@fails("DS0170", "chooses by the value", "if x.sum() > 0:", "torch.where(condition, a, b)")
class BranchOnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x - 1


@fails("DS0170", "chooses by the value", "return x[:, :n] if n > 3 else x", "torch.where(condition, a, b)")
class BranchOnItem(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n = x.argmax().item()
        return x[:, :n] if n > 3 else x


@fails("DS0170", "loops until", "while x.norm() > 1:", "Take a fixed number of steps")
class LoopOnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while x.norm() > 1:
            x = x / 2
        return x


@fails(
    "DS0170",
    "loops as often as a tensor says",
    "for _ in range(int(n)):",
    "for i in range(MAX)",
    args=(torch.tensor(3), torch.randn(2)),
)
class LoopCount(nn.Module):
    def forward(self, n: Tensor, x: Tensor) -> Tensor:
        for _ in range(int(n)):
            x = x * 2
        return x


@fails("DS0170", "asserts something about the values", "assert (x > -100).all()", "Remove the assert")
class AssertOnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert (x > -100).all()
        return x


@fails("DS0170", "Python's math module", "return x * math.sqrt(x.abs().sum())", "torch.sqrt(x) for math.sqrt(x)")
class MathModule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * math.sqrt(x.abs().sum())


@fails("DS0170", "takes a Python number out of a tensor", "return torch.tensor(float(x.mean()))", "Leave out .item()")
class FloatOfTensor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor(float(x.mean()))


@fails("DS0170", "indexes a Python list", "return x * table[x.argmax() % 3]", "self.register_buffer('table'")
class IndexList(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        table = [1.0, 2.0, 3.0]
        return x * table[x.argmax() % 3]


@fails("DS0170", "size of a tensor depends on the values", "if found.shape[0] > 3:", "torch.topk with a fixed k")
class SizeOfData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found = x.nonzero()
        if found.shape[0] > 3:
            return found[:3]
        return found


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.choice = BranchOnData()

    def forward(self, x: Tensor) -> Tensor:
        return self.choice(x)


@fails("DS0170", "chooses by the value", "[block.choice (BranchOnData)]", "torch.where", args=(torch.randn(3),))
class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


@fails("DS0171", "fixes the size 'batch' to 4", "return x.view(4, 2, 4)", "x.view(x.shape[0], -1)", dynamic=BATCH)
class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(4, 2, 4)


@fails(
    "DS0171",
    "does not work for all sizes that 'batch' was said to have: it needs 2 <= batch and batch <= 10",
    "if x.shape[0] > 10:",
    "Narrow its range to at most 10.",
    dynamic=BATCH,
)
class SmallBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 10:
            x = x[:10]
        return x * 2


@fails(
    "DS0171",
    "it needs (8*batch) == (16*(batch // 2))",
    "return x.reshape(x.shape[0] // 2, 16)",
    "only be a multiple of 2",
    dynamic=BATCH,
)
class EvenBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] // 2, 16)


@fails(
    "DS0171",
    "must be equal, and were given different names",
    "return x + y",
    "Give both axes one name",
    args=(torch.randn(4, 8), torch.randn(4, 8)),
    dynamic={"x": {0: "a"}, "y": {0: "b"}},
)
class EqualSizes(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@fails("DS0172", "leaves torch for numpy", "return torch.from_numpy(np.tanh(x.numpy()))", "torch.tanh(x) for np.tanh")
class Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.numpy()))


@fails("DS0172", "formats the value of a tensor", 'print(f"mean {x.mean():.3f}")', "torch.compiler.is_exporting()")
class Prints(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print(f"mean {x.mean():.3f}")
        return x


@fails("DS0172", "address of a tensor's memory", "return x * (x.data_ptr() % 2)", "torch.library.custom_op")
class Address(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (x.data_ptr() % 2)


class Box:
    """A class that torch knows nothing of."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


@fails("DS0174", "the model returns a tests.frontend.test_diagnose.Box", "", "Return its tensors in a dict")
class ReturnsObject(nn.Module):
    def forward(self, x: Tensor) -> Box:
        return Box(x)


@fails("DS0174", "an input is a tests.frontend.test_diagnose.Box", "", "Pass its tensors", args=(Box(torch.ones(2)),))
class TakesObject(nn.Module):
    def forward(self, box: Box) -> Tensor:
        return box.value * 2


@fails(
    "DS0175",
    "shapes do not fit in the model",
    "return self.second(self.first(x))  [second (Linear)]",
    "Check the example",
)
class Shapes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 5), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@fails("DS0175", "shapes do not fit", "return torch.cat([x, x[:, :1]])", "Check the example")
class Concatenates(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x[:, :1]])


@fails("DS0175", "shapes do not fit", "return self.conv(x)  [conv (Conv2d)]", "Check", args=(torch.randn(1, 4, 8, 8),))
class Channels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@fails("DS0175", "dtypes do not fit", "return self.table(x)  [table (Embedding)]", "Check the example")
class Indices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x)


LIBRARY = torch.library.Library("dsopt_tests", "FRAGMENT")
LIBRARY.define("twice(Tensor x) -> Tensor")
LIBRARY.impl("twice", lambda x: x * 2, "CPU")


@fails(
    "DS0176",
    "dsopt_tests.twice.default does not say what shape",
    "return torch.ops",
    '@torch.library.register_fake("dsopt_tests::twice")',
)
class NoShapeRule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.dsopt_tests.twice(x)


@fails("DS0177", "different devices", 'return x + torch.ones(8, device="cuda")', "device=x.device")
class OtherDevice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(8, device="cuda")


@fails("DS0180", "AttributeError: 'Typo' object has no attribute 'missing'", "return self.missing(x)", "without dsopt")
class Typo(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.missing(x)


@fails("DS0180", "RecursionError", "return self.forward(x)", "without dsopt")
class Endless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.forward(x)


@pytest.mark.parametrize(("kind", "expected"), CASES, ids=[kind.__name__ for kind, _ in CASES])
def test_a_model_that_cannot_be_exported_is_explained(kind: type[nn.Module], expected: Expected) -> None:
    with pytest.raises(CaptureError) as caught:
        export_module(kind(), expected.args, {}, expected.dynamic)
    error = caught.value
    assert error.code == expected.code
    assert expected.what in error.what
    assert expected.line in error.where
    assert expected.advice in error.fix
    if expected.line:
        assert "test_diagnose.py:" in error.where
        assert "torch/" not in error.where.split("\n")[0]


def test_the_whole_message_reads_well() -> None:
    with pytest.raises(CaptureError) as caught:
        export_module(Deep(), (torch.randn(3),))
    lines = str(caught.value).splitlines()
    assert lines[0] == "DS0170: the model chooses by the value that a tensor has"
    assert lines[1].endswith("if x.sum() > 0:  [block.choice (BranchOnData)]")
    assert lines[2].endswith("return self.choice(x)")
    assert lines[3].endswith("return self.block(x)")
    assert lines[4:] == [
        "  why: A compiled program is one fixed graph: it cannot look at the values of tensors to decide what to compute.",
        "  do: Compute both and select: x = torch.where(condition, a, b)",
        "    If the choice is made once and for all, make it in __init__ from a Python value.",
    ]


@pytest.mark.parametrize("error", [RuntimeError("odd"), ValueError(), KeyError("k"), RecursionError(), MemoryError()])
def test_any_exception_gets_an_answer(error: Exception) -> None:
    found = explain_export_failure(error)
    assert found.code == "DS0180"
    assert type(error).__name__ in found.what


def test_an_answer_is_not_explained_twice() -> None:
    error = CaptureError("DS0120", "known")
    assert explain_export_failure(error) is error


def test_torch_is_left_as_it_was_after_an_export() -> None:
    before = set(uninteresting_files())
    with guards_name_model_lines():
        assert uninteresting_files() > before
    assert uninteresting_files() == before


@pytest.mark.parametrize("kind", [BranchOnData, Shapes, FixedBatch])
def test_torch_prints_nothing_beside_the_answer(kind: type[nn.Module], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError):
        export_module(kind(), (torch.randn(4, 8),), {}, BATCH)
    assert capfd.readouterr() == ("", "")

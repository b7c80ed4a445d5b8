from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dsopt.api import load_model
from dsopt.errors import CaptureError, UsageError
from dsopt.frontend.factory import load_factory

SOURCE = """
import torch
from torch import nn
from dsopt.frontend.spec import ModelSpec

class Net(nn.Linear):
    def __init__(self):
        super().__init__(2, 3)

ready = Net()
number = 3

def bare(): return Net()
def with_example(): return Net(), (torch.ones(1, 2),)
def with_tensor(): return Net(), torch.ones(1, 2)
def with_keywords(): return Net(), (), {"input": torch.ones(1, 2)}
def with_dims(): return Net(), (torch.ones(1, 2),), {}, {"input": {0: "batch"}}
def spec(): return ModelSpec(Net(), (torch.ones(1, 2),), {}, {"input": {0: "batch"}})
def raises():
    return 1 / 0
def takes(size): return Net()
def nothing(): pass
def long_tuple(): return Net(), 1, 2, 3, 4
def odd_first(): return 1, (torch.ones(1),)
def odd_args(): return Net(), 5
def odd_kwargs(): return Net(), (), 5
class Holder:
    @staticmethod
    def make(): return Net()
"""


@pytest.fixture(autouse=True)
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the user's module in it, which only the working folder makes importable."""
    (tmp_path / "my_models.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("import torch\nx = 1\nraise RuntimeError('no data here')\n")
    (tmp_path / "unparsable.py").write_text("def f(:\n")
    (tmp_path / "needs_more.py").write_text("import not_installed_here\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    for name in ("my_models", "broken", "unparsable", "needs_more"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize("name", ["bare", "Net", "ready", "Holder.make"])
def test_a_module_alone_has_no_example(name: str) -> None:
    spec = load_factory(f"my_models:{name}")
    assert isinstance(spec.model, nn.Linear)
    assert (spec.args, spec.kwargs, spec.dynamic) == ((), {}, {})


@pytest.mark.parametrize("name", ["with_example", "with_tensor", "with_dims", "spec"])
def test_an_example_comes_with_the_module(name: str) -> None:
    spec = load_factory(f"my_models:{name}")
    assert spec.model(*spec.args).shape == (1, 3)
    assert spec.dynamic == ({"input": {0: "batch"}} if name in ("with_dims", "spec") else {})


def test_keyword_examples_are_kept() -> None:
    spec = load_factory("my_models:with_keywords")
    assert spec.args == ()
    torch.testing.assert_close(spec.kwargs["input"], torch.ones(1, 2))


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("my_models", "DS0155", "'my_models' does not name a model factory"),
        ("my models:make", "DS0155", "does not name"),
        (":make", "DS0155", "does not name"),
        ("my_models:", "DS0155", "does not name"),
        ("./my_models.py:make", "DS0155", "does not name"),
        ("nowhere.at_all:make", "DS0156", "there is no module 'nowhere' (from nowhere.at_all:make)"),
        ("my_models.inner:make", "DS0156", "there is no module 'my_models.inner'"),
        (
            "broken:make",
            "DS0156",
            "importing broken failed: RuntimeError: no data here\n  where: broken.py:3: raise RuntimeError",
        ),
        ("unparsable:make", "DS0156", "importing unparsable failed: SyntaxError"),
        ("needs_more:make", "DS0156", "Install 'not_installed_here' where dsopt runs"),
        ("my_models:bear", "DS0157", "my_models has no 'bear' (from my_models:bear)\n  do: It has bare."),
        ("my_models:number", "DS0157", "is a int and cannot be called"),
        (
            "my_models:raises",
            "DS0158",
            "raised ZeroDivisionError: division by zero\n  where: my_models.py:20: return 1 / 0",
        ),
        ("my_models:takes", "DS0158", "missing 1 required positional argument: 'size'"),
        ("my_models:nothing", "DS0159", "returned a NoneType"),
        ("my_models:long_tuple", "DS0159", "returned a tuple of 5"),
        ("my_models:odd_first", "DS0159", "a int in the place of the module"),
        ("my_models:odd_args", "DS0159", "a int in the place of the example arguments"),
        ("my_models:odd_kwargs", "DS0159", "a int in the place of the keyword arguments"),
    ],
)
def test_a_factory_that_does_not_load_says_why(text: str, code: str, words: str) -> None:
    with pytest.raises(CaptureError if code == "DS0158" else UsageError) as caught:
        load_factory(text)
    assert caught.value.code == code
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["forgotten", "forgotten.py", "./forgotten.py", "kept", "kept/inner.py", "kept.inner"])
def test_a_module_without_its_factory_says_how_to_name_one(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "forgotten.py").write_text("def make(): ...\n")
    (tmp_path / "kept").mkdir()
    for name in ("__init__.py", "inner.py"):
        (tmp_path / "kept" / name).write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match=r"names a module and no factory in it\n  do: name a function of it, as [\w.]+:make"
    ):
        load_model(text)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsopt.errors import PassError, UsageError
from dsopt.ir import Program, Rewriter
from dsopt.passes import PASSES
from dsopt.passes.base import Pass, PassContext, PassManager, load_pass, make_pass, parse_pipeline
from dsopt.passes.fold_constants import FoldConstants


def test_a_pipeline_is_read_from_text() -> None:
    passes = parse_pipeline(" fold-batch-norm, fold-constants{growth_bytes=64} ,fuse-activation ")
    assert [str(each) for each in passes] == ["fold-batch-norm", "fold-constants{growth_bytes=64}", "fuse-activation"]
    assert parse_pipeline("") == ()


def test_every_registered_pass_has_its_registered_name_and_a_docstring() -> None:
    for name in PASSES:
        assert load_pass(name).name == name
        assert load_pass(name).__doc__


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "fuse-atention",
            "unknown pass 'fuse-atention'\n  do: did you mean fuse-attention or fuse-activation? known passes: ",
        ),
        ("quantise", "do: did you mean quantize"),
        ("fold-constants{grow=1}", "has no option 'grow'"),
        ("quantize{weight=4}", "has no option 'weight'\n  do: did you mean weights? its options: "),
        ("fold-constants{growth_bytes=-1}", "growth_bytes must be 0 or more"),
        ("fold-constants{growth_bytes}", "cannot read option"),
        ("fold-constants{growth_bytes=1,growth_bytes=2}", "given twice"),
        ("fold-constants{growth_bytes=1", "cannot read the pipeline"),
        ("fold-constants,", "ends with a comma"),
        ("Fold!", "cannot read the pipeline"),
    ],
)
def test_a_wrong_pipeline_is_answered_with_what_is_known(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pipeline(text)
    assert message in str(caught.value)
    assert caught.value.fix or caught.value.why or "twice" in message


@given(st.integers(0, 1 << 40))
def test_a_pass_s_text_is_read_back_as_the_same_pass(growth: int) -> None:
    made = FoldConstants(growth_bytes=growth)
    assert parse_pipeline(str(made)) == (made,)


@given(st.text(max_size=60))
def test_no_text_breaks_the_pipeline_parser(text: str) -> None:
    try:
        parse_pipeline(text)
    except UsageError as problem:
        assert problem.code.startswith("DS03")


@dataclass(frozen=True)
class _Breaks(Pass):
    name: ClassVar[str] = "breaks"

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        node = next(node for node in program.graph.nodes if node.target is torch.ops.aten.relu.default)
        node.meta["val"] = node.meta["val"].to(torch.float64)


def test_a_pass_that_leaves_a_wrong_program_is_named_with_those_before_it(conv_program: Program) -> None:
    text = conv_program.text()
    with pytest.raises(PassError) as caught:
        PassManager((make_pass("fold-batch-norm", {}), _Breaks())).run(conv_program)
    assert "pass breaks failed" in caught.value.what
    assert "after fold-batch-norm" in caught.value.where
    assert "aten.relu" in caught.value.where
    assert conv_program.text() == text


def test_the_manager_records_counts_and_writes_dumps(conv_program: Program, tmp_path: Path) -> None:
    passes = parse_pipeline("fold-batch-norm,fuse-activation")
    _, records = PassManager(passes, dump=tmp_path / "dump").run(conv_program)
    assert [record.name for record in records] == ["fold-batch-norm", "fuse-activation"]
    assert records[0].nodes[0] - records[0].nodes[1] == 2
    assert records[0].weight_bytes[0] > records[0].weight_bytes[1]
    assert "seconds" not in records[0].as_dict()
    names = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert names == ["00-input.txt", "01-fold-batch-norm.txt", "02-fuse-activation.txt"]
    assert "conv_act" in (tmp_path / "dump" / "02-fuse-activation.txt").read_text()


def test_a_dump_that_cannot_be_written_is_a_sentence(conv_program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the dump"):
        PassManager((), dump=tmp_path / "file" / "dump").run(conv_program)

"""compress: the stages do what their passes and trainings do alone, each is measured, and a stop costs only what was not finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dsopt
from dsopt.accuracy.samples import read_samples
from dsopt.compression import Compressed, parse_stages
from dsopt.compression.data import Batches
from dsopt.errors import UsageError
from dsopt.ir import Program
from dsopt.passes.base import PassManager, parse_pipeline
from dsopt.train import distill
from tests.compression.nets import arrays, net_program
from tests.train.nets import StopError, same_weights

TEXT = "prune{ratio=0.3},distill{epochs=2,learning_rate=0.02},qat{epochs=1,learning_rate=0.001}"


@pytest.fixture(scope="module")
def teacher() -> Program:
    """Return the network, trained a little."""
    program = net_program()
    data = Batches(program, read_samples(program, arrays(400, 1)), 32)
    return distill(program, None, data, epochs=6, learning_rate=1e-2, labels=1.0, logits=0.0).program


def _compress(teacher: Program, stages: Any = TEXT, **options: Any) -> Compressed:
    return dsopt.compress(teacher, "cpu", stages, arrays(300, 1), **{"timing_seconds": 0, **options})


def test_each_stage_is_measured_and_the_last_is_compiled(teacher: Program) -> None:
    before = {name: value.clone() for name, value in teacher.weights.items()}
    held = arrays(200, 2)
    result = _compress(teacher, validation=held, timing_seconds=0.05)
    rows = result.stages
    assert [row.stage.partition("{")[0] for row in rows] == ["start", "prune", "distill", "qat", "compile for cpu"]
    guesses = teacher.run(torch.from_numpy(held["x"]))[0].argmax(1).numpy()
    assert rows[0].score == pytest.approx(100 * np.mean(guesses == held["labels"]))
    with dsopt.runtime.load(result.artifact) as session:
        outputs = session.run(held["x"])
    assert rows[-1].score == pytest.approx(100 * np.mean(outputs.argmax(1) == held["labels"]))
    assert rows[2].score is not None
    assert rows[2].score > 60  # three classes
    # 4 * 8 + 4 blocks of 2 * 8 * 16 + 8 * 3 products; 4-byte parameters
    assert rows[0].multiply_adds == 32 + 4 * 256 + 24
    assert rows[0].parameters == 40 + 4 * (256 + 24) + 27
    assert rows[0].weight_bytes == 4 * rows[0].parameters
    assert rows[1].parameters == pytest.approx(0.7 * rows[0].parameters, rel=0.02)
    assert rows[3].weight_bytes < 0.6 * rows[2].weight_bytes  # a quarter, with biases of 4 bytes and scales
    assert all(row.latency_seconds is not None and row.latency_seconds > 0 for row in rows)
    assert rows[-1].artifact_bytes == sum(len(content) for content in result.artifact.files.values())
    assert all(torch.equal(value, before[name]) for name, value in teacher.weights.items())
    lines = result.table().splitlines()
    assert lines[0].split()[:2] == ["stage", "accuracy"]
    assert len(lines) == 6
    assert len({len(line) for line in lines}) == 1
    assert json.loads(json.dumps(result.as_dict()))["stages"][0]["stage"] == "start"


def test_stages_are_what_passes_and_trainings_do_alone(teacher: Program) -> None:
    result = _compress(teacher, "remove-blocks{every=2},distill{epochs=1}")
    shorter, _ = PassManager(parse_pipeline("remove-blocks{every=2}")).run(teacher)
    loader = Batches(teacher, read_samples(teacher, arrays(300, 1)), 32)
    alone = distill(shorter, teacher, loader, epochs=1).program
    x = torch.randn(5, 4)
    with dsopt.runtime.load(result.artifact) as session:
        np.testing.assert_allclose(session.run(x.numpy()), alone.run(x)[0], rtol=1e-4, atol=1e-5)
    assert [row.score for row in result.stages] == [None] * 4


def test_what_was_done_is_not_done_again(teacher: Program, tmp_path: Path) -> None:
    whole = _compress(teacher)
    folder = tmp_path / "stages"

    def stop(done: int, total: int, what: str) -> None:
        if what.startswith("epoch 2"):
            raise StopError

    with pytest.raises(StopError):
        _compress(teacher, folder=folder, progress=stop)
    assert sorted(path.suffix for path in folder.iterdir()) == [".ckpt", ".dsoptp", ".json"]
    seen: list[str] = []
    resumed = _compress(teacher, folder=folder, progress=lambda done, total, what: seen.append(what))
    assert next(what for what in seen if what.startswith("epoch")).startswith("epoch 2")
    assert resumed.artifact.files == whole.artifact.files
    assert len([path for path in folder.iterdir() if path.suffix == ".ckpt"]) == 0
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = _compress(teacher, folder=folder, progress=lambda done, total, what: seen.append(f"again {what}"))
    assert again.artifact.files == whole.artifact.files
    assert [(row.stage, row.seconds) for row in again.stages[:-1]] == [
        (row.stage, row.seconds) for row in resumed.stages[:-1]
    ]
    assert not any(what.startswith("again epoch") for what in seen)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_what_changes_or_is_damaged_is_done_again_with_all_after_it(teacher: Program, tmp_path: Path) -> None:
    text = "prune{ratio=0.3},fine-tune{epochs=1}"
    first = _compress(teacher, text, folder=tmp_path)
    done = {path.name for path in tmp_path.iterdir()}
    _compress(teacher, text, folder=tmp_path, seed=1)
    _compress(teacher, "prune{ratio=0.3},fine-tune{epochs=2}", folder=tmp_path)
    names = [path.name for path in tmp_path.iterdir()]
    assert len([name for name in names if name.startswith("01-prune") and name.endswith("json")]) == 2
    assert len([name for name in names if name.startswith("02-fine-tune") and name.endswith("json")]) == 3
    assert done <= set(names)
    (path,) = [tmp_path / name for name in done if name.startswith("02") and name.endswith("dsoptp")]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert _compress(teacher, text, folder=tmp_path).artifact.files == first.artifact.files
    assert path.read_bytes() == whole


def test_a_loader_and_a_loss_of_the_user_s_own(teacher: Program) -> None:
    data = arrays(96, 1)
    batches = [
        (torch.from_numpy(data["x"][rows]), F.one_hot(torch.from_numpy(data["labels"][rows]), 3).float())
        for rows in (slice(0, 48), slice(48, 96))
    ]
    result = dsopt.compress(
        teacher, "cpu", "prune{ratio=0.3},fine-tune{epochs=1}", batches, loss=F.binary_cross_entropy_with_logits, timing_seconds=0
    )  # fmt: skip
    assert result.stages[2].parameters == result.stages[1].parameters
    with pytest.raises(UsageError, match="iterated only once"):
        dsopt.compress(teacher, "cpu", "prune", iter(batches))


def test_a_chip_gets_its_sizes_fixed_and_its_instructions_counted(teacher: Program) -> None:
    pytest.importorskip("ziglang")
    result = dsopt.compress(
        teacher, "mcu:cortex-m4", "prune{ratio=0.3},qat{epochs=1}", arrays(100, 1), validation=arrays(50, 2), dims={"batch": 1}
    )  # fmt: skip
    last = result.stages[-1]
    assert last.stage == "compile for mcu:cortex-m4"
    assert last.instructions is not None
    assert last.instructions > 1000
    assert last.score == pytest.approx(result.stages[-2].score, abs=2.1)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("prune,shrink", "unknown stage 'shrink'"),
        ("distill{epoch=3}", "stage distill has no option 'epoch'"),
        ("distill{epochs=0}", "epochs is 0"),
        ("distill{temperature=-1}", "temperature is -1"),
        ("qat{quantize='weight=4'}", "no option 'weight'"),
        ("prune{ratio=0.3", "cannot read the pipeline"),
    ],
)
def test_stages_that_mean_nothing_are_refused_before_any_work(stages: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_stages(stages)


def test_the_text_of_stages_makes_them_again() -> None:
    stages = parse_stages(
        "prune{ratio=0.3},distill{epochs=2,hidden=1.0},fine-tune{epochs=1},qat{quantize='weights=4,keep=head'}"
    )
    assert parse_stages(",".join(map(str, stages))) == stages


def test_data_without_labels_cannot_be_trained_on_with_them(teacher: Program) -> None:
    data = {"x": arrays(64, 1)["x"]}
    with pytest.raises(UsageError, match="the data holds no labels"):
        dsopt.compress(teacher, "cpu", "remove-blocks{every=9},distill{epochs=1}", data)
    with pytest.raises(UsageError, match="patience=2 needs scores"):
        _compress(teacher, "fine-tune{patience=2}")
    result = dsopt.compress(
        teacher, "cpu", "prune{ratio=0.3},distill{epochs=1,labels=0}", data, validation=data, timing_seconds=0
    )
    assert result.metric == "agreement"
    assert result.stages[0].score == 100


def test_several_processes_are_refused(teacher: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="one process"):
        _compress(teacher)


def test_batches_are_drawn_anew_and_keep_inputs_and_labels_together() -> None:
    data = {"x": np.arange(40, dtype=np.float32).reshape(10, 4), "labels": np.arange(10)}
    program = net_program()
    batches = Batches(program, read_samples(program, data), 4)
    torch.manual_seed(0)
    rounds = [list(batches) for _ in range(2)]
    assert [len(each) for each in rounds] == [2, 2] == [len(batches)] * 2
    for (x,), labels in rounds[0]:
        assert labels is not None
        assert torch.equal(x[:, 0], 4.0 * labels)
    assert not torch.equal(rounds[0][0][0][0], rounds[1][0][0][0])
    torch.manual_seed(0)
    assert same_batches(list(batches), rounds[0])


def same_batches(one: Any, other: Any) -> bool:
    """Tell whether two rounds are one."""
    return all(torch.equal(a[0][0], b[0][0]) for a, b in zip(one, other, strict=True))


def test_programs_are_kept_as_they_were(teacher: Program, tmp_path: Path) -> None:
    _compress(teacher, "prune{ratio=0.3}", folder=tmp_path)
    (path,) = tmp_path.glob("01-prune-*.dsoptp")
    pruned, _ = PassManager(parse_pipeline("prune{ratio=0.3}")).run(teacher)
    assert same_weights(Program.load(path), pruned)


def test_a_batch_that_is_fixed_is_taken_as_it_is(teacher: Program) -> None:
    fixed = teacher.specialize({"batch": 20})
    loader = list(Batches(fixed, read_samples(fixed, arrays(100, 1)), 32))
    assert [tuple(x.shape) for (x,), _ in loader] == [(20, 4)] * 5
    assert [tuple(labels.shape) for _, labels in loader if labels is not None] == [(20,)] * 5
    result = dsopt.compress(
        fixed, "cpu", "fine-tune{epochs=1}", arrays(100, 1), validation=arrays(40, 2), timing_seconds=0
    )  # fmt: skip
    assert result.stages[0].multiply_adds == 20 * (32 + 4 * 256 + 24)
    assert result.stages[-1].score == pytest.approx(result.stages[-2].score)

"""A training that was stopped and gone on with gives the bits of one that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dsopt.errors import ReadError
from dsopt.frontend.export import export_module
from dsopt.train import QatResult, qat
from tests.conftest import ConvNet
from tests.train.nets import StopError, net_program, random_loader, same_weights, stop_after

EPOCHS, STEPS = 3, 6


class Noisy(Dataset[Any]):
    """Images with noise that is drawn when they are read."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((1, 8, 8), index / 48) + 0.3 * torch.randn(1, 8, 8), index % 10


def _own_generator() -> DataLoader[Any]:
    return random_loader(generator=torch.Generator().manual_seed(9))


LOADERS = {
    "shuffled": random_loader,
    "own generator": _own_generator,
    "noise": lambda: DataLoader(Noisy(), batch_size=8, shuffle=True),
    "list": lambda: list(random_loader(shuffle=False)),
}


def _score(module: nn.Module) -> float:
    # rises and falls, so that the best is neither the first nor the last
    generator = torch.Generator().manual_seed(1)
    return -abs(float(module(torch.randn(4, 1, 8, 8, generator=generator)).sum()))


def _train(loader: Any, **options: Any) -> QatResult:
    options = {"learning_rate": 2e-2, "observe": 0.6, "freeze_batch_norm": 0.7, "calibration_batches": 2, **options}
    return qat(net_program(), loader, F.cross_entropy, epochs=EPOCHS, **options)


@pytest.mark.parametrize(
    ("kind", "stop"), [*((kind, 4) for kind in sorted(LOADERS)), ("shuffled", 6), ("own generator", 9), ("noise", 17)]
)
def test_gone_on_with_is_the_same_as_never_stopped(tmp_path: Path, kind: str, stop: int) -> None:
    options: dict[str, Any] = {"validate": _score, "checkpoint_steps": 2}
    whole = _train(LOADERS[kind](), checkpoint=tmp_path / "whole.pt", **options)
    path = tmp_path / "stopped.pt"
    with pytest.raises(StopError):
        _train(LOADERS[kind](), checkpoint=path, progress=stop_after(stop), **options)
    torch.manual_seed(123)  # another process would have another state
    resumed = _train(LOADERS[kind](), checkpoint=path, **options)
    assert resumed.history == whole.history
    assert same_weights(resumed.prepared, whole.prepared)
    assert same_weights(resumed.program, whole.program)


def test_stops_in_the_middle_change_nothing_however_many(tmp_path: Path) -> None:
    whole = _train(random_loader(), quantize="weights=4")
    path = tmp_path / "stopped.pt"
    for stop in (3, 5, 8, 13, 17):
        with pytest.raises(StopError):
            _train(
                random_loader(), quantize="weights=4", checkpoint=path, checkpoint_steps=1, progress=stop_after(stop)
            )
    assert same_weights(
        _train(random_loader(), quantize="weights=4", checkpoint=path, checkpoint_steps=1).program, whole.program
    )


def test_writing_checkpoints_changes_nothing_and_a_finished_one_gives_the_result_again(tmp_path: Path) -> None:
    plain = _train(random_loader())
    path = tmp_path / "folder" / "qat.pt"
    assert same_weights(_train(random_loader(), checkpoint=path, checkpoint_steps=4).program, plain.program)
    before = path.read_bytes()
    again = _train(random_loader(), checkpoint=path, checkpoint_steps=4, progress=stop_after(1))  # does no step
    assert same_weights(again.program, plain.program)
    assert again.history == plain.history
    assert path.read_bytes() == before
    assert sorted(item.name for item in path.parent.iterdir()) == ["qat.pt"]


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"quantize": "weights=4"},
        {"learning_rate": 1e-3},
        {"optimizer": lambda groups: torch.optim.SGD(groups, lr=1e-2)},
        {"freeze_batch_norm": 0.5},
    ],
    ids=["seed", "bits", "rate", "optimizer", "freezing"],
)
def test_the_checkpoint_of_another_training_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    path = tmp_path / "qat.pt"
    _train(random_loader(), checkpoint=path)
    with pytest.raises(ReadError, match="belongs to another training") as refused:
        _train(random_loader(), checkpoint=path, **other)
    assert refused.value.code == "DS0362"
    assert "name another file" in refused.value.fix


def test_the_checkpoint_of_another_net_or_another_loader_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "qat.pt"
    _train(random_loader(), checkpoint=path)
    with pytest.raises(ReadError, match="belongs to another training"):
        _train(random_loader(count=5), checkpoint=path)
    other = export_module(ConvNet().eval(), (torch.randn(8, 3, 8, 8),))
    batches = [(torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.long))] * STEPS
    options: dict[str, Any] = {
        "learning_rate": 2e-2, "observe": 0.6, "freeze_batch_norm": 0.7, "calibration_batches": 2, "epochs": EPOCHS,
    }  # fmt: skip
    with pytest.raises(ReadError, match="belongs to another training"):
        qat(other, batches, F.cross_entropy, checkpoint=path, **options)


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "foreign", "flipped"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "qat.pt"
    _train(random_loader(), checkpoint=path)
    whole = path.read_bytes()
    if damage == "foreign":
        torch.save({"weight": torch.ones(2)}, path)
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]
        path.write_bytes({"text": b"not one", "empty": b"", "cut": whole[:middle], "flipped": flipped}[damage])
    with pytest.raises(ReadError, match="is no checkpoint of a training") as refused:
        _train(random_loader(), checkpoint=path)
    assert refused.value.code == "DS0361"
    assert refused.value.fix == "delete it to begin anew"

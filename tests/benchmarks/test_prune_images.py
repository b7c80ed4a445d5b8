"""The benchmark of pruning on images: every method is trained and judged, sizes are what they say, and the drawing is well-formed."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks.prune import images
from benchmarks.prune.image_nets import NETWORKS, captured, width_of_size
from benchmarks.prune.images import Images, Plan, accuracy, fresh, image_rows, parameters_of
from benchmarks.prune.plot import frontier, write_frontiers


@pytest.fixture
def data() -> Images:
    """Return images whose class is how bright they are."""
    y = torch.arange(160) % 10
    x = torch.rand(160, 3, 32, 32) * 20 + 24.0 * y[:, None, None, None]
    return Images(x[:128], y[:128], x[128:], y[128:])


def test_every_method_gets_a_row_and_a_place_in_the_drawing(
    data: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "BATCH", 32)
    monkeypatch.setattr(images.Images, "read", staticmethod(lambda assets, most: data))
    plan = Plan(1, 1, 1, 1, None, (0.6,), ("resnet8",))
    rows = image_rows(tmp_path, plan, tmp_path / "work")
    assert [row["method"] for row in rows] == ["float", "pruned", "uniform", "scratch", "int8"]
    whole, pruned, uniform, scratch, int8 = rows
    assert pruned["parameters"] / whole["parameters"] == pytest.approx(0.4, abs=0.005)
    assert 0.9 < uniform["parameters"] / pruned["parameters"] <= 1
    assert scratch["parameters"] == int8["parameters"] == pruned["parameters"]
    kept = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert kept == [f"resnet8-0-{stem}.dsoptp" for stem in ("float", "int8", "pruned-0.6", "scratch", "uniform-0.6")]
    monkeypatch.setattr(images, "distill", None)  # nothing is trained twice
    monkeypatch.setattr(images, "qat", None)
    assert image_rows(tmp_path, plan, tmp_path / "work") == rows
    write_frontiers(rows, tmp_path / "plots")
    drawing = ElementTree.fromstring((tmp_path / "plots" / "resnet8.svg").read_text())
    assert len(drawing.findall("{*}circle")) == len(rows)
    assert frontier(rows, "resnet8") == (tmp_path / "plots" / "resnet8.svg").read_text()


def test_a_trained_program_is_judged_by_its_code(data: Images) -> None:
    program = captured(NETWORKS["depthwise"], 0.25, 3)
    with torch.no_grad():
        right = program.run(data.x_test)[0].argmax(1) == data.y_test
    assert accuracy(program, data) == pytest.approx(100 * float(right.double().mean()))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("share", [0.1, 0.4, 0.75])
def test_uniform_networks_are_as_large_as_asked_for(name: str, share: float) -> None:
    whole = parameters_of(captured(NETWORKS[name], 1.0, 0))
    width = width_of_size(NETWORKS[name], int(share * whole))
    assert 0.85 * share < parameters_of(captured(NETWORKS[name], width, 0)) / whole <= share


def test_fresh_weights_say_nothing_of_the_old_ones() -> None:
    program = captured(NETWORKS["resnet8"], 0.5, 1)
    one, again, other = fresh(program, 0), fresh(program, 0), fresh(program, 1)
    for name, value in one.weights.items():
        torch.testing.assert_close(value, again.weights[name], rtol=0, atol=0)
        if value.dim() > 1:
            assert not torch.equal(value, program.weights[name])
            assert not torch.equal(value, other.weights[name])
            assert float(value.std()) == pytest.approx(float(program.weights[name].std()), rel=0.35)
    assert np.isfinite(one.run(torch.zeros(2, 3, 32, 32))[0].numpy()).all()

"""The cpu benchmark measures what it says: error, both peers' latency and the cost of compiling, as one JSON document."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cpu
from tests.models.test_trained import KWS_ARRAYS, write


@pytest.mark.slow
def test_a_quick_run_gives_rows_with_units_peers_and_ratios(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu, "OPENINGS", 1)
    cpu.main(["--quick", "--models", "digits", "--no-chip", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["name"]) == (1, "cpu")
    assert [row["threads"] for row in document["rows"]] == [1, 2]
    for row in document["rows"]:
        assert row["model"] == "digits"
        assert row["relative_error"] <= 1e-5
        assert row["compile_cpu_seconds"] > 0.1
        for side in ("seconds", "onnxruntime_seconds", "eager_seconds"):
            assert 0 < row[side] < 1
        assert row["onnxruntime_ratio_upper95"] >= row["onnxruntime_ratio"] > 0
        assert row["eager_ratio_upper95"] >= row["eager_ratio"] > 0


@pytest.mark.slow
def test_published_weights_are_judged_on_their_samples(tmp_path: Path) -> None:
    write(tmp_path / "models" / "kws_ds_cnn.npz", KWS_ARRAYS)
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    x, y = rng.integers(-128, 127, (20, 49, 10), np.int8), rng.integers(0, 12, 20)
    np.savez(tmp_path / "data" / "mlperf_tiny_kws01.npz", x=x, y=y)
    row = cpu.measure_trained(tmp_path, tmp_path, with_chip=False)
    assert row["samples"] == 20
    assert row["accuracy_ratio"] == row["eager_accuracy_ratio"]


def test_an_unknown_model_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cpu.main(["--models", "kws,resnet99"])
    assert "no model 'resnet99'; known: kws, ic" in capsys.readouterr().err

"""The check of CUDA artifacts on hardware, as far as it goes without any: packing, and running by a stand-in for the driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.cuda import pack, run, trial
from dsopt.artifact import load_artifact
from dsopt.runtime.cuda_plan import LaunchPlan
from tests.backends.tir.case import Family, normal
from tests.runtime.stub_driver import build_driver

CASES = {"tanh": lambda x, _: x.tanh(), "flip": lambda x, _: x.flip(0)}
FAMILIES = {"some": Family((normal(2, 3), torch.tensor([[1, 0]])), CASES)}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack one small model twice, a family, and nothing of a model that is too large."""
    out = tmp_path_factory.mktemp("cuda") / "packed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "PTX_OF", ("digits", "digits-ptx"))
        cases = f"{__name__}:FAMILIES"
        assert pack.main([str(out), "--models", "digits,unet", "--cases", cases, "--budget-bytes", "300000"]) == 0
    return out


@pytest.fixture(scope="module")
def driver(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a driver that knows the kernels of digits, as the library that the NVIDIA driver installs."""
    folder = tmp_path_factory.mktemp("driver")
    artifact = load_artifact(packed / "digits.dsopt")
    kernels = LaunchPlan.read(artifact.manifest).kernels
    library = build_driver(folder, artifact.files["kernels.cu"].decode(), kernels)
    return Path(library).rename(folder / "libcuda.so.1").parent


def _run(packed: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.cuda.run", str(packed), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_a_pack_lists_what_fits_and_names_what_does_not(packed: Path) -> None:
    listed = json.loads((packed / "pack.json").read_text())
    assert [entry["name"] for entry in listed["entries"]] == ["op-some", "digits", "digits-ptx"]
    assert [entry["kind"] for entry in listed["entries"]] == ["operators", "model", "model"]
    assert list(listed["entries"][0]["labels"].values()) == ["tanh", "flip"]
    assert [(one["name"], one["error"]) for one in listed["left_out"]] == [("unet", "")]
    files = {path.name: path.stat().st_size for path in packed.iterdir()}
    names = {f"{entry['name']}{suffix}" for entry in listed["entries"] for suffix in (".dsopt", ".npz")}
    assert set(files) == {*names, "pack.json"}
    assert sum(entry["bytes"] for entry in listed["entries"]) == sum(files.values()) - files["pack.json"] <= 300_000


def test_an_artifact_for_an_old_gpu_has_no_machine_code_for_the_new_one(packed: Path) -> None:
    images = load_artifact(packed / "digits-ptx.dsopt").manifest["cuda"]["images"]
    assert [image["arch"] for image in images] == ["sm_75", "compute_75"]


def test_the_calls_differ_and_hold_what_eager_torch_returns(packed: Path) -> None:
    calls = trial.read_calls(packed / "op-some.npz", pack.CALLS)
    (first, _), (second, wanted), _ = (tuple(list(side.values()) for side in call) for call in calls)
    assert not np.array_equal(first[0], second[0])
    np.testing.assert_array_equal(np.sort(first[0], None), np.sort(second[0], None))
    np.testing.assert_array_equal(wanted[0], torch.from_numpy(second[0]).tanh().numpy())
    np.testing.assert_array_equal(wanted[1], second[0][::-1])


def test_rows_of_whole_numbers_stay_whole() -> None:
    indices = torch.tensor([[1, 0, 2], [2, 1, 0]])
    assert pack.reordered(indices, 1).tolist() == [[2, 1, 0], [1, 0, 2]]
    assert pack.reordered(indices, 0) is indices
    assert pack.reordered(3, 1) == 3


def test_an_unknown_model_and_a_folder_in_use_are_refused(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([str(packed)], [str(packed / "new"), "--models", "resnet99"]):
        with pytest.raises(SystemExit):
            pack.main(arguments)
    said = capsys.readouterr().err
    assert "is not empty" in said
    assert "no model 'resnet99'; known: kws, ic" in said


def test_without_a_gpu_it_says_so_in_a_sentence(packed: Path, driver: Path) -> None:
    done = _run(packed, LD_LIBRARY_PATH=str(driver), STUB_GPUS="0")
    assert done.returncode == 4
    assert "There is no GPU here, so nothing was run." in done.stderr
    assert done.stdout == ""


def test_every_trial_passes_but_the_one_whose_kernels_the_driver_lacks(packed: Path, driver: Path) -> None:
    done = _run(packed, "--json", LD_LIBRARY_PATH=str(driver))
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert done.returncode == 1
    failed = rows.pop("op-some")
    assert (failed["result"], failed["relative_error"]) == ("FAILED", None)
    assert "DS0708: cuModuleGetFunction of" in failed["why"]
    assert list(rows) == ["digits", "digits-ptx", "digits, reopening", "digits, much memory"]
    assert {name: row["why"] for name, row in rows.items()} == dict.fromkeys(rows, "")
    assert all(row["relative_error"] <= row["tolerance"] == pack.TOLERANCE for row in rows.values())
    assert 0 < rows["digits"]["slowest_seconds"] <= rows["digits"]["profile_seconds"]
    assert "too little free memory" in rows["digits, much memory"]["note"]
    assert "not packed: unet" in done.stderr


def test_a_table_is_followed_by_what_went_wrong(
    packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes: list[dict[str, Any]] = [{"why": "tanh: relative error 0.5", "relative_error": 0.5}]
    outcomes += [{"why": "", "relative_error": 0.0, "seconds": 0.25}] * 4
    monkeypatch.setattr(run, "in_a_process", lambda *_: outcomes.pop(0))
    assert run.main([str(packed)]) == 1
    printed = capsys.readouterr().out
    assert ["op-some", "0.5", "1e-05", "FAILED"] in [line.split() for line in printed.splitlines()]
    assert printed.endswith("\nop-some: FAILED\n  tanh: relative error 0.5\n")


def test_a_process_that_dies_or_hangs_is_a_row(packed: Path) -> None:
    died = run.in_a_process(packed, "no such artifact", "calls", 60.0)
    assert died["why"].startswith("the process ended with status 1\n")
    assert "ValueError" in died["why"]
    assert run.in_a_process(packed, "digits", "calls", 0.001)["why"] == "it was not done after 0.001 seconds"


def test_a_trial_cannot_import_what_running_must_not_need() -> None:
    finder = trial.Refuse()
    assert finder.find_spec("numpy.linalg") is None
    with pytest.raises(ImportError, match=r"torch\.nn was imported"):
        finder.find_spec("torch.nn")


def test_an_output_that_is_off_in_any_call_is_named_by_its_label() -> None:
    session: Any = SimpleNamespace(run_flat=lambda feeds: {"a": feeds["x"] * 2, "b": feeds["x"]})
    x = np.array([1.0, 2.0])
    calls = [({"x": x}, {"a": x * 2, "b": x}), ({"x": x}, {"a": x * 2, "b": x * 4}), ({"x": x}, {"a": x * 2, "b": x})]
    row = trial.compare(session, calls, {"tolerance": 1e-5, "labels": {"a": "double", "b": "same"}})
    assert row == {"relative_error": 0.75, "why": "same: relative error 0.75"}


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([0.5, 0.0], [0.0, 0.0], 0.5),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.nan, 1.0], [2.0, 1.0], np.inf),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([1.0], [1.0, 2.0], np.inf),
        ([1, 2], [1, 3], np.inf),
        ([1, 2], [1, 2], 0.0),
        ([1, 2], [1.0, 2.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_errors_are_relative_and_nan_agrees_with_nan_alone(got: list[Any], want: list[Any], error: float) -> None:
    assert trial.relative_error(np.array(got), np.array(want)) == error

"""Windows are cut from engines' lives as documented, and the network learns from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.turbofan import LONGEST, SENSORS, STEPS, load_fd001, train


def write(folder: Path, lives: dict[str, list[int]], left: list[int]) -> None:
    """Write engines whose sensors rise with the cycle: the life that is left can be read from them."""
    rng = np.random.default_rng(0)
    for name, cycles in lives.items():
        rows = []
        for engine, count in enumerate(cycles, 1):
            ends = count if name == "train" else count + left[engine - 1]
            for cycle in range(1, count + 1):
                sensors = (ends - cycle) * np.linspace(0.5, 2.0, 21) + rng.normal(size=21)
                rows.append([engine, cycle, 0.0, 0.0, 100.0, *sensors])
        np.savetxt(folder / f"{name}_FD001.txt", rows)
    np.savetxt(folder / "RUL_FD001.txt", left, fmt="%d")


def test_windows_end_with_each_cycle_and_know_what_is_left(tmp_path: Path) -> None:
    write(tmp_path, {"train": [40, 160], "test": [35, 20]}, [7, 200])
    data = load_fd001(tmp_path)
    assert data.x_train.shape == (40 - STEPS + 1 + 160 - STEPS + 1, STEPS, len(SENSORS))
    assert data.y_train[:11].tolist() == list(range(10, -1, -1))
    assert data.y_train[11:18].tolist() == [LONGEST] * 6 + [124.0]
    assert data.y_test.tolist() == [7, LONGEST]
    # the last cycle of one window is the one before the last of the next
    assert torch.equal(data.x_train[0, 1:], data.x_train[1, :-1])
    # a life shorter than a window is continued backwards
    assert torch.equal(data.x_test[1, 0], data.x_test[1, STEPS - 20])
    assert not torch.equal(data.x_test[1, STEPS - 20], data.x_test[1, STEPS - 19])


def test_sensors_are_standardised_by_the_training_engines(tmp_path: Path) -> None:
    write(tmp_path, {"train": [STEPS] * 4, "test": [40]}, [3])
    x = load_fd001(tmp_path).x_train.reshape(-1, len(SENSORS))
    torch.testing.assert_close(x.mean(0), torch.zeros(len(SENSORS)), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, unbiased=False), torch.ones(len(SENSORS)), atol=1e-5, rtol=0)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"train": [40], "test": [40, 41]}, [3, 4])
    (tmp_path / "RUL_FD001.txt").write_text("3\n")
    with pytest.raises(ValueError, match=r"RUL_FD001\.txt holds 1 lives and test_FD001\.txt 2 engines"):
        load_fd001(tmp_path)
    np.savetxt(tmp_path / "train_FD001.txt", np.ones((3, 25)))
    with pytest.raises(ValueError, match="has 25 columns and must have 26"):
        load_fd001(tmp_path)


def test_training_repeats_and_learns(tmp_path: Path) -> None:
    write(tmp_path, {"train": [150, 180, 200], "test": [60, 90, 120, 150]}, [90, 60, 30, 10])
    data = load_fd001(tmp_path)
    model, again = train(data, epochs=8), train(data, epochs=8)
    with torch.inference_mode():
        output = model(data.x_test)
        assert torch.equal(output, again(data.x_test))
    # always answering the mean of the four is off by 30
    assert (output[:, 0] - data.y_test).square().mean().sqrt() < 15

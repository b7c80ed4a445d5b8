"""Limits of RAM, flash and instructions: met or refused with what is missing; --strict lists what fell back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import Run

pytestmark = pytest.mark.mcu

NET = ("compile", "tests.cli.models:convolutions")
M4 = (*NET, "-t", "mcu:cortex-m4")
QUANTISED = ("--passes", "...,quantize", "--data", "x.npz")


@pytest.fixture
def data() -> None:
    np.savez("x.npz", x=np.random.default_rng(0).standard_normal((12, 3, 16, 16), dtype=np.float32))


def test_what_was_measured_is_enough_and_with_one_less_it_is_refused_or_written_in_another_way(
    run: Run, run_json: Callable[..., Any], data: None
) -> None:
    memory = run_json(*M4, *QUANTISED, "-o", "free")["memory"]
    exact = ("--ram", memory["ram_bytes"], "--flash", memory["flash_bytes"], "--instructions", memory["instructions"])
    found = run_json(*M4, *QUANTISED, *exact, "-o", "exact")
    assert found["limits"] == {key: memory[key] for key in ("ram_bytes", "flash_bytes", "instructions")}
    assert Path("exact/image.elf").read_bytes() == Path("free/image.elf").read_bytes()
    for option, key, code in (("--ram", "ram_bytes", "DS0601"), ("--instructions", "instructions", "DS0603")):
        text = run(*M4, *QUANTISED, option, memory[key] - 1, "-o", "short", code=1).stderr
        assert f"dsopt: {code}: " in text
        assert f"{memory[key]:,}" in text
        assert ": 1 too many" in text
        assert not Path("short").exists()
    short = run_json(*M4, *QUANTISED, "--flash", memory["flash_bytes"] - 1, "-o", "short")["memory"]
    assert short["flash_bytes"] < memory["flash_bytes"], "other kernels are smaller"
    assert short["instructions"] > memory["instructions"], "and slower, or they had been chosen before"


def test_all_budgets_that_are_missed_are_named_at_once_with_layers_and_remedies(
    run: Run, run_json: Callable[..., Any], data: None
) -> None:
    memory = run_json(*M4, *QUANTISED, "-o", "free")["memory"]
    ram = memory["arena_bytes"] + 1  # the stack does not fit any more
    text = run(*M4, *QUANTISED, "--ram", ram, "--flash", "3K", "--instructions", "1K", code=1).stderr
    for part in (
        f"bytes of RAM, and mcu:cortex-m4 here has {ram:,}",
        "bytes of flash, and mcu:cortex-m4 here has 3,072",
        "instructions, and 1,000 are allowed",
        "RAM: arena ",
        "values while a layer runs",
        "flash by layer, weights and code:",
        "instructions by layer:",
        "features.2 (",
        "--io int8",
        "quantize{weights=4}",
        "such as nucleo-l4r5zi or",
    ):
        assert part in text, part


def test_what_is_far_too_much_is_refused_without_an_image(run: Run) -> None:
    text = run(*M4, "--ram", "1K", "--flash", "1K", "--instructions", "1K", code=1).stderr
    assert "without stack and other variables" in text
    assert "weights need" in text
    assert (
        "no image was built, as this is more than 4 times too much; stack, code and instructions are not known" in text
    )
    assert "a chip with more than " in text
    assert "how much the stack and other variables take is known once the rest fits" in text
    assert '--passes "...,quantize" --data SAMPLES.npz' in text
    assert "features.0 (" in text
    assert "in patches: no less, because only layers in 8-bit integers run patch by patch" in text


def test_values_that_do_not_fit_do_not_hide_the_other_budgets(
    run: Run, run_json: Callable[..., Any], data: None
) -> None:
    """What the plan alone exceeds, the stack, code and instructions of the image: all at once, and the advice is enough."""
    memory = run_json(*M4, "-o", "free")["memory"]
    tight = memory["arena_bytes"] // 2
    text = run(*M4, "--ram", tight, "--flash", "4K", "--instructions", "1K", code=1).stderr
    for need in (
        f"the model needs {memory['ram_bytes']:,} bytes of RAM",
        f"code and weights need {memory['flash_bytes']:,} bytes of flash",
        f"a run takes {memory['instructions']:,} instructions, and 1,000 are allowed",
        f"McuTarget(ram_bytes={memory['ram_bytes']})",
        f"McuTarget(flash_bytes={memory['flash_bytes']})",
    ):
        assert need in text, need
    unknown = run(*NET, "-t", "mcu:cortex-m85", "--ram", tight, "--instructions", "1K", code=1).stderr
    assert "instructions and stack are not known: nothing emulates a cortex-m85" in unknown


def test_a_model_too_large_in_patches_says_how_low_they_got(run: Run, run_json: Callable[..., Any]) -> None:
    np.savez("big.npz", x=np.random.default_rng(0).standard_normal((8, 3, 24, 24), dtype=np.float32))
    net = ("compile", "tests.cli.models:stages", "-t", "mcu:cortex-m4", "--io", "int8")
    arguments = (*net, "--passes", "...,quantize", "--data", "big.npz")
    whole = run_json(*arguments, "-o", "whole")["memory"]["ram_bytes"]
    text = run(*arguments, "--ram", "3K", "-o", "short", code=1).stderr
    found = re.search(
        r"in patches: \d+ x \d+ of (features\.\d) and all before it take ([\d,]+) bytes of RAM, the least of", text
    )
    assert found is not None, text
    lowest = int(found[2].replace(",", ""))
    assert 3 << 10 < lowest < whole
    assert f"McuTarget(ram_bytes={lowest})" in text
    assert "--optimize ram, and no --ram" in text
    enough = run_json(*arguments, "--ram", lowest, "-o", "enough")
    assert enough["memory"]["ram_bytes"] <= lowest
    assert enough["patches"]["layer"].startswith("features.")


def test_a_core_that_nothing_emulates_cannot_promise_instructions(run: Run) -> None:
    arguments = (*NET, "-t", "mcu:cortex-m85", "-o", "out")
    text = run(*arguments, "--instructions", "500M", code=4).stderr
    assert "DS0604: instructions are limited to 500,000,000, and none were counted" in text
    assert "nothing emulates a cortex-m85" in text
    assert not Path("out").exists()
    run(*arguments, "--ram", "64K")
    assert "stack_bytes" not in json.loads(Path("out/manifest.json").read_text())["memory"]


def test_strict_lists_every_layer_that_fell_back_and_writes_nothing(run: Run, data: None) -> None:
    text = run(*M4, *QUANTISED, "--strict", "-o", "out", code=1).stderr
    assert "DS0923: " in text
    assert "0 in floating point" in text
    assert "features.2 (" in text
    assert "generic loops, because it is transposed" in text
    assert "features.0" not in text
    assert not Path("out").exists()
    floats = run(*M4, "--strict", "-o", "out", code=1).stderr
    assert "features.0 (features_0_conv, " in floats
    assert "floating point" in floats
    run("compile", "tests.cli.models:plain_convolutions", "-t", "mcu:cortex-m4", *QUANTISED, "--strict", "-o", "out")
    assert Path("out/model.c").exists()


def test_what_the_quantiser_left_alone_is_listed_with_its_reason(run: Run, data: None) -> None:
    text = run("compile", "tests.cli.models:half_integer", "-t", "mcu:cortex-m4", *QUANTISED, "--strict", code=1).stderr
    assert "DS0923: " in text
    assert "floating point, because " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-t", "cpu", "--strict"), "--strict judges the layers of a microcontroller, and the target is cpu"),
        (("-t", "cuda", "--strict"), "--strict judges the layers of a microcontroller, and the target is cuda"),
        (("-t", "cpu", "--optimize", "ram"), "optimize 'ram' is for microcontrollers, and the target is cpu"),
        (("-t", "cuda:sm_90", "--optimize", "speed"), "optimize 'speed' is for microcontrollers, and the target is cuda:sm_90"),
        (("-t", "cpu", "--io", "int8"), "io 'int8' is for microcontrollers, and the target is cpu"),
        (("-t", "mcu:cortex-m4", "--io", "int8"), "io 'int8' is for quantised models, and this one computes in floats"),
    ],
)  # fmt: skip
def test_options_that_would_be_ignored_are_refused(run: Run, arguments: tuple[str, ...], message: str) -> None:
    text = run(*NET, *arguments, "-o", "out", code=2).stderr
    assert f"dsopt: DS0308: {message}" in text
    assert "  do: " in text
    assert not Path("out").exists()


def test_a_float_model_made_for_ram_says_why_it_stays_whole(run: Run) -> None:
    text = run(*M4, "--optimize", "ram", "-o", "out").stdout
    assert "none, because only layers in 8-bit integers run patch by patch" in text


def test_ports_of_integers_are_refused_where_both_ends_compute_in_floats(run: Run, data: None) -> None:
    keep = "quantize{keep=features.0|head}"
    arguments = ("--passes", f"...,{keep}", "--data", "x.npz", "--io", "int8", "-o", "out")
    text = run(*M4, *arguments, code=2).stderr
    assert "DS0308: io 'int8' would change nothing: x, output are computed with in floating point" in text

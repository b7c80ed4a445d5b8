"""dsopt inspect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import dsopt
from tests.cli.conftest import Run

TINY = "tests.cli.models:tiny"


def test_a_models_layers_are_shown_with_parameters_and_multiply_adds(run_json: Callable[..., Any], run: Run) -> None:
    found = run_json("inspect", TINY)
    assert [(each["layer"], each["op"], each["parameters"], each["multiply_adds"]) for each in found["layers"]] == [
        ("first", "linear", 40, 64), ("", "relu", 0, 0), ("second", "linear", 27, 48),
    ]  # fmt: skip
    assert (found["parameters"], found["multiply_adds"], found["weight_bytes"]) == (67, 112, 268)
    assert found["dims"] == {"batch": {"min": 1, "max": None, "example": 2}}
    assert found["blockers"] is None
    text = run("inspect", TINY).stdout
    assert "Multiply-adds are those of the example: batch=2." in text
    assert "f32[batch, 8]" in text


def test_all_blockers_of_a_target_are_shown_at_once(run: Run, run_json: Callable[..., Any]) -> None:
    found = run_json("inspect", "tests.cli.models:unsupported", "--target", "cpu", code=3)
    assert [each["op"] for each in found["blockers"]] == [
        "aten.special_bessel_j0.default", "aten.special_airy_ai.default",
    ]  # fmt: skip
    text = run("inspect", "tests.cli.models:unsupported", "--target", "cpu", code=3).stdout
    assert "cpu cannot run 2 of these" in text
    assert "models.py" in text
    assert "cpu can run all of it" in run("inspect", TINY, "--target", "cpu").stdout


def test_the_program_itself_is_shown_as_text(run: Run) -> None:
    assert run("inspect", TINY, "--text").stdout.startswith("program(%x: f32[batch, 4])\n")


def test_an_artifact_is_shown_without_its_model(run: Run, run_json: Callable[..., Any], artifact: Path) -> None:
    text = run("inspect", artifact).stdout
    assert "input x        float32[batch, 4]" in text
    assert "model.onnx" in text
    assert run_json("inspect", artifact)["target"] == "cpu"
    assert "compiled already" in run("inspect", artifact, "--target", "cpu", code=2).stderr


def test_what_was_decided_on_attention_is_shown(run: Run) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 256, 8)
    net = nn.Module()
    attend = F.scaled_dot_product_attention
    net.forward = lambda x: attend(x, x, x) + attend(x, x[:, :, :64], x[:, :, :64])  # type: ignore[method-assign]
    sparse = "...,sparse-attention{keys=32,max_error=none,at_least=128}"
    dsopt.compile(dsopt.capture(net, (x,)), "cpu", sparse).save("sparse")
    text = run("inspect", "sparse").stdout
    assert "sparse attention with 0." in text
    assert "it has 64 keys, and sparse attention is faster from 128 on" in text


def test_an_altered_artifact_is_refused(run: Run, artifact: Path) -> None:
    content = bytearray(artifact.read_bytes())
    content[len(content) // 2] ^= 1
    Path("altered.dsopt").write_bytes(content)
    assert "truncated or altered" in run("inspect", "altered.dsopt", code=2).stderr


def test_the_groups_of_channels_are_shown_with_what_they_carry(run: Run, run_json: Callable[..., Any]) -> None:
    found = run_json("inspect", TINY, "--groups")
    assert found["groups"] == [
        {"name": "first", "size": 8, "first": "0", "parameters": 8, "multiply_adds": 14, "layers": ["first", "second"], "pinned": ""},
        {"name": "second", "size": 3, "first": "0", "parameters": 9, "multiply_adds": 16, "layers": ["second"],
         "pinned": "the output: it is an output of the program"},
    ]  # fmt: skip
    text = run("inspect", TINY, "--groups").stdout
    assert text.splitlines()[1].split() == ["first", "8", "0", "8", "14", "first,", "second"]
    assert "it is an output of the program" in text


def test_heads_and_unknown_operators_are_named(run_json: Callable[..., Any], run: Run) -> None:
    groups = run_json("inspect", "models.gpt:gpt", "--groups")["groups"]
    assert [(each["name"], each["size"], each["first"]) for each in groups][:4] == [
        ("tokens", 64, "0"), ("layers.0.attention.qkv", 4, "0-15, 64-79, 128-143"), ("layers.0.attention.qkv", 16, "0, 16, 32, ..."),
        ("layers.0.attention.qkv", 16, "128, 144, 160, ..."),
    ]  # fmt: skip
    text = run("inspect", "tests.cli.models:unsupported", "--groups").stdout
    assert text == "No channels can be pruned.\n"

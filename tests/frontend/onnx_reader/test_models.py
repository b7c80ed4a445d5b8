"""Every network of models/, written by torch.onnx.export, reads back to the numbers of ONNX Runtime and of the network itself."""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import dsopt
from dsopt.frontend.onnx_reader import read_onnx
from dsopt.passes.base import PassManager, parse_pipeline
from models import MODELS, build
from tests.frontend.onnx_reader.oracle import assert_close, captured, expected, targets

TOLERANCE = 1e-5
SLOW = {"mobilenet_v2", "resnet18", "resnet50", "resnet152", "vww", "bert"}
STATEFUL = {"gpt_decode"}  # the older exporter does not write its caches
ids = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODELS if name != "resnet152"]


def exported(name: str, folder: Path, is_new: bool) -> tuple[Path, Any]:
    spec = build(name)
    path = folder / f"{name}.onnx"
    names = list(inspect.signature(spec.model.forward).parameters)[: len(spec.args) + len(spec.kwargs)]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")  # the exporter's own
        if is_new:
            axes = {key: dict.fromkeys(spec.dynamic.get(key, {}), torch.export.Dim.DYNAMIC) or None for key in names}
            torch.onnx.export(
                spec.model, spec.args, path, kwargs=dict(spec.kwargs), dynamo=True, external_data=False,
                dynamic_shapes=axes if spec.dynamic else None,
            )  # fmt: skip
        else:
            torch.onnx.export(
                spec.model, (*spec.args, dict(spec.kwargs)), path, dynamo=False, input_names=names,
                dynamic_axes={key: dict(axes) for key, axes in spec.dynamic.items()},
            )  # fmt: skip
    return path, spec


def check(path: Path, spec: Any) -> None:
    model = read_onnx(path)
    program = captured(model)
    feeds = [value.numpy() for value in model.example]
    results = [value.detach().numpy() for value in program.run(*model.example)]
    assert_close(results, expected(str(path), feeds), TOLERANCE)
    arguments = [*spec.args, *spec.kwargs.values()]
    with torch.no_grad():
        eager = pytree.tree_leaves(spec.model(*spec.args, **spec.kwargs))
        back = list(model.module(*arguments).values())
    assert_close([value.numpy() for value in back], [value.numpy() for value in eager], TOLERANCE)
    if spec.dynamic:
        assert program.dims


@pytest.mark.parametrize("name", [param for param in ids if param.values[0] not in STATEFUL])
def test_a_network_of_the_older_exporter_reads_back(name: str, tmp_path: Path) -> None:
    check(*exported(name, tmp_path, is_new=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ic", "ad", "gpt", "gpt_decode", "lstm", "gru", "unet", "digits"])
def test_a_network_of_the_newer_exporter_reads_back(name: str, tmp_path: Path) -> None:
    check(*exported(name, tmp_path, is_new=True))


def test_operators_come_back_whole(tmp_path: Path) -> None:
    """What was one layer of the network is one node of the program."""
    path, _ = exported("lstm", tmp_path, is_new=False)
    assert targets(captured(read_onnx(path))).count("lstm") == 2
    path, spec = exported("digits", tmp_path, is_new=False)
    program = captured(read_onnx(path))
    names = targets(program)
    assert "conv2d" in names and "linear" in names and "matmul" not in names
    stored, read = (
        {name for name, _ in module.named_parameters() if name.endswith("weight")}
        for module in (spec.model, read_onnx(path).module)
    )
    assert read and read <= stored  # batch norms were folded by the exporter


class Masked(torch.nn.Module):
    """Attention whose mask may hide every key from a query."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)


def test_attention_that_an_exporter_took_apart_is_fused_again(tmp_path: Path) -> None:
    q, k, v = (torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[0] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = ["q", "k", "v", "mask"]
        torch.onnx.export(Masked(), (q, k, v, mask), tmp_path / "m.onnx", dynamo=False, input_names=names)
    program = captured(read_onnx(tmp_path / "m.onnx"))
    passes = parse_pipeline("canonicalize,fold-constants,fuse-attention,remove-dead-code")
    fused, _ = PassManager(passes).run(program)
    assert "scaled_dot_product_attention" in targets(fused) and "softmax" not in targets(fused)
    torch.testing.assert_close(fused.run(q, k, v, mask)[0], Masked()(q, k, v, mask))
    torch.testing.assert_close(program.run(q, k, v, mask)[0], Masked()(q, k, v, mask))


@pytest.mark.parametrize("name", ["kws", "gpt", "gpt_decode", "lstm", "digits"])
def test_a_network_that_dsopt_wrote_reads_back(name: str, tmp_path: Path) -> None:
    spec = build(name)
    artifact = dsopt.compile(dsopt.capture(spec), "cpu")
    path = tmp_path / "model.onnx"
    path.write_bytes(artifact.files["model.onnx"])
    model = read_onnx(path)
    results = [value.detach().numpy() for value in captured(model).run(*model.example)]
    assert_close(results, expected(str(path), [value.numpy() for value in model.example]), TOLERANCE)

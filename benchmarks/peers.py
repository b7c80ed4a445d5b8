"""The peers: eager torch, and ONNX Runtime on what `torch.onnx.export` makes of the same module."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from dsopt import ModelSpec

# Buffers that a step of the model writes: its state. Running statistics of batch normalisation are not, in eval mode.
STATES: dict[str, Callable[[str], bool]] = {"gpt_decode": lambda name: name.startswith("caches.")}


def at_batch_one(spec: ModelSpec) -> ModelSpec:
    """Return the spec with the first row of its example alone."""
    names = list(inspect.signature(spec.model.forward).parameters)

    def first(name: str, value: Any) -> Any:
        for axis, dim in spec.dynamic.get(name, {}).items():
            value = value.narrow(axis, 0, 1).contiguous() if dim == "batch" else value
        return value

    args = tuple(first(name, value) for name, value in zip(names, spec.args, strict=False))
    return spec._replace(args=args, kwargs={name: first(name, value) for name, value in spec.kwargs.items()})


def flat(value: Any) -> list[np.ndarray]:
    """Return the tensors or arrays in a nested result, as arrays."""
    return [leaf.numpy() if isinstance(leaf, Tensor) else np.asarray(leaf) for leaf in pytree.tree_leaves(value)]


def eager(spec: ModelSpec) -> Callable[[], list[np.ndarray]]:
    """Return a call of the module on its example, with a state of its own."""
    model = copy.deepcopy(spec.model)

    def call() -> list[np.ndarray]:
        with torch.inference_mode():
            return flat(model(*spec.args, **spec.kwargs))

    return call


class WithState(nn.Module):
    """Take the state as inputs and return it, as ONNX needs it: `torch.onnx.export` drops what a module keeps."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, inputs: tuple[Tensor, ...], states: tuple[Tensor, ...]) -> tuple[Any, tuple[Tensor, ...]]:
        """Run one step on copies of the states, which the module then writes."""
        written = {name: state.clone() for name, state in zip(self.names, states, strict=True)}
        return torch.func.functional_call(self.model, written, inputs), tuple(written.values())


def export_onnx(spec: ModelSpec, path: Path, state_names: Sequence[str] = ()) -> None:
    """Write `torch.onnx.export`'s model, with the dims that vary; its log and warnings about itself are silenced."""
    model, args, kwargs = spec.model, spec.args, dict(spec.kwargs)
    dims: dict[str, Any] = {}
    shapes: dict[str, Any] | None = {
        name: {axis: dims.setdefault(dim, Dim(dim)) for axis, dim in spec.dynamic.get(name, {}).items()}
        for name in inspect.signature(model.forward).parameters
    }
    if state_names:
        buffers = dict(model.named_buffers())
        model, args = WithState(model, state_names), (spec.args, tuple(buffers[name] for name in state_names))
        kwargs, shapes = {}, None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, args, path, kwargs=kwargs, dynamo=True, dynamic_shapes=shapes if dims else None, verbose=False
        )


def onnx_runtime(path: Path, spec: ModelSpec, threads: int) -> Callable[[], list[np.ndarray]]:
    """Return a call of ONNX Runtime on the example; inputs beyond the example are states, zero at first and then fed back."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    values = flat((spec.args, dict(spec.kwargs)))
    names, states = [one.name for one in inputs[: len(values)]], inputs[len(values) :]
    feeds = dict(zip(names, values, strict=True))
    feeds |= {one.name: np.zeros(one.shape, np.float32) for one in states}
    outputs = len(session.get_outputs()) - len(states)
    if not states:
        return partial(session.run, None, feeds)

    def call() -> list[np.ndarray]:
        results: list[np.ndarray] = session.run(None, feeds)
        for one, value in zip(states, results[outputs:], strict=True):
            feeds[one.name] = value
        return results[:outputs]

    return call

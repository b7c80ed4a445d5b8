"""Torch-Pruning beside the prune pass: the same network, with bounds on memory and time, for some networks take all there is.

python -m benchmarks.prune.peer NAME SIDE       one network on images of a side, as a line of JSON
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import dsopt
from benchmarks.harness import Row
from benchmarks.prune.candidates import named

MEMORY_BYTES = 12 << 30
CPU_SECONDS = 300

CHANNELS = 0.3
"""The share of channels that Torch-Pruning is asked for: 0.3 of both sides of a layer is about half of its weights."""


def has_peer() -> bool:
    """Tell whether Torch-Pruning can be imported."""
    return importlib.util.find_spec("torch_pruning") is not None


def peer_columns(name: str, side: int) -> Row:
    """Return what Torch-Pruning does to a network in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "benchmarks.prune.peer", name, str(side)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        row: Row = json.loads(done.stdout.splitlines()[-1])
        return row
    why = {-9: f"more than {CPU_SECONDS} CPU seconds", -24: f"more than {CPU_SECONDS} CPU seconds"}.get(
        done.returncode, (done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:200]
    )
    return {"peer_parameters_removed": None, "peer_seconds": None, "peer_failure": why}


def prune(spec: dsopt.ModelSpec) -> Row:
    """Drive Torch-Pruning in the one way that its documentation gives for any network.

    The last layers, which give the outputs, are left out; heads are not told. peer_failure: what went wrong, up to a run of the result.
    """
    import torch_pruning  # no dependency: whoever wants the columns installs it

    model = spec.model.float().eval()
    inputs = tuple(_single(value) for value in spec.args)
    before = _count(model)
    start = time.process_time()
    failure = ""
    try:
        wanted = model(*inputs, **(spec.kwargs or {}))
        pruner = torch_pruning.pruner.BasePruner(
            model, inputs if len(inputs) > 1 else inputs[0], torch_pruning.importance.GroupMagnitudeImportance(p=1),
            pruning_ratio=CHANNELS, ignored_layers=_last_layers(model, wanted),
        )  # fmt: skip
        pruner.step()
        with torch.no_grad():
            got = model(*inputs, **(spec.kwargs or {}))
        if [each.shape for each in _tensors(got)] != [each.shape for each in _tensors(wanted)]:
            failure = "the pruned network gives outputs of another shape"
    except (Exception, MemoryError) as problem:  # a stranger's package: all that it raises is a finding
        failure = f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:200]}"
    seconds = time.process_time() - start
    removed = 1 - _count(model) / before
    if not failure and removed < CHANNELS / 10:
        failure = "next to nothing was removed"
    return {"peer_parameters_removed": None if failure else removed, "peer_seconds": seconds, "peer_failure": failure}


def _single(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, (tuple, list)) else []
    return [tensor for value in values for tensor in _tensors(value)]


def _last_layers(model: nn.Module, outputs: Any) -> list[nn.Module]:
    """Return the layers with as many outputs as the network has classes."""
    widths = {tensor.shape[1] for tensor in _tensors(outputs) if tensor.dim() > 1}
    return [
        layer for layer in model.modules()
        if (isinstance(layer, nn.Linear) and layer.out_features in widths)
        or (isinstance(layer, nn.Conv2d) and layer.out_channels in widths)
    ]  # fmt: skip


def main() -> None:
    """Bound this process, and print what the package did."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    print(json.dumps(prune(named(sys.argv[1]).build(int(sys.argv[2])))))


if __name__ == "__main__":
    main()

"""Compile for a GPU on a machine without one, for `benchmarks.cuda.run` to run on a machine with one and no compiler.

Writes into the folder OUT, for each example model at batch 1 and each family of --cases: NAME.dsopt, and NAME.npz with the
inputs and eager torch's outputs of three calls in sequence, state carried; and pack.json, which lists them. With --quantized
each model comes once more as NAME-int8, whose outputs must be the bits of the NumPy references of the integer operators. Small
ones come first; what does not fit the budget is left out and named. Exit status 1 if something could not be compiled.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dsopt
import models
from benchmarks.harness import Row, progress, report
from benchmarks.peers import at_batch_one, flat
from dsopt import DsoptError, ModelSpec, api

CALLS = 3
SCHEMA = 1
TOLERANCE = 1e-5
"""Of max|a - b| / max|b|: sums of float32 in another order than torch's."""

OLD_ARCH = "sm_75"
PTX_OF = ("kws", "kws-ptx")
"""A model that is packed once more for an old GPU, and its name then: a newer one must compile its PTX while loading."""

STEPS: dict[str, Callable[[int], tuple[Tensor, ...]]] = {
    "gpt_decode": lambda call: (torch.tensor([7 * call + 1]), torch.tensor([call])),
}
"""Arguments by call where an example in another order would not do: a token and its place, so that the cache is read."""

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


@dataclass(frozen=True)
class Subject:
    """What is packed. kind: "operators" or "model".  labels: what to call each output, where its own name says little.

    passes: in the place of the target's own, if they quantise: then the quantised program says what the outputs must be.
    """

    name: str
    kind: str
    model: nn.Module
    calls: tuple[Call, ...]
    arch: str
    tolerance: float = TOLERANCE
    labels: tuple[str, ...] = field(default=())
    passes: str | None = None

    @property
    def weights_bytes(self) -> int:
        """Return the bytes of all parameters and buffers."""
        return sum(value.numel() * value.element_size() for value in self.model.state_dict().values())


class Family(nn.Module):
    """All functions of a family over the same inputs, in one program."""

    def __init__(self, functions: Sequence[Callable[..., Tensor]]) -> None:
        super().__init__()
        self.functions = list(functions)
        self.kept = nn.ModuleList([function for function in functions if isinstance(function, nn.Module)])

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the result of each function."""
        return tuple(function(*inputs) for function in self.functions)


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    options.add_argument("out", type=Path, metavar="OUT", help="folder that is made, or is empty")
    options.add_argument("--arch", default="sm_90", help="of the GPU; sm_90 unless given")
    options.add_argument("--models", metavar="ID,...", help=f"of {', '.join(models.MODELS)}; all unless given")
    options.add_argument(
        "--cases", metavar="MODULE:NAME", action="append", default=[],
        help="a mapping of families of operators: inputs, cases, tolerance; may be given several times",
    )  # fmt: skip
    options.add_argument("--quantized", action="store_true", help="pack each model at 8 bits, too")
    options.add_argument("--budget-bytes", type=int, default=60_000_000, help="of all files; 60,000,000 unless given")
    chosen = options.parse_args(arguments)
    names = chosen.models.split(",") if chosen.models else list(models.MODELS)
    unknown = sorted(set(names) - set(models.MODELS))
    if unknown:
        options.error(f"no model {unknown[0]!r}; known: {', '.join(models.MODELS)}")
    if chosen.out.exists() and any(chosen.out.iterdir()):
        options.error(f"{chosen.out} is not empty")
    chosen.out.mkdir(parents=True, exist_ok=True)
    subjects = [of_model(name, chosen.arch) for name in names]
    subjects += [replace(one, name=PTX_OF[1], arch=OLD_ARCH) for one in subjects if one.name == PTX_OF[0]]
    if chosen.quantized:
        subjects += [quantized(one) for one in subjects if one.arch == chosen.arch]
    subjects += [one for place in chosen.cases for one in of_families(place, chosen.arch)]
    rows = pack(subjects, chosen.out, chosen.budget_bytes)
    report("cuda pack", [{key: value for key, value in row.items() if key != "labels"} for row in rows], as_json=False)
    return int(any(row["error"] for row in rows))


def of_model(name: str, arch: str) -> Subject:
    """Return an example model with a call for each step: its example at batch 1, then values of it in another order."""
    spec = models.build(name)
    if name in STEPS:
        calls: list[Call] = [(STEPS[name](call), {}) for call in range(CALLS)]
    else:
        ones = [at_batch_one(_reordered(spec, call)) for call in range(CALLS)]
        calls = [(one.args, dict(one.kwargs)) for one in ones]
    return Subject(name, "model", spec.model, tuple(calls), arch)


def quantized(subject: Subject) -> Subject:
    """Return a model with all that can be rounded rounded to 8 bits, calibrated on its own calls."""
    return replace(subject, name=f"{subject.name}-int8", tolerance=0.0, passes="...,quantize")


def of_families(place: str, arch: str) -> list[Subject]:
    """Return the families of a mapping: name -> object with `inputs`, `cases` {name: function} and `tolerance`."""
    module, _, attribute = place.partition(":")
    families: Mapping[str, Any] = getattr(import_module(module), attribute)
    subjects = []
    for name, family in families.items():
        calls: list[Call] = [(tuple(reordered(value, call) for value in family.inputs), {}) for call in range(CALLS)]
        model = Family(list(family.cases.values())).eval()
        labels = tuple(family.cases)
        subjects.append(Subject(f"op-{name}", "operators", model, tuple(calls), arch, family.tolerance, labels))
    return subjects


def reordered(value: Any, call: int) -> Any:
    """Return a tensor's values in an order that depends on the call: as they are in the first, whatever is no tensor always.

    So they stay in the domain of what takes them. Of whole numbers and booleans, rows move as they are: what was a row of
    indices without repetition remains one.
    """
    if not isinstance(value, Tensor) or value.dim() == 0 or call == 0:
        return value
    if not value.is_floating_point():
        return value.roll(call, 0)
    order = torch.randperm(value.numel(), generator=torch.Generator().manual_seed(call))
    return value.reshape(-1)[order].reshape(value.shape)


def _reordered(spec: ModelSpec, call: int) -> ModelSpec:
    kwargs = {name: reordered(value, call) for name, value in spec.kwargs.items()}
    return spec._replace(args=tuple(reordered(value, call) for value in spec.args), kwargs=kwargs)


def pack(subjects: Sequence[Subject], out: Path, budget_bytes: int) -> list[Row]:
    """Write what fits, in order of size, and pack.json. Return a row each, also of what is left out: bytes, and error."""
    rows: list[Row] = []
    left = budget_bytes
    for subject in sorted(subjects, key=lambda one: (one.weights_bytes, one.name)):
        row: Row = {"name": subject.name, "kind": subject.kind, "target": f"cuda:{subject.arch}"}
        row |= {"tolerance": subject.tolerance, "bytes": subject.weights_bytes, "packed": False, "error": ""}
        if subject.weights_bytes <= left:
            progress(f"{subject.name}: compiling for {subject.arch} and running on the host")
            try:
                row |= write(subject, out)
            except DsoptError as error:
                row["error"] = f"{error.code}: {error.what}"
        files = [out / f"{subject.name}.dsopt", out / f"{subject.name}.npz"]
        row["packed"] = files[0].exists() and row["bytes"] <= left
        if row["packed"]:
            left -= row["bytes"]
        else:
            progress(f"{subject.name}: left out, {row['error'] or f'{left:,} bytes are left'}")
            for path in files:
                path.unlink(missing_ok=True)
        rows.append(row)
    entries = [
        {key: row[key] for key in ("name", "kind", "tolerance", "labels", "bytes")} for row in rows if row["packed"]
    ]
    left_out = [{key: row[key] for key in ("name", "bytes", "error")} for row in rows if not row["packed"]]
    document = {"schema": SCHEMA, "calls": CALLS, "entries": entries, "left_out": left_out}
    (out / "pack.json").write_text(json.dumps(document, indent=1) + "\n")
    return rows


def write(subject: Subject, out: Path) -> Row:
    """Compile, save the artifact and the calls, and return their bytes and the label of each output. Raises DsoptError."""
    (args, kwargs), *_ = subject.calls
    eager = copy.deepcopy(subject.model)
    program = dsopt.capture(subject.model, args, kwargs=kwargs)
    inputs = [spec.name for spec in program.signature.inputs]
    outputs = [spec.name for spec in program.signature.outputs]
    feeds = [dict(zip(inputs, flat(call), strict=True)) for call in subject.calls]
    # The check of the build emulates the kernels on these very calls: what then differs on a GPU is the GPU's machine code.
    target = f"cuda:{subject.arch}"
    made = api.build(program, target, subject.passes, data=feeds, tolerance=subject.tolerance or TOLERANCE)
    arrays: dict[str, np.ndarray] = {}
    states = None
    for number, (args, kwargs) in enumerate(subject.calls):
        if subject.passes:
            given = tuple(torch.from_numpy(value) for value in feeds[number].values())
            values, states = made.program.run_stateful(given, states)
            results = [value.numpy() for value in values]
        else:
            with torch.inference_mode():
                results = flat(eager(*args, **kwargs))
        arrays |= {f"{number}/in/{name}": value for name, value in feeds[number].items()}
        # Copied at once: a result may be a view of a state that the next call writes.
        arrays |= {f"{number}/out/{name}": value.copy() for name, value in zip(outputs, results, strict=True)}
    made.artifact.save(out / f"{subject.name}.dsopt")
    assert not any(value.dtype.hasobject for value in arrays.values())  # np.savez would pickle it
    np.savez(out / f"{subject.name}.npz", **arrays)
    size_bytes = sum((out / f"{subject.name}{suffix}").stat().st_size for suffix in (".dsopt", ".npz"))
    labels = dict(zip(outputs, subject.labels or outputs, strict=True))
    return {"bytes": size_bytes, "labels": labels}


if __name__ == "__main__":
    sys.exit(main())

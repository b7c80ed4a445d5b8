"""What the prune pass does to whole architectures: how much goes, and whether what is left computes the same.

model               of models/, torchvision or timm, with random weights in float64
parameters, parameters_removed, multiply_adds_removed: before pruning; shares from 0 to 1
masked_difference   of the pruned program from the original with all removed channels set to zero (benchmarks/masked.py)
analysis_seconds, seconds: CPU time of axis inference and groups; of the whole pass with its verification

A second table has the CPU seconds that inference and groups take for deep networks, ResNet-152 and an encoder of 24 layers.
Models that do not get that far are listed as failures, each with the stage and the cause. --all takes every classifier of torchvision and
one model of each family (module) of timm. Install them without their dependencies, away from the environment, and name the folder:

    pip install --no-deps --target DIR torchvision timm huggingface_hub safetensors pyyaml pillow
    python -m benchmarks.prune --packages DIR --all --json
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import dsopt
from benchmarks.harness import Row, parser, progress, report
from benchmarks.masked import masked_difference, randomized
from dsopt.frontend.export import export_module
from dsopt.ir import Program, example_inputs
from dsopt.ir.multiply_adds import multiply_adds
from dsopt.passes.base import PassManager, parse_pipeline
from dsopt.passes.prune.channels import Channels
from dsopt.passes.prune.inference import AxisInference
from models.bert import bert
from models.resnet import resnet152

OWN = ("bert", "gpt", "gru", "lstm", "mobilenet_v2", "resnet18", "resnet50", "unet")
FAST = ("densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v3_small", "regnet_y_400mf", "shufflenet_v2_x1_0",
        "squeezenet1_1", "swin_t")  # fmt: skip
SMALL = (
    "test_",
    "atto",
    "femto",
    "pico",
    "nano",
    "xxs",
    "tiny",
    "_xs",
    "small",
    "_s0",
    "_b0",
    "mini",
    "18",
    "_s",
    "26",
    "50",
)
"""Parts of names of small models, the smallest first: timm's families differ in how they call theirs."""

SIDES = (96, 224)


@dataclass(frozen=True)
class Candidate:
    """A model by name; build makes it, with random weights, and its example inputs, for images of a side."""

    name: str
    build: Callable[[int], dsopt.ModelSpec]
    sides: tuple[int, ...] = SIDES


class Failed(Exception):  # noqa: N818  a finding, to be listed
    """Where a model got stuck."""


def main(arguments: list[str] | None = None) -> None:
    """Print one row a model, and the failures."""
    options = parser(__doc__)
    options.add_argument(
        "--all", action="store_true", help="all of torchvision's classifiers and one model a family of timm"
    )
    options.add_argument("--ratio", type=float, default=0.5, help="share of the parameters that is to go, 0.5")
    options.add_argument("--options", default="", help='further options of the pass, as "scope=local,align=16"')
    options.add_argument(
        "--models", default="", help="only these, separated by commas: NAME, torchvision/NAME or timm/NAME"
    )
    options.add_argument("--packages", type=Path, metavar="DIR", help="folder with torchvision and timm")
    options.add_argument(
        "--largest", type=float, default=100, help="million parameters above which a model is left out, 100"
    )
    chosen = options.parse_args(arguments)
    if chosen.packages is not None:
        sys.path.insert(0, str(chosen.packages))
    rows, failures = [], list[Row]()
    for candidate in candidates(chosen):
        progress(candidate.name)
        try:
            rows.append(measure(candidate, chosen))
        except Failed as failure:
            failures.append({"model": candidate.name, "cause": str(failure)})
    deep = (
        [] if chosen.models or chosen.quick else [analysed("resnet152", resnet152()), analysed("encoder24", encoder())]
    )
    report("prune", rows, as_json=chosen.json, analysis=deep, failures=failures)


def encoder() -> dsopt.ModelSpec:
    """Return a BERT of 24 layers, 768 wide."""
    return bert(layers=24, hidden=768, heads=12)


def analysed(name: str, spec: dsopt.ModelSpec) -> Row:
    """Return what inference and groups of a deep network take."""
    progress(name)
    program = dsopt.capture(spec)
    start = time.process_time()
    groups = Channels(AxisInference(program)).groups
    return {
        "network": name,
        "nodes": len(program.graph.nodes),
        "groups": len(groups),
        "cpu_seconds": time.process_time() - start,
    }


def candidates(chosen: argparse.Namespace) -> Iterator[Candidate]:
    """Yield the models that were asked for."""
    wanted = [name for name in chosen.models.split(",") if name]
    if wanted:
        yield from map(named, wanted)
        return
    yield from map(own, OWN[:2] if chosen.quick else OWN)
    vision = torchvision_package()
    if vision is not None and not chosen.quick:
        names = vision.models.list_models(module=vision.models) if chosen.all else FAST
        yield from (named(f"torchvision/{name}") for name in names)
    timm = timm_package() if chosen.all else None
    if timm is not None:
        yield from (named(f"timm/{smallest(timm.list_models(module=family))}") for family in timm.list_modules())


def named(name: str) -> Candidate:
    """Return a model by the name that the table has for it."""
    source, _, model = name.rpartition("/")
    if not source:
        return own(model)
    package = torchvision_package() if source == "torchvision" else timm_package()
    if package is None:
        raise SystemExit(f"{source} cannot be imported; see --help for how to install it, and --packages")
    if source == "torchvision":
        return Candidate(
            name, lambda side: dsopt.ModelSpec(_torchvision_model(package, model), (torch.rand(2, 3, side, side),))
        )
    return Candidate(name, lambda side: _timm_model(package, model, side))


def own(name: str) -> Candidate:
    """Return a network of models/."""

    def build(side: int) -> dsopt.ModelSpec:
        for path in sorted((Path(__file__).parent.parent / "models").glob("*.py")):
            module = importlib.import_module(f"models.{path.stem}")
            if callable(getattr(module, name, None)) and getattr(module, name).__module__ == module.__name__:
                spec: dsopt.ModelSpec = getattr(module, name)()
                return spec
        raise Failed(f"models/ has no {name}")

    return Candidate(name, build, SIDES[:1])


def torchvision_package() -> ModuleType | None:
    """Import torchvision, or return None. Its compiled operators, which classifiers do not use, may be missing."""
    if "torchvision" not in sys.modules:
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                _LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as problem:
        progress(f"torchvision: {problem}")
        return None


_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


def timm_package() -> ModuleType | None:
    """Import timm, which needs torchvision, or return None."""
    torchvision_package()
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as problem:
        progress(f"timm: {problem}")
        return None


def smallest(names: list[str]) -> str:
    """Return the model of a family whose name says most clearly that it is small."""
    return min(
        names,
        key=lambda name: (
            [part in name for part in SMALL].index(True) if any(part in name for part in SMALL) else 99,
            name,
        ),
    )


def _torchvision_model(package: ModuleType, name: str) -> nn.Module:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = package.models.get_model(name, weights=None, **options)
    return model


def _timm_model(package: ModuleType, name: str, side: int) -> dsopt.ModelSpec:
    model: nn.Module = package.create_model(name)
    size = package.data.resolve_data_config({}, model=model)["input_size"]
    return dsopt.ModelSpec(model, (torch.rand(2, size[0], *(size[1:] if side != SIDES[0] else (side, side))),))


def measure(candidate: Candidate, chosen: argparse.Namespace) -> Row:
    """Capture, prune and judge a model. Raises Failed."""
    program = _captured(candidate, chosen.largest)
    start = time.process_time()
    Channels(AxisInference(program))
    analysed = time.process_time() - start
    pipeline = f"prune{{ratio={chosen.ratio}{',' if chosen.options else ''}{chosen.options}}}"
    with _stage("prune"):
        result, _ = PassManager(parse_pipeline(pipeline)).run(program)
    seconds = time.process_time() - start - analysed
    with _stage("judge"):
        difference = masked_difference(program, result, example_inputs(program, seed=1))
    before, after = parameters(program), parameters(result)
    products = [sum(multiply_adds(node) for node in each.graph.nodes) for each in (program, result)]
    return {
        "model": candidate.name, "parameters": before, "parameters_removed": 1 - after / before,
        "multiply_adds_removed": 1 - products[1] / products[0], "masked_difference": difference,
        "analysis_seconds": analysed, "seconds": seconds,
    }  # fmt: skip


def _captured(candidate: Candidate, largest: float) -> Program:
    """Capture a model on the smallest images that it takes."""
    for side in candidate.sides:
        with _stage("build"):
            spec = candidate.build(side)
        count = sum(parameter.numel() for parameter in spec.model.parameters())
        if count > largest * 1e6:
            raise Failed(f"build: {count:,} parameters are more than --largest {largest:g} million")
        try:
            with _stage("export"):
                keywords = {name: _double(value) for name, value in (spec.kwargs or {}).items()}
                return export_module(randomized(spec.model), tuple(map(_double, spec.args)), keywords)
        except Failed:
            if side == candidate.sides[-1]:
                raise
    raise AssertionError("a candidate has a side")


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


class _stage:  # noqa: N801  read as a word: with _stage("prune")
    """Turn whatever goes wrong in a stage of a stranger's model into a Failed with its cause."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.quiet = warnings.catch_warnings()

    def __enter__(self) -> None:
        self.quiet.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: object) -> None:
        self.quiet.__exit__(kind, problem, trace)  # type: ignore[arg-type]
        if isinstance(problem, Exception) and not isinstance(problem, Failed):
            lines = str(problem).splitlines()
            raise Failed(f"{self.name}: {type(problem).__name__}: {' '.join(lines[:3])[:400]}") from problem


def parameters(program: Program) -> int:
    """Return the number of parameters."""
    names = {spec.name for spec in program.signature.weights if spec.kind == "parameter"}
    return sum(value.numel() for name, value in program.weights.items() if name in names)


if __name__ == "__main__":
    main()

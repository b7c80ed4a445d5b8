"""The networks that are pruned: those of models/, torchvision's classifiers, and one of each family of timm."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

import dsopt
from benchmarks.harness import progress
from benchmarks.prune.transformer_nets import ARCHITECTURES, transformer_spec, transformers_package

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
    if chosen.all and transformers_package() is not None:
        yield from (named(f"transformers/{name}") for name in ARCHITECTURES)
    timm = timm_package() if chosen.all else None
    if timm is not None:
        yield from (named(f"timm/{smallest(timm.list_models(module=family))}") for family in timm.list_modules())


def named(name: str) -> Candidate:
    """Return a model by the name that the table has for it."""
    source, _, model = name.rpartition("/")
    if not source:
        return own(model)
    packages = {"torchvision": torchvision_package, "timm": timm_package, "transformers": transformers_package}
    package = packages[source]() if source in packages else None
    if package is None:
        raise SystemExit(f"{source} cannot be imported; see --help for how to install it, and --packages")
    if source == "torchvision":
        return Candidate(
            name, lambda side: dsopt.ModelSpec(_torchvision_model(package, model), (torch.rand(2, 3, side, side),))
        )
    if source == "transformers":
        return Candidate(name, lambda side: transformer_spec(package, model), SIDES[:1])
    return Candidate(name, lambda side: _timm_model(package, model, side))


def own(name: str) -> Candidate:
    """Return a network of models/."""

    def build(side: int) -> dsopt.ModelSpec:
        for path in sorted((Path(__file__).parents[2] / "models").glob("*.py")):
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

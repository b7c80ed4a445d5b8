"""What long runs came to: seeds, the accuracy of each, and how they were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import results_store
from benchmarks.distill.nets import Scale
from benchmarks.distill.stages import TEACHING, Recipe
from benchmarks.harness import Row


def keep(
    rows: Sequence[Row], accuracies: Mapping[str, Sequence[float]], seeds: Sequence[int], scale: Scale, recipe: Recipe
) -> Path:
    """Write a run."""
    return results_store.keep(
        "distill",
        {
            "seeds": list(seeds), "scale": asdict(scale), "recipe": asdict(recipe), "teaching": TEACHING,
            "accuracies": {name: list(each) for name, each in accuracies.items()}, "rows": list(rows),
        },
    )  # fmt: skip

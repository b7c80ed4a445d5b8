"""What long runs came to, kept as JSON beside the benchmarks: machine, versions, seeds, and the accuracy of each seed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.distill.nets import Scale
from benchmarks.distill.stages import TEACHING, Recipe
from benchmarks.harness import Row, machine

FOLDER = Path(__file__).parents[1] / "results"
_PREFIX = "distill-"


def keep(
    rows: Sequence[Row], accuracies: Mapping[str, Sequence[float]], seeds: Sequence[int], scale: Scale, recipe: Recipe
) -> Path:
    """Write a run; the name has its time, so that the newest sorts last."""
    document = {
        "schema": 1, "name": "distill", "machine": machine(), "seeds": list(seeds), "scale": asdict(scale),
        "recipe": asdict(recipe), "teaching": TEACHING, "accuracies": {name: list(each) for name, each in accuracies.items()},
        "rows": list(rows),
    }  # fmt: skip
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{_PREFIX}{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def newest() -> dict[str, Any]:
    """Return the newest run. Raises FileNotFoundError if there is none."""
    found = sorted(FOLDER.glob(f"{_PREFIX}*.json"))
    if not found:
        raise FileNotFoundError("no run of benchmarks.distill has been kept: start one with --assets DIR")
    document: dict[str, Any] = json.loads(found[-1].read_text(encoding="utf-8"))
    return document

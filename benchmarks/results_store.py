"""What long runs came to, kept as JSON beside the benchmarks, with the machine and the versions."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, machine

FOLDER = Path(__file__).parent / "results"


def keep(name: str, content: Mapping[str, Any]) -> Path:
    """Write a run of a benchmark; the name of the file has its time, so that the newest sorts last."""
    document = {"schema": 1, "name": name, "machine": machine(), **content}
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def newest_path(name: str) -> Path:
    """Return where the newest run of a benchmark is. Raises FileNotFoundError if there is none."""
    found = sorted(FOLDER.glob(f"{name}-*.json"))
    if not found:
        raise FileNotFoundError(f"no run of benchmarks.{name} has been kept: start one with --assets DIR")
    return found[-1]


def newest(name: str) -> dict[str, Any]:
    """Return the newest run of a benchmark. Raises FileNotFoundError if there is none."""
    document: dict[str, Any] = json.loads(newest_path(name).read_text(encoding="utf-8"))
    return document


def origin(document: Mapping[str, Any]) -> Row:
    """Return where a kept run comes from: the machine and the versions that it was trained with."""
    machine = document["machine"]
    return {
        "trained on": machine["processor"],
        **{name: machine[name] for name in ("dsopt", "torch") if name in machine},
    }

"""The whole road in one command: train on handwritten digits, compile for the CPU and a microcontroller, run, compare.

    python -m models.demo [--out build/demo] [--samples 360]

Prints one table and writes the same numbers to report.json in the output folder, beside the artifacts. The chip's numbers
are those of an emulated Cortex-M4 that runs the linked image.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dsopt
import dsopt.runtime
from models.digits import Digits, DigitsNet, load_digits, spec, train

CHIP = "mcu:cortex-m4"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo and print its table."""
    parser = argparse.ArgumentParser(
        prog="python -m models.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder for artifacts and report")
    parser.add_argument("--samples", type=int, default=360, help="held-out digits to run through both")
    options = parser.parse_args(arguments)
    if not 1 <= options.samples <= 1000:
        parser.error(f"--samples is {options.samples} and must be 1 to 1000")
    start = time.perf_counter()
    report = run(options.out, options.samples)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    _say(f"{time.perf_counter() - start:.1f} s in all; the same numbers are in {options.out / 'report.json'}")


def run(out: Path, samples: int) -> dict[str, Any]:
    """Train, compile for both targets, run `samples` held-out digits through each, and return what the table shows."""
    data = load_digits(held_out=samples)
    _say(f"training on {len(data.y_train)} digits")
    model = train(data)
    with torch.inference_mode():
        eager = model(data.x_test).numpy()
    rows = [_compare("eager torch", eager, eager, data)]
    program = dsopt.capture(spec(model))
    for target, folder, captured in (
        ("cpu", out / "cpu", program),
        (CHIP, out / "mcu-cortex-m4", program.specialize({"batch": 1})),
    ):
        _say(f"compiling for {target}")
        artifact = dsopt.compile(captured, target)
        artifact.save(folder)
        _say(f"running {samples} held-out digits on {'the emulated core' if target == CHIP else 'the CPU'}")
        row = _compare(target, predict(folder, data, one_by_one=target == CHIP), eager, data)
        rows.append(row | _figures(artifact, folder))
    return {"schema": 1, "samples": samples, "parameters": _parameters(model), "rows": rows}


def predict(artifact: Path, data: Digits, *, one_by_one: bool) -> np.ndarray:
    """Return the (N, 10) logits that an artifact gives for the held-out digits; a chip takes one image at a time."""
    images = data.x_test.numpy()
    with dsopt.runtime.load(artifact) as session:
        if not one_by_one:
            return np.asarray(session.run(images))
        calls = [{session.inputs[0].name: images[row : row + 1]} for row in range(len(images))]
        return np.concatenate([result[session.outputs[0].name] for result in session.run_many(calls)])


def _compare(name: str, logits: np.ndarray, eager: np.ndarray, data: Digits) -> dict[str, Any]:
    classes = logits.argmax(1)
    return {
        "runs_on": name,
        "accuracy_ratio": float(np.mean(classes == data.y_test.numpy())),
        "same_class_as_eager": int(np.sum(classes == eager.argmax(1))),
        "relative_error": float(np.abs(logits - eager).max() / np.abs(eager).max()),
    }


def _figures(artifact: dsopt.Artifact, folder: Path) -> dict[str, Any]:
    """Return the measured bytes and instructions of a chip's image; nothing but the folder for the CPU."""
    if artifact.manifest["target"] == "cpu":
        return {"folder": str(folder)}
    memory = artifact.manifest["memory"]
    return {key: memory[key] for key in ("ram_bytes", "flash_bytes", "stack_bytes", "instructions")} | {
        "folder": str(folder)
    }


def _parameters(model: DigitsNet) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


COLUMNS = {
    "runs_on": "",
    "accuracy_ratio": "accuracy",
    "same_class_as_eager": "same class as eager",
    "relative_error": "largest error",
    "ram_bytes": "RAM, bytes",
    "flash_bytes": "flash, bytes",
    "stack_bytes": "of RAM: stack, bytes",
    "instructions": "instructions an image",
    "folder": "code",
}


def show(report: dict[str, Any]) -> None:
    """Print the table: a number a line, a column for each place where the network ran."""
    rows = report["rows"]
    lines = [[title, *(_cell(key, row.get(key), report["samples"]) for row in rows)] for key, title in COLUMNS.items()]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"{report['samples']} held-out digits")
        for column, title in enumerate(lines[0]):
            table.add_column(title, justify="right" if column else "left", overflow="fold")
        for line in lines[1:]:
            table.add_row(*line)
        Console().print(table)
        return
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    print(f"{report['samples']} held-out digits")
    for first, *cells in lines:
        aligned = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print("  ".join([first.ljust(widths[0]), *aligned]).rstrip())


def _cell(key: str, value: object, samples: int) -> str:
    if value is None:
        return "-"
    if key == "accuracy_ratio":
        return f"{float(str(value)):.1%}"
    if key == "same_class_as_eager":
        return f"{value} of {samples}"
    if key == "relative_error":
        return f"{float(str(value)):.1e}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

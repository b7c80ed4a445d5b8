"""A 24-layer encoder for sentiment, made small: distilled to 6 layers, pruned, and rounded to 8 bits.

A row for each stage, mean over the seeds, on the sentences of dev.tsv:

teacher                   the encoder, trained on labels: first 6 layers, of which each is then split into 4
student                   every 4th of its layers, taught by it: labels, logits, hidden values, attention
pruned                    the student made narrower, and taught again
int8                      the student in 8 bits, trained with quantisation
final                     the pruned student in 8 bits, trained with quantisation
student without teacher   those first 6 layers, trained on labels for as long as the student was taught
1 layer, bag of words     what little can do
int8 alone, pruned alone  the same done to the teacher itself, one seed

size_bytes, latency_seconds   of the cpu artifact; one sentence of 64 ids, 1 thread, all stages interleaved
size_ratio, latency_ratio     the teacher's over its own
accuracy, spread              percent of the artifact's answers that are right, and its standard deviation over the seeds
accuracy_drop                 points below the teacher of the same seed, the mean

A run keeps its JSON in benchmarks/results/, with machine, versions and seeds; --report shows the newest, with sizes and times measured
anew on programs of the same form. A seed takes about an hour and a half on one CPU core. Each is kept when it is done, and a later
call adds those that are missing to the newest run of the same recipe; --work DIR keeps what is trained of a seed.

DIR of --assets holds data/sst2/train.tsv and dev.tsv (see models/sentiment.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import results_store
from benchmarks.distill import results
from benchmarks.distill.measure import accuracy, size_and_latency, untrained
from benchmarks.distill.nets import FULL, QUICK, Scale, read_sentences
from benchmarks.distill.stages import FINAL, FULL_RECIPE, INT8, QUICK_RECIPE, TEACHER, Run
from benchmarks.harness import Row, parser, progress, report

_SECONDS = {True: 2.0, False: 30.0}
"""Of timing, in a quick run and in one that counts."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=5, help="trainings of all stages")
    options.add_argument("--device", default="cpu", help="where to train, as torch names it")
    options.add_argument(
        "--work", type=Path, metavar="DIR", help="keep programs and checkpoints there, and go on from them"
    )
    options.add_argument(
        "--report", action="store_true", help="show the newest run, with sizes and times measured anew"
    )
    chosen = options.parse_args(arguments)
    if chosen.seeds < 1:
        options.error(f"--seeds is {chosen.seeds} and must be at least 1")
    torch.set_num_threads(1)
    if chosen.report:
        try:
            document = results_store.newest("distill")
        except FileNotFoundError as problem:
            options.error(str(problem))
        scale = Scale(**document["scale"])
        measured = size_and_latency(untrained(scale), scale, _SECONDS[chosen.quick])
        report(
            "distill",
            _rows(document["accuracies"], measured),
            as_json=chosen.json,
            runs=[results_store.origin(document)],
        )
        return
    if chosen.assets is None:
        options.error("training needs --assets DIR; --report shows what was trained before")
    scale, recipe = (QUICK, QUICK_RECIPE) if chosen.quick else (FULL, FULL_RECIPE)
    data = read_sentences(chosen.assets, scale)
    done = results.Kept() if chosen.quick else results.kept_run(scale, recipe)
    rows: list[Row] = []
    for seed in range(1 if chosen.quick else chosen.seeds):
        if seed in done.seeds:
            progress(f"seed {seed}: kept")
            continue
        trained = Run(data, scale, recipe, seed, chosen.device, chosen.work).programs()
        progress(f"seed {seed}: judging")
        done = done.with_seed(seed, {name: accuracy(program, data) for name, program in trained.items()})
        measured = size_and_latency({**untrained(scale), **trained}, scale, _SECONDS[chosen.quick])
        rows = _rows(done.accuracies, measured)
        if not chosen.quick:
            done = results.keep(done, rows, scale, recipe)
            progress(f"kept as {done.path}")
    if not rows:
        rows = _rows(done.accuracies, size_and_latency(untrained(scale), scale, _SECONDS[chosen.quick]))
    report("distill", rows, as_json=chosen.json)


def _rows(accuracies: Mapping[str, Sequence[float]], measured: Mapping[str, Row]) -> list[Row]:
    teacher = np.asarray(accuracies[TEACHER])
    rows: list[Row] = []
    for name, values in accuracies.items():
        row: Row = {
            "stage": name,
            **measured[name],
            "accuracy": float(np.mean(values)),
            "spread": float(np.std(values)),
        }
        if name in (INT8, FINAL):
            row["accuracy_drop"] = float(np.mean(teacher - np.asarray(values)))
        rows.append({**row, "seeds": len(values)})
    return rows


if __name__ == "__main__":
    main()

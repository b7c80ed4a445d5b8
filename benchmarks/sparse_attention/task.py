"""What an encoder of sentences says of real texts when all of its attention is sparse, without any training.

Pieces of 512 ids: the nine plays of tinyshakespeare, and the sentences of SST-2, those of a class (negative, positive) one behind the
other. A piece begins 480 ids behind the one before it, so that there are more than 1,000.

own text           of all dense embeddings, that of the same piece is the nearest to the sparse one: an index built before still serves
nearest neighbour  the nearest other piece is the same one as with dense attention. The hardest: many pieces are about as near;
                   `lost`, how much less near, in cosine by dense attention, the piece is that sparse attention finds
clear neighbour    the same, of those pieces whose second nearest is less near by more than 0.02
neighbour's label  that piece is of the same class as the one that dense attention finds
label              the class whose other pieces have the nearest mean embedding is the same one as with dense attention. 11 labels: the
                   plays and the two classes; 64 labels: plays cut into 62 stretches instead, most of which nobody could tell apart

But for the first, embeddings of the sparse network are compared with each other, and those of the dense network with each other.
`method`: "schedule", the same keys for all heads; "pass", what the pass makes by its defaults, calibrated on a few pieces that are not
judged; "taught", the same after 120 steps of distillation by the dense encoder on those pieces. All are cpu artifacts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsopt
from benchmarks.harness import Row, progress
from benchmarks.sparse_attention import minilm
from benchmarks.sparse_attention.budget import attention_share, keys_of
from benchmarks.sparse_attention.taught import Pieces, teach
from dsopt import PassContext, PassManager, Program, parse_pipeline
from dsopt.runtime import Session

LENGTH, STEP = 512, 480
STRETCHES = 62
TILE = 16
HEAD = minilm.WIDTH // minilm.HEADS
BATCH = 8
CALIBRATION, EPOCHS = 24, 5
"""Pieces that are not judged, and how often they are learnt from."""
CLEAR = 0.02
KEEP_EVERY = 4
"""Batches after which what is done is written."""

Encoder = Callable[[Tensor], Tensor]
"""Pieces (B, S) int64 to unit vectors (B, 384)."""

FIRST_WORDS = (
    "Before we proceed any further", "Now is the winter of our discontent", "Old John of Gaunt", "Gregory, o' my word",
    "I wonder how the king escaped", "If you shall chance, Camillo", "Of government the properties", "I'll pheeze you", "Boatswain!",
)  # fmt: skip
"""Of each play, which the file does not mark: Coriolanus, Richard III, Richard II, Romeo and Juliet, Henry VI part 3, The Winter's Tale,
Measure for Measure, The Taming of the Shrew, The Tempest."""


@dataclass(frozen=True)
class Texts:
    """pieces: (N, S) int64 ids.  labels, stretches: (N,) int64, the 11 and the 64 classes."""

    pieces: Tensor
    labels: Tensor
    stretches: Tensor

    def first(self, count: int) -> Texts:
        """Return `count` pieces of the whole, drawn once and for all, so that fewer are a part of more."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(0))[:count]
        return self.at(order)

    def at(self, order: Tensor) -> Texts:
        """Return some pieces."""
        return Texts(self.pieces[order], self.labels[order], self.stretches[order])

    def held_out(self) -> tuple[Texts, Tensor]:
        """Return what is judged, and the pieces (CALIBRATION, S) that are not: they are calibrated on."""
        order = torch.arange(len(self.labels))
        return self.at(order[CALIBRATION:]), self.pieces[:CALIBRATION]


def read_texts(assets: Path) -> Texts:
    """Read data/tinyshakespeare.txt and data/sst2/{train,dev,test}.tsv of the assets. Raises FileNotFoundError."""
    data = assets / "data"
    text = (data / "tinyshakespeare.txt").read_text(encoding="utf-8")
    parts = [cut(minilm.encode(text))]
    labels, stretches = [plays(text, len(parts[0]))], [torch.arange(len(parts[0])) * STRETCHES // len(parts[0])]
    lines = [
        line
        for name in ("train", "dev", "test")
        for line in (data / "sst2" / f"{name}.tsv").read_text("utf-8").splitlines()
    ]
    for label in "01":
        sentences = " ".join(text for text, _, found in (line.rpartition("\t") for line in lines) if found == label)
        parts.append(cut(minilm.encode(sentences)))
        labels.append(torch.full((len(parts[-1]),), len(FIRST_WORDS) + int(label)))
        stretches.append(torch.full((len(parts[-1]),), STRETCHES + int(label)))
    return Texts(torch.cat(parts), torch.cat(labels), torch.cat(stretches))


def plays(text: str, pieces: int) -> Tensor:
    """Return the play (pieces,) int64 that the middle of each piece belongs to. Raises ValueError if a play is not found."""
    firsts = torch.tensor([len(minilm.encode(text[: text.index(words)])) for words in FIRST_WORDS])
    middles = torch.arange(pieces) * STEP + LENGTH // 2
    return (torch.searchsorted(firsts, middles, right=True) - 1).clamp(min=0)


def cut(ids: Sequence[int]) -> Tensor:
    """Return all whole pieces of a text, each with its marks of start and end."""
    inner = LENGTH - 2
    firsts = range(0, len(ids) - inner + 1, STEP)
    return torch.tensor([[minilm.START, *ids[first : first + inner], minilm.END] for first in firsts])


def embeddings(pieces: Tensor, encoders: Sequence[Encoder], kept: Path | None) -> Tensor:
    """Return the unit vectors (encoders, N, 384) of pieces (N, S) by each encoder.

    kept: file to go on from, and to write what is done; it must be of the same pieces and encoders.
    """
    done = torch.zeros(len(encoders), 0, minilm.WIDTH)
    if kept is not None and kept.exists():
        done = torch.from_numpy(np.load(kept))[:, : len(pieces)]
    for number, first in enumerate(range(done.shape[1], len(pieces), BATCH)):
        progress(f"task: piece {first} of {len(pieces)}")
        batch = pieces[first : first + BATCH]
        done = torch.cat([done, torch.stack([each(batch) for each in encoders])], 1)
        if kept is not None and ((number + 1) % KEEP_EVERY == 0 or done.shape[1] == len(pieces)):
            _keep(kept, done)
    return done


@contextmanager
def encoders(
    program: Program, calibration: Tensor, epochs: int
) -> Iterator[tuple[dict[str, Encoder], dict[str, float]]]:
    """Give the cpu artifacts of an encoder of (1, S) ids by method, and the share of dense attention's work that each does."""
    keys = keys_of(LENGTH, TILE, HEAD, HEAD)
    spared = _made(program, calibration, f"keys={keys},max_error=none,")
    passed = _made(program, calibration, "")
    progress("task: teaching")
    with torch.no_grad():
        wanted = torch.cat([program.run(each[None])[0] for each in calibration])
    taught = teach(passed, program, Pieces(calibration, wanted), epochs)
    methods = {"dense": program, "schedule": spared, "pass": passed, "taught": taught}
    with ExitStack() as opened:
        found: dict[str, Encoder] = {}
        for method, each in methods.items():
            progress(f"task: compiling {method}")
            artifact = dsopt.compile(each, "cpu", tolerance=1e-2)
            found[method] = partial(
                _encoded, opened.enter_context(Session(artifact, threads=1)), each.signature.inputs[0].name
            )
        yield found, {method: attention_share(each) for method, each in methods.items() if method != "dense"}


def _made(program: Program, calibration: Tensor, options: str) -> Program:
    name = program.signature.inputs[0].name
    pipeline = parse_pipeline(f"fuse-attention,sparse-attention{{{options}tile={TILE},at_least=0}}")
    return PassManager(pipeline).run(program, PassContext(calibration=[{name: each[None]} for each in calibration]))[0]


def _encoded(session: Session, name: str, pieces: Tensor) -> Tensor:
    return torch.cat(
        [torch.from_numpy(next(iter(session.run_flat({name: each[None].numpy()}).values()))) for each in pieces]
    )


def _keep(path: Path, done: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, done.numpy())
    temporary.replace(path)


def task_rows(texts: Texts, load: Callable[[int], nn.Module], folder: Path | None, epochs: int = EPOCHS) -> list[Row]:
    """Return a row for each method and task. folder: where embeddings are kept.  epochs: of teaching."""
    texts, calibration = texts.held_out()
    program = dsopt.capture(load(LENGTH), (texts.pieces[:1],))
    with encoders(program, calibration, epochs) as (found, shares):
        embedded = embeddings(texts.pieces, list(found.values()), folder and folder / f"embeddings-{TILE}-{epochs}.npy")
    dense, *others = embedded
    return [
        {**row, "method": method, "share": shares[method]}
        for method, sparse in zip(shares, others, strict=True)
        for row in judge(dense, sparse, (texts.labels, texts.stretches))
    ]


def judge(dense: Tensor, sparse: Tensor, labels: Sequence[Tensor]) -> list[Row]:
    """Compare what embeddings (N, 384) of unit length say. labels: (N,) int64, one for each way to classify.

    low, high: 95% interval of the agreement.  cosine: of an embedding with its dense one, the mean.  For labels: accuracy of both;
    kept: the part of dense attention's accuracy that is left, kept_low, kept_high: its 95% interval.
    """
    near = neighbour(dense), neighbour(sparse)
    rows = [
        _row("own text", torch.arange(len(dense)), (sparse @ dense.T).argmax(1)),
        *_neighbours(dense, *near),
    ]
    for right in labels:
        for name, (wanted, given) in {
            "neighbour's label": (right[near[0]], right[near[1]]),
            "label": (label(dense, right), label(sparse, right)),
        }.items():
            rows.append(
                {**_row(name, wanted, given), "labels": int(right.max()) + 1, **_kept(wanted == right, given == right)}
            )
    cosine = float((dense * sparse).sum(1).mean())
    return [{**row, "cosine": cosine} for row in rows]


def _neighbours(dense: Tensor, wanted: Tensor, given: Tensor) -> list[Row]:
    nearness = dense @ dense.T
    first, second = nearness.fill_diagonal_(-torch.inf).topk(2, 1).values.T
    lost = first - nearness.gather(1, given[:, None])[:, 0]
    is_clear = first - second > CLEAR
    rows = [{**_row("nearest neighbour", wanted, given), "lost": float(lost.mean())}]
    return rows + ([_row("clear neighbour", wanted[is_clear], given[is_clear])] if bool(is_clear.any()) else [])


def _kept(dense: Tensor, sparse: Tensor) -> dict[str, float]:
    """Compare which answers (N,) bool are right. The interval: of 2,000 bootstrap samples (Efron & Tibshirani 1993)."""
    exact, ours = dense.double().numpy(), sparse.double().numpy()
    drawn = np.random.default_rng(0).integers(0, len(exact), (2000, len(exact)))
    parts = ours[drawn].sum(1) / np.maximum(exact[drawn].sum(1), 1)
    low, high = np.percentile(parts, (2.5, 97.5))
    return {
        "dense_accuracy": float(exact.mean()), "accuracy": float(ours.mean()),
        "kept": float(ours.sum() / max(exact.sum(), 1)), "kept_low": float(low), "kept_high": float(high),
    }  # fmt: skip


def _row(name: str, wanted: Tensor, given: Tensor) -> Row:
    count, same = len(wanted), int((wanted == given).sum())
    low, high = wilson(same, count)
    return {
        "measure": "task", "task": name, "texts": count, "n": LENGTH, "tile": TILE, "agreement": same / count, "low": low, "high": high,
    }  # fmt: skip


def neighbour(embedding: Tensor) -> Tensor:
    """Return the number (N,) of the nearest other row."""
    return (embedding @ embedding.T).fill_diagonal_(-torch.inf).argmax(1)


def label(embedding: Tensor, labels: Tensor) -> Tensor:
    """Return the class (N,) whose rows have the nearest mean direction, the row itself left out of its class."""
    member = F.one_hot(labels).to(embedding.dtype)
    sums = (
        member.T @ embedding - member[:, :, None] * embedding[:, None]
    )  # (N, classes, 384), a row's own class without the row
    rest = member.sum(0) - member
    scores = (F.normalize(sums, dim=-1) * embedding[:, None]).sum(-1)
    return scores.masked_fill(rest == 0, -torch.inf).argmax(1)


def wilson(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95% interval of a share by Wilson's score (Wilson 1927)."""
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)

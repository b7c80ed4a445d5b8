"""The perplexity of a small GPT on Shakespeare, dense and with sparse attention, training-free.

A GPT over characters (models/gpt.py: 4 layers, width 128, 1024 places) is trained on the first nine tenths of tinyshakespeare.txt; the
guard of sparse-attention is calibrated on a part of these, and both programs are judged on the last tenth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import dsopt
from benchmarks.harness import Row, progress
from benchmarks.kept import kept
from benchmarks.sparse_attention.budget import attention_share
from dsopt import ModelSpec, PassContext, PassManager, Program, parse_pipeline
from dsopt.train import distill
from models.gpt import VOCABULARY, Gpt
from models.seeded import seeded

RATIO = 0.15


@dataclass(frozen=True)
class Size:
    """What is trained, on how many batches of four texts, and judged on how many texts."""

    context: int
    width: int
    layers: int
    steps: int
    judged: int


FULL = Size(1024, 128, 4, 400, 24)
QUICK = Size(256, 32, 2, 20, 4)


class Texts:
    """Batches ((4, T) ids, (4, T) ids of what follows) of a text, drawn from torch's generator."""

    def __init__(self, ids: Tensor, length: int, steps: int) -> None:
        self._ids, self._length, self._steps = ids, length, steps

    def __len__(self) -> int:
        """Return the number of batches."""
        return self._steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield them."""
        for _ in range(self._steps):
            starts = torch.randint(0, len(self._ids) - self._length - 1, (4,)).tolist()
            rows = torch.stack([self._ids[start : start + self._length + 1] for start in starts])
            yield rows[:, :-1], rows[:, 1:]


def characters(path: Path) -> Tensor:
    """Return a text as ids: printable ASCII from 1 on, everything else 0."""
    return torch.tensor([code - 31 if 32 <= code < 127 else 0 for code in path.read_bytes()])


def rows(assets: Path, work: Path | None = None, quick: bool = False) -> list[Row]:
    """Train, make attention sparse, and judge both. work: keeps the trained program."""
    size = QUICK if quick else FULL
    ids = characters(assets / "data" / "tinyshakespeare.txt")
    first, last = ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :]
    progress("training a GPT")
    dense = kept(
        work,
        f"gpt-{size.context}-{size.width}-{size.layers}-{size.steps}",
        lambda checkpoint: _trained(size, first, checkpoint),
    )
    texts = torch.stack([last[n * size.context : (n + 1) * size.context + 1] for n in range(size.judged)])
    found = [perplexity(dense, texts)]
    shares = [1.0]
    for tile in (16, 64):
        progress(f"making it sparse with tiles of {tile}")
        calibration = [{"tokens": first[n * 5000 : n * 5000 + size.context][None]} for n in range(4)]
        least = "" if size.context >= FULL.context else ",at_least=0"
        pipeline = parse_pipeline(f"fuse-attention,sparse-attention{{ratio={RATIO},tile={tile}{least}}}")
        sparse, records = PassManager(pipeline).run(dense, PassContext(calibration=calibration))
        for note in (*records[-1].notes, *records[-1].skips):
            progress(note)
        found.append(perplexity(sparse, texts))
        shares.append(attention_share(sparse))
    return [
        {
            "measure": "task", "task": "perplexity", "n": size.context, "tile": tile, "share": share, "perplexity": value,
            "dense": found[0], "change": value / found[0] - 1,
        }
        for tile, share, value in zip((16, 64), shares[1:], found[1:], strict=True)
    ]  # fmt: skip


def _trained(size: Size, ids: Tensor, checkpoint: Path | None) -> Program:
    net = seeded(lambda: Gpt(VOCABULARY, size.context, size.width, 4, size.layers), 0)
    program = dsopt.capture(
        ModelSpec(net, (torch.ones(2, size.context, dtype=torch.int64),), dynamic={"tokens": {0: "batch"}})
    )

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())

    return distill(
        program, None, Texts(ids, size.context, size.steps), loss, epochs=1, learning_rate=3e-3, weight_decay=0.1, labels=1.0, logits=0.0,
        checkpoint=checkpoint, checkpoint_steps=20,
    ).program  # fmt: skip


def perplexity(program: Program, texts: Tensor) -> float:
    """Return exp of the mean loss of each next character. texts: (N, T + 1) ids."""
    total = 0.0
    for text in texts:
        logits = program.run(text[None, :-1])[0][0]
        total += float(F.cross_entropy(logits, text[1:]))
    return math.exp(total / len(texts))

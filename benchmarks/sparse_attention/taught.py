"""A few hundred steps of distillation: the sparse encoder learns from the dense one, on text that it is not judged on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsopt
from benchmarks.harness import Row, progress
from dsopt import PassContext, PassManager, Program, parse_pipeline
from dsopt.train import distill

RATE = 2e-5
"""With 6e-5, 40 steps bring half as much."""
TILE = 16


class Pieces:
    """Batches of one piece of text with the dense encoder's embedding of it: ((1, S) ids, (1, width))."""

    def __init__(self, ids: Tensor, wanted: Tensor) -> None:
        self._ids, self._wanted = ids, wanted

    def __len__(self) -> int:
        """Return the number of pieces."""
        return len(self._ids)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all, in an order drawn from torch's generator."""
        for number in torch.randperm(len(self._ids)).tolist():
            yield self._ids[number][None], self._wanted[number][None]


def taught_rows(
    train: Tensor, judged: Tensor, load: Callable[[int], nn.Module], tiles: Sequence[int] = (TILE,)
) -> list[Row]:
    """Return a row for each tile. train, judged: (N, S) ids; each piece of `train` is one step.  load: gives an encoder of (B, S) ids."""
    net = load(train.shape[1])
    dense = dsopt.capture(net, (train[:1],))
    name = dense.signature.inputs[0].name
    with torch.no_grad():
        targets = torch.cat([net(each[None]) for each in train])
        wanted = torch.cat([net(each[None]) for each in judged])
    rows = []
    for tile in tiles:
        context = PassContext(calibration=[{name: each[None]} for each in train[:2]])
        pipeline = parse_pipeline(f"fuse-attention,sparse-attention{{tile={tile},at_least=0}}")
        sparse, _ = PassManager(pipeline).run(dense, context)
        before = _cosine(sparse, judged, wanted)
        progress(f"distilling {len(train)} steps, from a cosine of {before:.4f}")
        taught = teach(sparse, dense, Pieces(train, targets), 1)
        rows.append({"measure": "task", "task": "distilled", "n": train.shape[1], "tile": tile, "steps": len(train),
                     "cosine_before": before, "cosine": _cosine(taught, judged, wanted)})  # fmt: skip
    return rows


def teach(sparse: Program, dense: Program, pieces: Pieces, epochs: int) -> Program:
    """Return the sparse program after a step for each piece and epoch: its embeddings, and what its layers hold, come nearer to dense."""
    return distill(
        sparse, dense, pieces, lambda have, want: 1 - F.cosine_similarity(have, want).mean(),
        epochs=epochs, learning_rate=RATE, labels=1.0, logits=0.0, hidden=0.1,
    ).program  # fmt: skip


def _cosine(program: Program, judged: Tensor, wanted: Tensor) -> float:
    have = torch.cat([program.run(each[None])[0] for each in judged])
    return float(F.cosine_similarity(have, wanted).mean())

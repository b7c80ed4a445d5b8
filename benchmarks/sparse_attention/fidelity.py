"""How close sparse attention is to dense attention on the queries, keys and values that an encoder makes of real text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Row, progress
from benchmarks.sparse_attention import minilm
from benchmarks.sparse_attention.budget import SHARE, WINDOW, keys_of
from benchmarks.sparse_attention.rivals import RIVALS, attention
from dsopt.ops.sparse_attention import Work, sparse_attention

LENGTHS = (512, 1024)
TILES = (16, 64)
SHARES = (SHARE, 0.25)

Inputs = tuple[Tensor, Tensor, Tensor]
"""query, key and value (B, H, S, D) of one layer."""


@dataclass
class Recorder:
    """Dense attention that remembers what it was given."""

    seen: list[Inputs] = field(default_factory=list)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attend."""
        self.seen.append((query, key, value))
        return F.scaled_dot_product_attention(query, key, value, mask)


@dataclass
class Sparse:
    """Sparse attention of the schedule, that counts its work. share: of dense attention's, `SHARE` for the schedule itself."""

    tile: int
    share: float = SHARE
    work: Work = field(default_factory=Work)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attend."""
        budget, unit = self.share, "share"
        if self.share == SHARE:
            budget, unit = keys_of(key.shape[2], self.tile, query.shape[3], value.shape[3]), "keys"
        return sparse_attention(query, key, value, mask, "none", None, [budget], unit, self.tile, WINDOW, self.work)


def layers_of(net: minilm.MiniLm, pieces: Tensor) -> list[Inputs]:
    """Return what attention is given in each layer. pieces: (B, S) int64."""
    recorder = Recorder()
    minilm.attend_with(net, recorder)
    with torch.inference_mode():
        net(pieces)
    return recorder.seen


@dataclass
class Deviation:
    """Sums over pieces of text, one of each kind for every layer."""

    squares: list[float]
    reference: list[float]
    cosines: list[float]
    rows: int = 0

    @classmethod
    def of(cls, layers: int) -> Deviation:
        """Begin with nothing."""
        return cls([0.0] * layers, [0.0] * layers, [0.0] * layers)

    def add(self, layer: int, found: Tensor, wanted: Tensor) -> None:
        """Compare outputs (B, H, T, E) of a layer."""
        self.squares[layer] += float((found - wanted).double().square().sum())
        self.reference[layer] += float(wanted.double().square().sum())
        self.cosines[layer] += float(F.cosine_similarity(found.double(), wanted.double(), dim=-1).sum())
        self.rows += wanted[..., 0].numel() if layer == 0 else 0

    def columns(self) -> Row:
        """Return mean cosine of the output vectors, mean relative L2 error of the layers, and that of the worst layer."""
        errors = [(square / whole) ** 0.5 for square, whole in zip(self.squares, self.reference, strict=True)]
        return {
            "cosine": sum(self.cosines) / len(errors) / self.rows,
            "relative_l2": sum(errors) / len(errors),
            "worst": max(errors),
        }


def fidelity_rows(
    texts: Sequence[int], pieces: int, load: Callable[[int], minilm.MiniLm], lengths: Sequence[int] = LENGTHS
) -> list[Row]:
    """Return a row for each length, share, method and tile. texts: ids.  pieces: of 1,024 ids, and twice as many of 512."""
    rows: list[Row] = []
    for n in lengths:
        count = max(1, pieces * max(lengths) // n)
        net = load(n)
        step = max(1, (len(texts) // (n - 2) - 1) // count)
        found: dict[tuple[str, int, float], _Sum] = {}
        for number in range(count):
            progress(f"fidelity: {n} keys, piece {number + 1} of {count}")
            layers = layers_of(net, minilm.chunks(texts, n, 1, number * step))
            compare(layers, n, found)
        rows += [each.row(n, *key) for key, each in found.items()]
    return rows


@dataclass
class _Sum:
    deviation: Deviation
    work: Work = field(default_factory=Work)
    attended: float = 0.0

    def row(self, n: int, method: str, tile: int, budget: float) -> Row:
        share = self.work.share if self.work.dense else self.attended
        return {
            "measure": "fidelity", "n": n, "tile": tile, "budget": budget, "share": share, "method": method, **self.deviation.columns(),
        }  # fmt: skip


def compare(layers: Sequence[Inputs], n: int, found: dict[tuple[str, int, float], _Sum]) -> None:
    """Add one piece of text to what was found of each method, tile and share."""
    for number, (query, key, value) in enumerate(layers):
        wanted = F.scaled_dot_product_attention(query, key, value)
        for share in SHARES:
            for tile in TILES:
                own = found.setdefault(("dsopt", tile, share), _Sum(Deviation.of(len(layers))))
                own.deviation.add(number, Sparse(tile, share, own.work)(query, key, value, None), wanted)
        for name, tile, share, output in _rivals(query, key, value):
            other = found.setdefault((name, tile, share), _Sum(Deviation.of(len(layers)), attended=int(share * n) / n))
            other.deviation.add(number, output, wanted)


def _rivals(query: Tensor, key: Tensor, value: Tensor) -> Iterator[tuple[str, int, float, Tensor]]:
    for share in SHARES:
        for name, (tile, score) in RIVALS.items():
            yield name, tile, share, attention(query, key, value, score, max(1, int(share * key.shape[2])))

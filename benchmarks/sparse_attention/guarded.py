"""What the guard of the pass sparse-attention decides on one text, judged on another.

The encoder is compiled through the pass as a user would: calibrated on sentences of SST-2, each head gets its part of 15 % of dense work,
or stays dense where its error is above the bound; embeddings of Shakespeare are then compared with those of the dense encoder.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import dsopt
from benchmarks.harness import Row, progress
from benchmarks.sparse_attention.budget import attention_share
from dsopt import PassContext, PassManager, Program, parse_pipeline

BOUNDS = (None, 0.4, 0.3)
"""Largest relative error of a head; None: no guard, and the same budget for all heads."""


def guard_rows(
    calibration: Tensor, judged: Tensor, load: Callable[[int], nn.Module], tiles: tuple[int, ...] = (16, 64)
) -> list[Row]:
    """Return a row for each tile and bound. calibration, judged: (N, S) ids of two texts.  load: gives an encoder of (B, S) ids."""
    net = load(calibration.shape[1])
    program = dsopt.capture(net, (calibration[:1],))
    with torch.no_grad():
        wanted = torch.cat([net(each[None]) for each in judged])
    rows = []
    for tile in tiles:
        for bound in BOUNDS:
            progress(f"guard: tiles of {tile}, bound {bound}")
            rows.append({"measure": "guard", "n": calibration.shape[1], "tile": tile, "max_error": bound,
                         **_judged(program, calibration, judged, wanted, tile, bound)})  # fmt: skip
    return rows


def _judged(
    program: Program, calibration: Tensor, judged: Tensor, wanted: Tensor, tile: int, bound: float | None
) -> Row:
    name = program.signature.inputs[0].name
    context = PassContext(calibration=[{name: each[None]} for each in calibration])
    text = "none" if bound is None else str(bound)
    pipeline = parse_pipeline(f"fuse-attention,sparse-attention{{tile={tile},max_error={text},at_least=0}}")
    sparse, records = PassManager(pipeline).run(program, context)
    budgets = [node.args[6] for node in sparse.graph.nodes if "sparse_attention" in str(node.target)]
    layers = len(budgets) + len(records[-1].skips)
    heads = max((len(each) for each in budgets), default=1)
    dense = sum(budget < 0 for each in budgets for budget in each) / heads + len(records[-1].skips)
    have = torch.cat([sparse.run(each[None])[0] for each in judged])
    cosine = torch.nn.functional.cosine_similarity(have, wanted, dim=-1)
    return {
        "share": attention_share(sparse),
        "heads_dense": dense / layers,
        "cosine": float(cosine.mean()),
        "lowest_cosine": float(cosine.min()),
    }

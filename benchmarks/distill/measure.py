"""Bytes, times and accuracy of the stages, as the cpu artifacts that are made of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

import dsopt
from benchmarks.distill.nets import Scale, bag_of_words, encoder
from benchmarks.distill.stages import (
    BAG,
    FINAL,
    INT8,
    INT8_ALONE,
    ONE_LAYER,
    PRUNED,
    PRUNED_ALONE,
    STUDENT,
    TEACHER,
    WITHOUT_TEACHER,
    pruned,
)
from benchmarks.harness import Row, interleave, paired_ratio, progress
from dsopt import PassContext, PassManager, Program, parse_pipeline
from dsopt.runtime import Session
from dsopt.train import student
from models.sentiment import FIRST_WORD, PADDING, VOCABULARY, Sst2

_ROUNDING = "canonicalize,fuse-attention,quantize"
_TOLERANCE = 0.05
"""Of the check of each artifact against its program: rounding moves logits near 0 a lot, and accuracy is judged anyway."""


def untrained(scale: Scale) -> dict[str, Program]:
    """Return programs of the same operators and sizes as those of a run, without training: all that bytes and times depend on."""
    teacher = encoder(scale, scale.layers, 0)
    small = student(teacher, keep_every=scale.every)
    narrow = pruned(small, scale)
    return {
        TEACHER: teacher, STUDENT: small, PRUNED: narrow, INT8: _rounded(small, scale), FINAL: _rounded(narrow, scale),
        WITHOUT_TEACHER: small, ONE_LAYER: encoder(scale, 1, 0), BAG: bag_of_words(scale),
        INT8_ALONE: _rounded(teacher, scale), PRUNED_ALONE: pruned(teacher, scale),
    }  # fmt: skip


def _rounded(program: Program, scale: Scale) -> Program:
    context = PassContext(calibration=({"ids": torch.from_numpy(_sentences(scale, 16))},))
    return PassManager(parse_pipeline(_ROUNDING)).run(program, context)[0]


def _sentences(scale: Scale, count: int) -> np.ndarray:
    """Return random ids, three quarters of each sentence words."""
    ids = np.random.default_rng(0).integers(FIRST_WORD, VOCABULARY, (count, scale.length))
    ids[:, 3 * scale.length // 4 :] = PADDING
    return ids


def size_and_latency(programs: Mapping[str, Program], scale: Scale, seconds: float) -> dict[str, Row]:
    """Return the bytes of each artifact and the median seconds of a sentence, all interleaved on one thread.

    int8 and final have their ratios to the teacher, too, times as the median over rounds.
    """
    progress("measuring size and latency")
    dims = {"batch": 1, "length": scale.length}
    artifacts = {
        name: dsopt.compile(program.specialize(dims), "cpu", tolerance=_TOLERANCE) for name, program in programs.items()
    }
    sizes = {name: sum(map(len, artifact.files.values())) for name, artifact in artifacts.items()}
    sessions = {name: Session(artifact, threads=1) for name, artifact in artifacts.items()}
    feed = {"ids": _sentences(scale, 1)}
    calls = {name: (lambda session=session: session.run_flat(feed)) for name, session in sessions.items()}
    times = interleave(calls, budget_seconds=seconds)
    for session in sessions.values():
        session.close()
    rows: dict[str, Row] = {
        name: {"size_bytes": sizes[name], "latency_seconds": float(np.median(times[name]))} for name in programs
    }
    for name in (INT8, FINAL):
        rows[name]["size_ratio"] = sizes[TEACHER] / sizes[name]
        rows[name]["latency_ratio"] = paired_ratio([times[TEACHER]], [times[name]]).median
    return rows


def accuracy(program: Program, data: Sst2) -> float:
    """Return the percent of held-out sentences that the program's cpu artifact classifies as their labels say."""
    ids = data.x_test.numpy()
    artifact = dsopt.compile(program, "cpu", data=[{"ids": ids[:32]}], tolerance=_TOLERANCE)
    with Session(artifact, threads=1) as session:
        guesses = [session.run(ids[start : start + 64]).argmax(1) for start in range(0, len(ids), 64)]
    return float(100 * np.mean(np.concatenate(guesses) == data.y_test.numpy()))

"""Networks for text and for streams, quantised, on the cores that they are for: a BERT encoder and an LSTM that keeps its state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dsopt
from dsopt import api
from dsopt.runtime import Session
from dsopt.runtime.simulated import open_executor
from models.bert import bert
from models.rnn import FEATURES, lstm_stream

pytestmark = pytest.mark.mcu

TOKENS, VOCABULARY = 64, 1000


def test_a_bert_encoder_of_two_layers_runs_on_a_cortex_m7_in_64_kb() -> None:
    spec = bert(layers=2, hidden=64, heads=4, vocabulary=VOCABULARY, sequence=TOKENS)
    program = dsopt.capture(spec).specialize({"batch": 1, "sequence": TOKENS})
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(10):
        mask = np.arange(TOKENS)[None] < rng.integers(TOKENS // 4, TOKENS + 1)
        samples.append({"ids": rng.integers(0, VOCABULARY, (1, TOKENS)), "mask": mask.astype(np.int64)})
    built = api.build(
        program, dsopt.McuTarget("cortex-m7", ram_bytes=64 << 10), "...,quantize", samples[:8], name="bert"
    )
    executor = open_executor(built.artifact)
    for feed in samples[8:]:
        got = executor.run(feed)
        wanted = built.program.run(*(torch.from_numpy(feed[spec.name]) for spec in program.signature.inputs))
        for output, want in zip(program.signature.outputs, wanted, strict=True):
            np.testing.assert_array_equal(got[output.name], want.numpy())
    rows = built.artifact.manifest["layers"]
    assert [row["function"] for row in rows if row["is_float"]] == []
    assert sum(row["kernel"].startswith(("matrix", "dense")) for row in rows) >= 2 * 6 + 1  # all linear layers


def test_an_lstm_of_two_layers_streams_on_a_cortex_m0plus_in_4_kb() -> None:
    program = dsopt.capture(lstm_stream())
    steps = [
        {"x": step[None, None]} for step in np.random.default_rng(0).standard_normal((40, FEATURES)).astype(np.float32)
    ]
    target = dsopt.McuTarget("cortex-m0plus", ram_bytes=4 << 10)
    built = api.build(program, target, "...,quantize", steps[20:], name="lstm")
    states, floats, worst = None, None, 0.0
    with Session(built.artifact) as session:
        for step in steps[:20]:
            x = torch.from_numpy(step["x"])
            (got,) = session.run_flat(step).values()
            (want,), states = built.program.run_stateful((x,), states)
            np.testing.assert_array_equal(got, want.numpy())
            (exact,), floats = program.run_stateful((x,), floats)
            worst = max(worst, float((want - exact).abs().max()))
    assert worst < 0.01  # of logits of about 0.1: what rounding does to the state does not grow
    assert states is not None
    assert float(states["hidden"].abs().max()) > 0.05  # it is not the first one any more

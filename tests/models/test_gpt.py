"""Reading a text at once and token by token, with the past kept as state, give the same predictions."""

from __future__ import annotations

import torch

import dsopt
from models.gpt import CONTEXT, gpt, gpt_decode


def test_decoding_step_by_step_equals_reading_the_whole_text() -> None:
    whole, step = gpt(), gpt_decode().model
    tokens = torch.cat([whole.args[0][:1]] * 4, dim=1)
    assert tokens.shape[1] == CONTEXT
    with torch.inference_mode():
        expected = whole.model(tokens)[0]
        rows = [step(tokens[:, index], torch.tensor([index])) for index in range(CONTEXT)]
    torch.testing.assert_close(torch.cat(rows), expected, rtol=1e-5, atol=1e-5)


def test_position_zero_starts_a_new_text() -> None:
    step = gpt_decode().model
    with torch.inference_mode():
        first = step(torch.tensor([5]), torch.tensor([0]))
        step(torch.tensor([7]), torch.tensor([1]))
        assert torch.equal(step(torch.tensor([5]), torch.tensor([0])), first)


def test_a_token_sees_nothing_after_it() -> None:
    spec = gpt()
    (tokens,) = spec.args
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 96
    with torch.inference_mode():
        before, after = spec.model(tokens), spec.model(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_the_cache_is_the_state_of_the_captured_program() -> None:
    program = dsopt.capture(gpt_decode())
    assert [state.name for state in program.states] == [
        "caches.0.keys",
        "caches.0.values",
        "caches.1.keys",
        "caches.1.values",
    ]

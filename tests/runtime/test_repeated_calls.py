"""A call like the one before is not checked twice, a call unlike it is, and many calls may be given at once; NumPy is the judge."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dsopt
from dsopt.errors import InputError
from dsopt.runtime import Session, load


class Difference(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a - 2 * b


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    program = dsopt.capture(Difference(), (torch.ones(2, 3), torch.ones(2, 3)), {"a": {0: "batch"}, "b": {0: "batch"}})
    with load(dsopt.compile(program, "cpu")) as opened:
        yield opened


A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.ones((2, 3), np.float32)


def test_names_count_and_not_the_order_in_which_they_were_given(session: Session) -> None:
    for _ in range(2):
        assert np.array_equal(session.run(A, B), A - 2)
        assert np.array_equal(session.run(b=B, a=A), A - 2)
        assert np.array_equal(session.run(A, b=B), A - 2)
        assert np.array_equal(session.run(B, A), 1 - 2 * A)
        assert np.array_equal(session.run_flat({"b": B, "a": A})["output"], A - 2)


def test_another_size_after_an_accepted_one_is_run_at_that_size(session: Session) -> None:
    session.run(A, B)
    assert session.run(A[:1], B[:1]).shape == (1, 3)
    assert session.run(A, B).shape == (2, 3)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (A.astype(np.float64), B),
        (A, B[:1]),
        (A.reshape(3, 2), B.reshape(3, 2)),
        (A[0], B[0]),
        (np.ma.masked_array(A), B),
    ],
)
def test_what_does_not_fit_is_refused_after_a_call_that_did(session: Session, a: np.ndarray, b: np.ndarray) -> None:
    session.run(A, B)
    with pytest.raises(InputError, match="DS0811"):
        session.run(a, b)
    assert np.array_equal(session.run(A, B), A - 2)


@pytest.mark.parametrize("named", [{}, {"b": B, "c": B}, {"a": A, "b": B}])
def test_missing_unknown_and_doubled_names_are_refused_after_a_call_that_fitted(
    session: Session, named: dict[str, np.ndarray]
) -> None:
    session.run(A, B)
    session.run(A, b=B)
    with pytest.raises(InputError, match="DS0811"):
        session.run(A, **named)


def test_arrays_of_another_layout_are_read_as_what_they_mean(session: Session) -> None:
    session.run(A, B)
    turned = np.asfortranarray(A)
    assert turned.strides != A.strides
    assert np.array_equal(session.run(turned, B), A - 2)
    assert np.array_equal(session.run(A.astype(">f4"), B), A - 2)
    assert np.array_equal(session.run(torch.from_numpy(A), B), A - 2)


class RunningSum(nn.Module):
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x)
        return self.total * 1


def test_many_calls_at_once_equal_one_after_the_other(session: Session) -> None:
    calls = [{"a": A * factor, "b": B} for factor in (1, 2, 3)]
    results = session.run_many(calls)
    assert len(results) == 3
    for factor, result in zip((1, 2, 3), results, strict=True):
        assert np.array_equal(result["output"], A * factor - 2)
    assert session.run_many([]) == []


def test_many_calls_at_once_carry_state_from_one_to_the_next() -> None:
    with load(dsopt.compile(dsopt.capture(RunningSum(), (torch.ones(3),)), "cpu")) as session:
        results = session.run_many([{"x": np.full(3, value, np.float32)} for value in (1, 10, 100)])
        assert [float(result["output"][0]) for result in results] == [1, 11, 111]
        session.reset()
        assert session.run(np.zeros(3, np.float32))[0] == 0


def test_nothing_runs_if_one_of_many_calls_does_not_fit(session: Session) -> None:
    with pytest.raises(InputError, match="DS0811"):
        session.run_many([{"a": A, "b": B}, {"a": A}])


@pytest.mark.mcu
def test_an_emulated_core_takes_many_calls_in_one_start(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang")
    pytest.importorskip("unicorn")
    from dsopt.runtime import simulated

    starts: list[int] = []
    simulate = simulated.simulate

    def count(*args: Any, **kwargs: Any) -> Any:
        starts.append(len(kwargs["runs"]))
        return simulate(*args, **kwargs)

    monkeypatch.setattr(simulated, "simulate", count)
    program = dsopt.capture(Difference(), (torch.ones(2, 3), torch.ones(2, 3)))
    with load(dsopt.compile(program, "mcu:cortex-m4")) as session:
        starts.clear()
        results = session.run_many([{"a": A * factor, "b": B} for factor in (1, 2, 3)])
    assert starts == [3]
    for factor, result in zip((1, 2, 3), results, strict=True):
        assert np.array_equal(result["output"], A * factor - 2)

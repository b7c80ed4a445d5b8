"""A session takes what the model took, refuses everything else with all reasons at once, and keeps the state."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dsopt
from dsopt.artifact import Artifact
from dsopt.errors import ArtifactError, InputError, ToolchainError, UsageError
from dsopt.ir import Program
from dsopt.runtime import Session, TensorSpec, load
from dsopt.runtime.session import EXECUTORS
from tests.artifact.samples import manifest
from tests.conftest import nested_example
from tests.runtime.doubling import npy

F32 = np.float32


@pytest.fixture(autouse=True)
def _doubling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real" not in request.node.name:
        monkeypatch.setitem(EXECUTORS, "cpu", "tests.runtime.doubling")


def opened(**changes: Any) -> Session:
    return load(Artifact(manifest(**changes), {}))


def fitting(batch: int = 2) -> dict[str, Any]:
    return {"x": np.ones((batch, 3), F32), "y": np.zeros(2 * batch, np.int64)}


def problems(session: Session, *inputs: Any, **named: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        session.run(*inputs, **named)
    assert caught.value.code == "DS0811"
    return caught.value.where.split("\n")


# ---- calls ----


def test_inputs_go_by_position_and_by_name() -> None:
    session = opened()
    x, y = fitting().values()
    for result in (session.run(x, y=y), session.run(x=x, y=y), session.run_flat({"x": x, "y": y})["output"]):
        np.testing.assert_array_equal(result, x * 2)


def test_specs_say_what_is_taken_and_given() -> None:
    session = opened()
    assert session.inputs == (TensorSpec("x", ("batch", 3), "float32"), TensorSpec("y", ("2*batch",), "int64"))
    assert session.outputs == (TensorSpec("output", ("batch",), "float32"),)
    assert "x: float32[batch, 3]" in repr(session)


def test_every_difference_is_reported_at_once() -> None:
    found = problems(opened(), np.ones((2, 4)), z=1)
    assert found == [
        "z: there is no such input; known: x, y",
        "x: is float64, must be float32; convert it with .astype(np.float32)",
        "y: missing; it is int64[2*batch]",
        "x: axis 1 is 4, must be 3",
    ]


def test_sizes_must_agree_between_inputs() -> None:
    feeds = {**fitting(), "y": np.zeros(6, np.int64)}
    assert problems(opened(), **feeds) == [
        "y: axis 0 is 6, must be 2*batch = 4, because batch is 2 (axis 0 of x)",
    ]


@pytest.mark.parametrize("batch", [0, 9])
def test_sizes_stay_in_their_range(batch: int) -> None:
    assert problems(opened(), **fitting(batch)) == [f"batch is {batch} (axis 0 of x), must be 1 to 8"]


def test_a_dim_that_only_stands_in_a_product_is_solved() -> None:
    changes: dict[str, Any] = {
        "inputs": [{"name": "x", "shape": ["2*n"], "dtype": "float32"}],
        "dims": {"n": {"min": 2, "max": None}},
        "input_tree": {"tuple": [{"tuple": ["x"]}, {"dict": []}]},
    }
    session = opened(**changes)
    session.run(np.ones(4, F32))
    assert problems(session, np.ones(2, F32)) == ["n is 1 (axis 0 of x), must be at least 2"]


def test_rank_and_count_are_checked() -> None:
    session = opened()
    x, y = fitting().values()
    assert problems(session, x[0], y=y) == ["x: has the shape [3], must be [batch, 3]"]
    assert problems(session, x, y, 5)[0] == "3 positional inputs were given, 1 are taken (x)"
    assert "x: given twice, by position and by name" in problems(session, x, x=x, y=y)


def test_a_session_is_usable_after_a_bad_input() -> None:
    session = opened()
    problems(session, 5)
    np.testing.assert_array_equal(session.run(**fitting()), np.full((2, 3), 2, F32))


def test_a_call_checked_before_is_still_checked_for_another_shape() -> None:
    session = opened()
    for _ in range(3):
        session.run(**fitting())
        problems(session, x=np.ones((2, 4), F32), y=np.zeros(4, np.int64))
        problems(session, x=np.ones((2, 3), F32), y=np.zeros(5, np.int64))


# ---- values ----


@pytest.mark.parametrize(
    "value",
    [
        np.arange(12, dtype=F32).reshape(3, 4).T[1:3],
        np.arange(6, dtype=F32)[::-1].reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=F32).reshape(2, 3)),
        np.arange(6).reshape(2, 3).astype(">f4"),
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6.0).reshape(3, 2).T,
        torch.nn.Parameter(torch.arange(6.0).reshape(2, 3), requires_grad=False),
    ],
)
def test_arrays_of_any_layout_and_tensors_are_taken(value: Any) -> None:
    session = opened()
    wanted = torch.as_tensor(value.astype(F32).copy() if isinstance(value, np.ndarray) else value).numpy() * 2
    np.testing.assert_array_equal(session.run(value, y=np.zeros(4, np.int64)), wanted)
    executor: Any = session._executor
    assert executor.seen["x"].flags.c_contiguous
    assert executor.seen["x"].dtype.isnative


def test_objects_with_array_are_taken() -> None:
    class Image:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.ones((2, 3), F32)

    np.testing.assert_array_equal(opened().run(Image(), y=np.zeros(4, np.int64)), np.full((2, 3), 2, F32))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2, 3, dtype=torch.bfloat16), "x: is torch.bfloat16, which NumPy does not have; convert it, as with x.float()"),
        (torch.ones(2, 3, requires_grad=True), "x: requires a gradient; give x.detach()"),
        ([[1.0, 2.0, 3.0]], "x: is a list; give an array, as np.asarray(value, np.float32) makes one"),
        ("abc", "x: is a str; give an array"),
        (None, "x: is a NoneType; give an array"),
        (np.ma.masked_array(np.ones((2, 3), F32)), "x: is a masked array; fill it with .filled(...)"),
        (1.5, "x: has the shape [], must be [batch, 3]"),
        (1, "x: has the shape [], must be [batch, 3]"),
        (True, "x: is a Python bool, must be float32; give np.float32(...)"),
        (np.array(["a"]), "x: is <U1, must be float32"),
        (np.ones((2, 3), object), "x: is object, must be float32"),
    ],
)  # fmt: skip
def test_values_that_would_need_a_cast_are_refused_with_what_to_call(value: Any, message: str) -> None:
    assert any(line.startswith(message) for line in problems(opened(), value, y=np.zeros(4, np.int64)))


def test_numbers_are_taken_for_inputs_of_rank_0() -> None:
    changes: dict[str, Any] = {
        "inputs": [{"name": "x", "shape": [], "dtype": "int8"}],
        "input_tree": {"tuple": [{"tuple": ["x"]}, {"dict": []}]},
    }
    session = opened(**changes)
    assert session.run(3) == 6
    assert session.run(np.int8(3)) == 6
    assert problems(session, 300) == ["x: is 300, which does not fit int8"]
    assert problems(session, 1.0)[0] == "x: is a Python float, must be int8; give np.int8(...)"


# ---- nesting ----

NESTED: dict[str, Any] = {
    "inputs": [{"name": name, "shape": [2], "dtype": "float32"} for name in ("x", "pair.0", "pair.1", "opts.gain")],
    "input_tree": {
        "tuple": [
            {"tuple": ["x", {"tuple": ["pair.0", "pair.1"]}]},
            {"dict": [["opts", {"dict": [["gain", "opts.gain"]]}], ["scale", {"const": 3}]]},
        ]
    },
    "argument_names": ["x", "pair"],
    "outputs": [{"name": name, "shape": [2], "dtype": "float32"} for name in ("out", "parts.0", "parts.1")],
    "output_tree": {"dict": [["out", "out"], ["parts", {"tuple": ["parts.0", {"list": ["parts.1"]}]}], ["note", {"const": None}]]},
    "dims": {},
}  # fmt: skip


def test_nested_calls_are_taken_and_nested_results_given() -> None:
    session, one = opened(**NESTED), np.ones(2, F32)
    for result in (
        session.run(one, (one, one), opts={"gain": one}, scale=3),
        session.run(one, [one, one], opts={"gain": one}),
        session.run(x=one, pair=(one, one), **{"opts.gain": one}),
        session.run(one, **{"pair.0": one, "pair.1": one, "opts.gain": one}),
    ):
        assert list(result) == ["out", "parts", "note"]
        assert isinstance(result["parts"], tuple)
        assert isinstance(result["parts"][1], list)
        assert result["note"] is None
    assert set(session.run_flat(dict.fromkeys(("x", "pair.0", "pair.1", "opts.gain"), one))) == {
        "out", "parts.0", "parts.1",
    }  # fmt: skip


def test_nesting_that_differs_is_named() -> None:
    session, one = opened(**NESTED), np.ones(2, F32)
    found = problems(session, one, (one,), opts={"gain": one, "bias": one}, scale=4)
    assert "pair: is a tuple of 1, must be a tuple of 2" in found
    assert "opts: is a dict with the keys gain, bias, must be a dict with the keys gain" in found
    assert "scale: is a int, was fixed to 3 when the model was captured" in found
    assert any(line.startswith("scale: ") for line in problems(session, one, (one, one), opts={"gain": one}, scale=one))
    assert "pair.0: given twice" in problems(session, one, (one, one), opts={"gain": one}, **{"pair.0": one})


# ---- state ----


def counting() -> Session:
    state = {
        "name": "n",
        "shape": [2],
        "dtype": "float32",
        "input": "state.n",
        "output": "next.n",
        "file": "states/0.npy",
    }
    changes: dict[str, Any] = {
        "states": [state],
        "outputs": [{"name": name, "shape": [2], "dtype": "float32"} for name in ("output", "count")],
        "output_tree": {"tuple": ["output", "count"]},
    }
    return load(Artifact(manifest(**changes), {"states/0.npy": npy(np.zeros(2, F32))}))


def test_states_are_kept_from_run_to_run_until_reset() -> None:
    session = counting()
    counts = [float(session.run(**fitting())[1][0]) for _ in range(3)]
    session.reset()
    counts.append(float(session.run(**fitting())[1][0]))
    assert counts == [1, 2, 3, 1]


def test_writing_into_a_result_does_not_change_the_state() -> None:
    session = counting()
    session.run(**fitting())[1][:] = 100
    assert float(session.run(**fitting())[1][0]) == 2


def test_a_failed_run_and_a_profile_leave_the_state() -> None:
    session = counting()
    session.run(**fitting())
    executor: Any = session._executor
    executor.fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        session.run(**fitting())
    executor.fails = None
    problems(session, 5)
    assert session.profile(fitting()).instructions == 11
    assert float(session.run(**fitting())[1][0]) == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUMPY", npy(np.zeros(3, F32)), npy(np.zeros(2)), npy(np.zeros(2, F32))[:-1], npy(np.zeros((2, 1), F32)),
     npy(np.zeros(2, F32)).replace(b"(2,)", b"(9,)"), npy(np.zeros(2, F32)).replace(b"<f4", b"|O8")],
)  # fmt: skip
def test_a_damaged_state_is_refused(content: bytes) -> None:
    good = counting().artifact
    with pytest.raises(ArtifactError, match="DS0815"):
        load(Artifact(good.manifest, {"states/0.npy": content}))


# ---- opening and closing ----


def test_a_closed_session_says_so() -> None:
    with opened() as session:
        executor: Any = session._executor
    session.close()
    assert executor.closed == 1
    with pytest.raises(UsageError, match="DS0812: this session is closed"):
        session.run(**fitting())


def test_threads_are_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    executor: Any = load(Artifact(manifest(), {}), threads=2)._executor
    assert executor.threads == 2
    monkeypatch.setitem(EXECUTORS, "mcu", "tests.runtime.doubling")
    with pytest.raises(UsageError, match="DS0818"):
        load(Artifact(manifest(target="mcu:cortex-m4"), {}), threads=2)
    with pytest.raises(UsageError, match="0 threads"):
        load(Artifact(manifest(), {}), threads=0)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ArtifactError, match="DS0813"):
        opened(target="abacus")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXECUTORS, "cpu", "no_such_package.executor")
    with pytest.raises(ToolchainError, match="the package 'no_such_package' is missing"):
        opened()


def test_an_executor_that_cannot_trace_says_so() -> None:
    with pytest.raises(UsageError, match="DS0817"):
        opened().trace(fitting())


def test_calls_from_several_threads_do_not_mix_states() -> None:
    session = counting()
    counts: list[float] = []

    def work() -> None:
        for _ in range(50):
            counts.append(float(session.run(**fitting())[1][0]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == list(range(1, 201))


# ---- with ONNX Runtime ----


def test_a_real_nested_model_gives_what_eager_gives(nested_program: Program, tmp_path: Path) -> None:
    dsopt.compile(nested_program, "cpu").save(tmp_path / "nested.dsopt")
    args, kwargs = nested_example()
    with load(tmp_path / "nested.dsopt") as session:
        got = session.run(*args, **kwargs)
    want = nested_program.module()(*args, **kwargs)
    assert list(got) == list(want)
    assert got["note"] is None
    for mine, other in (
        (got["out"], want["out"]),
        (got["parts"][0], want["parts"][0]),
        (got["parts"][1], want["parts"][1]),
    ):
        np.testing.assert_allclose(mine, other.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_a_real_model_with_state_counts_like_eager(counter_program: Program, tmp_path: Path) -> None:
    dsopt.compile(counter_program, "cpu").save(tmp_path / "counter")
    x, module = torch.ones(2, 3), counter_program.module()
    with load(tmp_path / "counter") as session:
        for _ in range(3):
            np.testing.assert_allclose(session.run(x), module(x).numpy())
        session.reset()
        np.testing.assert_allclose(session.run(x), np.full(3, 4.0))


def test_a_real_model_takes_any_batch(conv_program: Program, conv_net: torch.nn.Module) -> None:
    with load(dsopt.compile(conv_program, "cpu")) as session:
        for batch in (1, 2, 5):
            x = torch.randn(batch, 3, 8, 8)
            np.testing.assert_allclose(session.run(x), conv_net(x).detach().numpy(), rtol=1e-4, atol=1e-5)

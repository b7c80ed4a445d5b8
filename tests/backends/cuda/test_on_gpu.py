"""What only a GPU can show: the machine code itself. Run on one with `python -m pytest -m cuda`."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

import dsopt
import dsopt.runtime
from dsopt.backends.check import relative_error
from dsopt.errors import BudgetError
from dsopt.ir import Program, example_inputs
from dsopt.runtime.cuda import open_executor
from tests.backends.cuda.harness import TOLERANCE, capture, emit, seeded
from tests.backends.cuda.test_backend import LARGE_MODELS, SMALL_MODELS, fixed
from tests.backends.tir.case import Cases
from tests.backends.tir.cases import FAMILIES


def _capability() -> int | None:
    """Return the compute capability of the first GPU as ten times major plus minor, None if there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return 10 * major.value + minor.value


CAPABILITY = _capability()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(CAPABILITY is None, reason="no NVIDIA GPU, or no driver")]
ARCH = f"sm_{CAPABILITY}"


def _errors(program: Program, archs: tuple[str, ...]) -> dict[str, float]:
    """Compile, run three times on the GPU and return the largest error of each output and state."""
    executor = open_executor(emit(program, archs))
    states = {state.name: program.weights[state.name] for state in program.states}
    held = {f"state.{name}": value.numpy() for name, value in states.items()}
    errors: dict[str, float] = {}
    try:
        for seed in range(3):
            inputs = example_inputs(program, seed=seed)
            named = {spec.name: value.numpy() for spec, value in zip(program.signature.inputs, inputs, strict=True)}
            got = executor.run({**named, **held})
            want, states = program.run_stateful(inputs, states)
            wanted = {spec.name: value for spec, value in zip(program.signature.outputs, want, strict=True)}
            wanted |= {f"next.{name}": value for name, value in states.items()}
            for name, value in wanted.items():
                errors[name] = max(errors.get(name, 0.0), relative_error(got[name], value.detach().numpy()))
            held = {f"state.{name}": got[f"next.{name}"] for name in states}
    finally:
        executor.close()
    return errors


@pytest.mark.parametrize("name", [*SMALL_MODELS, *LARGE_MODELS])
def test_models_agree_with_eager(name: str) -> None:
    assert max(_errors(fixed(name), (ARCH,)).values()) <= TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_operators_agree_with_eager(name: str) -> None:
    family = FAMILIES[name]
    program = capture(Cases(family.cases), *family.inputs)
    executor = open_executor(emit(program, (ARCH,)))
    specs = zip(program.signature.inputs, family.inputs, strict=True)
    got = executor.run({spec.name: value.numpy() for spec, value in specs})
    executor.close()
    pairs = zip(family.cases, program.signature.outputs, program.run(*family.inputs), strict=True)
    errors = {case: relative_error(got[spec.name], want.detach().numpy()) for case, spec, want in pairs}
    assert {case: error for case, error in errors.items() if not error <= family.tolerance} == {}


def test_state_is_carried(counter_program: Program) -> None:
    assert max(_errors(counter_program, (ARCH,)).values()) <= TOLERANCE


def test_ptx_is_compiled_by_the_driver_for_a_later_gpu_than_the_artifact_knows() -> None:
    if CAPABILITY is None or CAPABILITY < 80:
        pytest.skip("the GPU must be newer than sm_75")
    assert max(_errors(fixed("kws"), ("sm_75",)).values()) <= TOLERANCE


def test_an_artifact_loads_from_a_file_and_runs_as_a_session(tmp_path: Path) -> None:
    program = fixed("digits")
    dsopt.compile(program, f"cuda:{ARCH}").save(tmp_path / "digits.dsopt")
    (x,) = example_inputs(program, seed=1)
    with dsopt.runtime.load(tmp_path / "digits.dsopt") as session:
        first = session.run(x)
        np.testing.assert_array_equal(first, session.run(x))
    (want,) = program.run(x)
    assert relative_error(first, want.detach().numpy()) <= TOLERANCE


def test_more_memory_than_the_gpu_has_is_refused_and_the_gpu_works_afterwards() -> None:
    program = capture(lambda x: x + 1, seeded(4, 4))
    artifact = emit(program, (ARCH,))
    memory = {**artifact.manifest["memory"], "workspace_bytes": 1 << 42}
    with pytest.raises(BudgetError, match="DS0707"):
        open_executor(type(artifact)({**artifact.manifest, "memory": memory}, artifact.files))
    assert max(_errors(program, (ARCH,)).values()) <= TOLERANCE


def test_a_profile_gives_every_layer_some_time() -> None:
    program = fixed("kws")
    executor = open_executor(emit(program, (ARCH,)))
    (x,) = example_inputs(program, seed=0)
    profile = executor.profile({program.signature.inputs[0].name: x.numpy()})
    executor.close()
    assert all(cost.seconds is not None and cost.seconds > 0 for cost in profile.layers)

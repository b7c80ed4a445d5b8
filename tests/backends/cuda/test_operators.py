"""Every operator family of the loop library as CUDA kernels: compiled for a GPU, and run on the host against eager torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dsopt.backends.check import relative_error
from dsopt.runtime.cuda_executor import PlanExecutor
from dsopt.runtime.cuda_plan import LaunchPlan
from dsopt.simulate.cuda_host import HostDevice, host_compiler
from tests.backends.cuda.harness import capture, emit
from tests.backends.tir.case import Cases, Family
from tests.backends.tir.cases import FAMILIES
from tests.backends.tir.integer_cases import INTEGER_FAMILIES

pytestmark = pytest.mark.skipif(host_compiler() is None, reason="no host C++ compiler")


@pytest.mark.parametrize("name", FAMILIES)
def test_kernels_agree_with_eager_torch_in_any_order_of_threads(name: str) -> None:
    _compare(FAMILIES[name])


@pytest.mark.parametrize("name", INTEGER_FAMILIES)
def test_integer_kernels_give_the_bits_of_the_reference(name: str) -> None:
    _compare(replace(INTEGER_FAMILIES[name], tolerance=0.0))


def _compare(family: Family) -> None:
    """Run all cases of a family as kernels, the threads in order and in the opposite one."""
    program = capture(Cases(family.cases), *family.inputs)
    artifact = emit(program)
    plan = LaunchPlan.read(artifact.manifest)
    device = HostDevice(artifact.files["kernels.cu"].decode(), plan.kernels)
    executor = PlanExecutor(plan, artifact.files["weights.bin"], device)
    feeds = {spec.name: x.numpy() for spec, x in zip(program.signature.inputs, family.inputs, strict=True)}
    got = executor.run(feeds)
    device.reverse = True
    reversed_threads = executor.run(feeds)
    executor.close()
    outputs = zip(family.cases, program.signature.outputs, program.run(*family.inputs), strict=True)
    wrong = {}
    for case, spec, want in outputs:
        error = relative_error(got[spec.name], want.detach().numpy())
        if not error <= family.tolerance:
            wrong[case] = error
        np.testing.assert_array_equal(got[spec.name], reversed_threads[spec.name], err_msg=case)
    assert wrong == {}

"""Every operator family of the loop library as CUDA kernels: compiled for a GPU, and run on the host against eager torch."""

from __future__ import annotations

import numpy as np
import pytest

from dsopt.backends.check import relative_error
from dsopt.runtime.cuda_executor import PlanExecutor
from dsopt.runtime.cuda_plan import LaunchPlan
from dsopt.simulate.cuda_host import HostDevice, host_compiler
from tests.backends.cuda.harness import capture, emit
from tests.backends.tir.case import Cases
from tests.backends.tir.cases import FAMILIES

pytestmark = pytest.mark.skipif(host_compiler() is None, reason="no host C++ compiler")


@pytest.mark.parametrize("name", FAMILIES)
def test_kernels_agree_with_eager_torch_in_any_order_of_threads(name: str) -> None:
    family = FAMILIES[name]
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

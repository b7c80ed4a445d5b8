"""Every operator family of the loop library as CUDA kernels: compiled for a GPU, and run on the host against eager torch."""

from __future__ import annotations

import pytest

from dsopt.backends.check import relative_error
from dsopt.backends.cuda import CudaBackend
from dsopt.simulate.cuda_host import host_compiler
from tests.backends.cuda.harness import capture, emit
from tests.backends.tir.cases import FAMILIES, Cases

pytestmark = pytest.mark.skipif(host_compiler() is None, reason="no host C++ compiler")


@pytest.mark.parametrize("name", FAMILIES)
def test_kernels_agree_with_eager_torch(name: str) -> None:
    family = FAMILIES[name]
    program = capture(Cases(family.cases), *family.inputs)
    artifact = emit(program)
    executor, why = CudaBackend().check_executor(artifact)
    assert executor is not None, why
    specs = zip(program.signature.inputs, family.inputs, strict=True)
    got = executor.run({spec.name: value.numpy() for spec, value in specs})
    executor.close()
    wrong = {}
    for case, spec, want in zip(family.cases, program.signature.outputs, program.run(*family.inputs), strict=True):
        error = relative_error(got[spec.name], want.detach().numpy())
        if not error <= family.tolerance:
            wrong[case] = error
    assert wrong == {}

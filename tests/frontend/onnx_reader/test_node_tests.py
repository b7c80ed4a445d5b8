"""The node tests that ONNX ships with, as far as their operators are read."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase

from dsopt.errors import UnsupportedOpError
from dsopt.frontend.onnx_reader import read_onnx

# In bfloat16 and float16 the reference rounds after every step, torch in wider registers: one or two units in the last place.
TOLERANCES = {"bfloat16": 1.6e-2, "float16": 4e-3}
EXPECTED_TO_DIFFER = {
    # The reference computes with 2.4 elements of a result that has 2; ONNX Runtime leaves these two tests out as well.
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
    # Opset 1.
    "test_not_2d",
    "test_not_3d",
    "test_not_4d",
    # A branch that returns a sequence, chosen by an input.
    "test_if_seq",
}


def as_torch(value: Any) -> Any:
    if isinstance(value, list):
        return [as_torch(item) for item in value]
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if array.dtype.name.startswith("float8"):
        return torch.from_numpy(array.view(np.uint8).copy()).view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array.copy())


def as_numpy(value: torch.Tensor) -> Any:
    narrow = value.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    return value.float().numpy() if narrow else value.numpy()


def is_text(case: TestCase) -> bool:
    arrays = [
        np.asarray(item) for pair in case.data_sets for item in (*pair[0], *pair[1]) if not isinstance(item, list)
    ]
    return any(array.dtype.kind in "OUS" for array in arrays)


def run(case: TestCase) -> None:
    model = read_onnx(case.model.SerializeToString())
    for inputs, outputs in case.data_sets:
        with torch.no_grad():
            results = model.module(*map(as_torch, inputs))
        for got, want in zip(results.values(), outputs, strict=False):
            wanted = np.asarray(want)
            name = wanted.dtype.name
            tolerance = max(case.rtol, TOLERANCES.get(name, 0.0))
            wanted = wanted.astype(np.float32) if name == "bfloat16" or name.startswith("float8") else wanted
            array = as_numpy(got)
            assert array.dtype == wanted.dtype and array.shape == wanted.shape
            np.testing.assert_allclose(array, wanted, rtol=tolerance, atol=max(case.atol, 1e-7))


@pytest.mark.slow
def test_every_node_test_of_a_supported_operator_passes() -> None:
    passed, failed, refused = 0, dict[str, str](), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns about the overflows that the tests are about
        cases = [case for case in collect_testcases(None) if not is_text(case)]
        for case in cases:
            try:
                run(case)
                passed += 1
            except UnsupportedOpError:
                refused += 1
            except Exception as error:  # collected, to be reported together
                failed[case.name] = str(error)[:200]
    assert set(failed) <= EXPECTED_TO_DIFFER, failed
    assert passed >= 1350, (passed, refused, len(failed))

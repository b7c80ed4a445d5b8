"""Single operators over their attributes, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.frontend.onnx_reader.oracle import captured, check, floats, targets

LONG = np.int64


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_has_the_axes_of_its_opset(op: str, opset: int, axis: int) -> None:
    check(op, [floats(2, 3, 4)], opset=opset, axis=axis)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Elu", {"alpha": 0.5}),
        ("LeakyRelu", {"alpha": 0.2}),
        ("Selu", {}),
        ("Selu", {"alpha": 2.0, "gamma": 1.5}),
        ("HardSigmoid", {}),
        ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
        ("HardSwish", {}),
        ("ThresholdedRelu", {"alpha": 0.3}),
        ("Celu", {"alpha": 2.0}),
        ("Shrink", {"lambd": 0.4, "bias": 0.1}),
        ("Softplus", {}),
        ("Softsign", {}),
        ("Mish", {}),
    ],
)
def test_an_activation_is_the_one_of_onnx_runtime(op: str, attributes: dict[str, Any]) -> None:
    check(op, [floats(3, 5)], opset=18, **attributes)


def test_gelu_comes_in_two_forms() -> None:
    for form in ("none", "tanh"):
        assert targets(captured(check("Gelu", [floats(3, 5)], opset=20, approximate=form))) == ["gelu"]


@pytest.mark.parametrize("slope", [(1,), (3, 1, 1), (2, 3, 4, 4), (4,)], ids=str)
def test_prelu_takes_any_slope_that_broadcasts(slope: tuple[int, ...]) -> None:
    check("PRelu", [floats(2, 3, 4, 4)], stored={1: floats(*slope)})


@pytest.mark.parametrize("bounds", [(-0.5, 0.5), (None, 0.3), (0.0, None), (0.0, 6.0)], ids=str)
def test_clip_takes_bounds_as_inputs_or_attributes(bounds: tuple[float | None, float | None]) -> None:
    low, high = bounds
    stored = {index: np.float32(bound) for index, bound in ((1, low), (2, high)) if bound is not None}
    check("Clip", [4 * floats(3, 5)], stored=stored)
    attributes = {name: bound for name, bound in (("min", low), ("max", high)) if bound is not None}
    check("Clip", [4 * floats(3, 5)], opset=7, **attributes)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"])
@pytest.mark.parametrize(
    "shapes", [((2, 3), (2, 3)), ((2, 3), ()), ((), (2, 3)), ((3, 1), (1, 4)), ((1,), (2, 3))], ids=str
)
def test_binary_operators_broadcast(op: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    left, right = (
        np.abs(floats(*shape, seed=index) + np.float32(0.5)).reshape(shape) for index, shape in enumerate(shapes)
    )
    check(op, [left, right])
    check(op, [left], stored={1: right})


def test_integers_divide_towards_zero_and_take_remainders_as_asked() -> None:
    left, right = np.array([7, -7, 7, -7], LONG), np.array([2, 2, -2, -2], LONG)
    check("Div", [left, right])
    check("Mod", [left, right])
    check("Mod", [left, right], fmod=1)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [None, [1], [0, 2], [-1]], ids=str)
@pytest.mark.parametrize(
    "op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp"]
)
def test_reductions_take_axes_as_attribute_or_input(op: str, axes: list[int] | None, keepdims: int) -> None:
    x = floats(2, 3, 4)
    attributes = {} if axes is None else {"axes": axes}
    check(op, [x], opset=11, keepdims=keepdims, **attributes)
    check(op, [x], opset=18, stored={} if axes is None else {1: np.array(axes, LONG)}, keepdims=keepdims)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize(
    "pads", [[0, 0, 1, 2, 0, 0, 3, 1], [0, 1, 0, 1, 0, 1, 0, 1], [1, 0, 0, 2, 0, 0, 0, 0]], ids=str
)
def test_padding_comes_in_four_modes(mode: str, pads: list[int]) -> None:
    check("Pad", [floats(2, 3, 5, 4)], opset=19, stored={1: np.array(pads, LONG)}, mode=mode)


def test_negative_padding_crops() -> None:
    check("Pad", [floats(2, 3, 5, 4)], stored={1: np.array([0, 0, -1, 0, 0, 0, -2, 1], LONG), 2: np.float32(7)})


SLICES = [
    ([1], [3], [1], None),
    ([-2], [2**62], [2], None),
    ([4], [-(2**62)], [2], [-1]),
    ([0, 3], [2, 0], [0, 2], [1, -2]),
]


@pytest.mark.parametrize("parts", SLICES, ids=str)
def test_slices_go_both_ways(parts: tuple[list[int], list[int], list[int], list[int] | None]) -> None:
    stored = {index + 1: np.array(part, LONG) for index, part in enumerate(parts) if part is not None}
    check("Slice", [floats(3, 4, 5)], stored=stored)


def test_gathers_count_from_either_end() -> None:
    x = floats(3, 4, 5)
    check("Gather", [x], stored={1: np.array([0, -1], LONG)}, axis=1)
    check("Gather", [x], stored={1: np.array(-2, LONG)}, axis=2)
    check("Gather", [x, np.array([[0, 1], [2, -1]], LONG)], axis=0)
    check("GatherElements", [x, np.array([[[0, -1, 1, 2, -3]]], LONG)], axis=0)
    check("GatherND", [x, np.array([[0, 1], [-1, -2]], LONG)])
    check("GatherND", [x, np.array([[1], [0], [3]], LONG)], batch_dims=1)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatters_reduce(reduction: str) -> None:
    x, index = floats(4, 5), np.array([[1, -1, 0, 2, 3]], LONG)
    check("ScatterElements", [x, index, floats(1, 5, seed=1)], opset=18, axis=0, reduction=reduction)
    places = np.array([[0, 1], [3, -1], [2, 2]], LONG)
    check("ScatterND", [x, places, floats(3, seed=1)], opset=18, reduction=reduction)


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_orders_from_either_end(largest: int) -> None:
    check("TopK", [floats(3, 7)], outputs=2, stored={1: np.array([3], LONG)}, axis=1, largest=largest)


@pytest.mark.parametrize("last", [0, 1])
def test_arg_max_takes_the_first_or_the_last(last: int) -> None:
    x = np.array([[1, 5, 5, 0], [2, 2, 2, 2]], np.float32)
    check("ArgMax", [x], axis=1, keepdims=0, select_last_index=last)
    check("ArgMin", [x], axis=1, keepdims=1, select_last_index=last)


RESIZES: list[dict[str, Any]] = [
    {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    {"mode": "nearest"},
    {"mode": "nearest", "nearest_mode": "ceil", "coordinate_transformation_mode": "align_corners"},
    {"mode": "linear"},
    {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
    {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    {"mode": "cubic"},
    {"mode": "cubic", "cubic_coeff_a": -0.5},
]


@pytest.mark.parametrize(
    "attributes", RESIZES, ids=lambda item: "-".join(item.values()) if "cubic_coeff_a" not in item else "a"
)
@pytest.mark.parametrize("sizes", [(8, 12), (7, 5), (3, 9)], ids=str)
def test_resizing_to_sizes_has_the_coordinates_of_onnx_runtime(
    attributes: dict[str, Any], sizes: tuple[int, int]
) -> None:
    check("Resize", [floats(1, 2, 4, 6)], stored={3: np.array([1, 2, *sizes], LONG)}, tolerance=1e-4, **attributes)


@pytest.mark.parametrize("scales", [(2, 2), (1.5, 2.5), (0.6, 0.8)], ids=str)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing_by_factors_has_the_coordinates_of_onnx_runtime(mode: str, scales: tuple[float, float]) -> None:
    stored = {2: np.array([1, 1, *scales], np.float32)}
    form = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"} if mode == "nearest" else {}
    check("Resize", [floats(1, 2, 5, 6)], stored=stored, mode=mode, tolerance=1e-4, **form)


def test_doubling_an_image_is_torchs_own_upsampling() -> None:
    stored = {2: np.array([1, 1, 2, 2], np.float32)}
    form = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    assert targets(captured(check("Resize", [floats(1, 2, 5, 6)], stored=stored, **form))) == ["upsample_nearest2d"]


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_moves_to_space_in_two_orders(mode: str) -> None:
    check("DepthToSpace", [floats(2, 8, 3, 4)], blocksize=2, mode=mode)


def test_normalisations_agree() -> None:
    x, weight, bias = floats(2, 6, 5, 4), floats(6), floats(6, seed=1)
    variance = np.abs(floats(6, seed=3)) + 0.5
    model = check("BatchNormalization", [x], stored={1: weight, 2: bias, 3: floats(6, seed=2), 4: variance})
    assert targets(captured(model)) == ["batch_norm"]
    check("InstanceNormalization", [x], stored={1: weight, 2: bias}, epsilon=1e-3)
    model = check("LayerNormalization", [x], stored={1: floats(5, 4), 2: floats(5, 4, seed=1)}, axis=2)
    assert targets(captured(model)) == ["layer_norm"]
    check("GroupNormalization", [x], opset=21, stored={1: weight, 2: bias}, num_groups=3)
    check("GroupNormalization", [x], opset=18, stored={1: floats(3), 2: floats(3, seed=1)}, num_groups=3)
    for size in (3, 5):  # ONNX Runtime has no even ones
        check("LRN", [x], size=size, alpha=0.5)
    check("LpNormalization", [x], p=1, axis=1)


@pytest.mark.parametrize("opset", [9, 13])
def test_shapes_change(opset: int) -> None:
    x = floats(2, 3, 4)
    check("Transpose", [x], opset=opset, perm=[2, 0, 1])
    check("Flatten", [x], opset=opset, axis=2)
    check("Reshape", [x], opset=opset, stored={1: np.array([0, -1, 2], LONG)})
    check("Tile", [x], opset=opset, stored={1: np.array([1, 2, 3], LONG)})
    check("Expand", [floats(3, 1)], opset=opset, stored={1: np.array([2, 1, 4], LONG)})
    check("Concat", [x, floats(2, 1, 4)], opset=opset, axis=1)
    if opset == 9:
        check("Squeeze", [floats(1, 3, 1)], opset=opset, axes=[0])
        check("Unsqueeze", [x], opset=opset, axes=[0, 3])
        check("Split", [x], opset=opset, outputs=2, axis=2, split=[1, 3])
    else:
        check("Squeeze", [floats(1, 3, 1)], opset=opset, stored={1: np.array([-1], LONG)})
        check("Unsqueeze", [x], opset=opset, stored={1: np.array([0, -1], LONG)})
        check("Split", [x], opset=opset, outputs=2, stored={1: np.array([1, 3], LONG)}, axis=2)


@pytest.mark.parametrize("upper", [0, 1])
def test_triangles_are_kept(upper: int) -> None:
    check("Trilu", [floats(2, 4, 5)], stored={1: np.array(-1, LONG)}, upper=upper)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_sums_run_along_an_axis(exclusive: int, reverse: int) -> None:
    check("CumSum", [floats(3, 4)], stored={1: np.array(1, LONG)}, exclusive=exclusive, reverse=reverse)


def test_einsum_reads_its_equation() -> None:
    check("Einsum", [floats(2, 3, 4), floats(2, 4, 5)], equation="bij, bjk -> bik")


def test_the_fused_operators_of_onnx_runtime_are_read() -> None:
    x, weight, bias = floats(2, 5, 8), floats(8), floats(8, seed=1)
    domain = "com.microsoft"
    check("Gelu", [x], domain=domain)
    check("FastGelu", [x], stored={1: bias}, domain=domain, tolerance=1e-4)
    check("BiasGelu", [x], stored={1: bias}, domain=domain, tolerance=1e-4)
    check("QuickGelu", [x], domain=domain)
    check("FusedMatMul", [x, floats(2, 6, 8)], transB=1, alpha=0.5, domain=domain)
    check("SkipLayerNormalization", [x, floats(2, 5, 8, seed=2)], stored={2: weight, 3: bias}, domain=domain)
    q, k, v = (floats(2, 5, 8, seed=index) for index in range(3))
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
    check("MultiHeadAttention", [q, k, v, None, mask], num_heads=2, domain=domain)
    check("MultiHeadAttention", [q, k, v], stored={3: floats(24)}, num_heads=2, domain=domain)
    model = check("Attention", [x], stored={1: floats(8, 24), 2: floats(24)}, num_heads=2, domain=domain)
    assert "scaled_dot_product_attention" in targets(captured(model))

"""quantize-prepare and quantize-convert: what they insert, what they leave alone and why, their options, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsopt.errors import DsoptError, PassError, UsageError
from dsopt.frontend.export import export_module
from dsopt.ir import Program
from tests.passes.quantize.programs import DSOPT, WEIGHTED, Function, capture, run_passes, stages, values

FAKE = DSOPT.fake_quantize.default


class Net(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def _net(seed: int = 0) -> tuple[Program, list[dict[str, Tensor]]]:
    torch.manual_seed(seed)
    x = torch.randn(4, 2, 7, 7)
    return export_module(Net().eval(), (x,), {}, {"x": {0: "batch"}}), [{"x": x}]


def _notes(program: Program, data: Any, text: str) -> tuple[Program, str, str]:
    """Return the program, and all skips and all notes."""
    result, records = run_passes(program, text, data)
    lines = [[line for record in records for line in getattr(record, kind)] for kind in ("skips", "notes")]
    return result, *("\n".join(each) for each in lines)  # type: ignore[return-value]


# ---- text ----


def test_what_is_inserted_and_what_becomes_of_it() -> None:
    torch.manual_seed(0)
    x = torch.tensor([[-1.0, 4.1], [0.5, 2.0]])
    linear = nn.Linear(2, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.635, -1.27]]))
        linear.bias.fill_(0.1)
    program = export_module(Function(lambda each, x: F.relu(each(x)), linear), (x,))
    data = [{program.signature.inputs[0].name: x}]
    prepared, _ = run_passes(program, "quantize-prepare{observer=minmax}", data)
    targets = [str(node.target) for node in prepared.graph.nodes if node.op == "call_function"]
    fake = "dsopt.fake_quantize.default"
    assert targets == [fake, fake, "aten.linear.default", "aten.relu.default", fake]
    converted, _ = run_passes(prepared, "quantize-convert,remove-dead-code")
    assert torch.equal(converted.weights["parts.0.weight.int8"], torch.tensor([[64, -127]], dtype=torch.int8))
    # 5.1 / 255 = 0.02 for the input, 1.27 / 127 = 0.01 for the weight, 0.1 / (0.02 * 0.01) = 500 for the bias
    assert converted.weights["parts.0.bias.int32"].tolist() == [500]
    lowered, _ = run_passes(converted, "lower-integer,remove-dead-code")
    text = lowered.text()
    assert "dsopt.quantize(%inputs_0, 0.01999" in text or "dsopt.quantize(%inputs_0, 0.02000" in text
    assert "dsopt.q_linear(" in text
    assert "relu" not in text  # it is the lower bound of the rounding


def test_the_program_given_stays_as_it_was() -> None:
    program, data = _net()
    text, weights = program.text(), {name: value.clone() for name, value in program.weights.items()}
    for options in ("", "weights=4", "per=group,group=2"):
        stages(program, data, options)
        run_passes(program, f"quantize{{{options}}},lower-integer", data)
    assert program.text() == text
    assert all(torch.equal(value, program.weights[name]) for name, value in weights.items())


def test_the_same_input_gives_the_same_bytes(tmp_path: Any) -> None:
    files = []
    for number in range(2):
        program, data = _net()
        lowered, _ = run_passes(program, "quantize{weights=4},lower-integer,remove-dead-code", data)
        lowered.save(tmp_path / f"{number}.dsopt")
        files.append((tmp_path / f"{number}.dsopt").read_bytes())
    assert files[0] == files[1]


def test_quantize_is_prepare_and_convert() -> None:
    program, data = _net()
    whole, _ = run_passes(program, "quantize{weights=4}", data)
    parts, _ = run_passes(program, "quantize-prepare{weights=4},quantize-convert", data)
    assert whole.text() == parts.text()
    assert all(torch.equal(value, parts.weights[name]) for name, value in whole.weights.items())


def test_converting_and_lowering_again_changes_nothing() -> None:
    program, data = _net()
    once, _ = run_passes(program, "quantize,lower-integer,remove-dead-code", data)
    again, records = run_passes(once, "quantize-convert,lower-integer,remove-dead-code")
    assert again.text() == once.text()
    assert not any(record.changes for record in records)


def test_a_size_that_varies_stays_so() -> None:
    program, data = _net()
    _, converted, lowered, _ = stages(program, data)
    for count in (1, 9):
        batch = {"x": torch.randn(count, 2, 7, 7)}
        assert values(lowered, batch)[0].shape == values(converted, batch)[0].shape == (count, 3)


def test_a_weight_read_twice_by_the_same_rule_is_rounded_once() -> None:
    linear = nn.Linear(6, 6)
    x = torch.randn(3, 6)
    program = export_module(Function(lambda each, x: each(F.relu(each(x))), linear), (x,))
    prepared, _ = run_passes(program, "quantize-prepare", [{program.signature.inputs[0].name: x}])
    rounded = [
        node for node in prepared.graph.nodes if node.target is FAKE and prepared.weight(node.args[0]) is not None
    ]
    assert len(rounded) == 1


# ---- options ----


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_get_their_bits_layer_by_layer(bits: int) -> None:
    program, data = _net()
    other = 12 - bits
    converted, _ = run_passes(program, f"quantize{{weights={bits},int{other}=features.2}}", data)
    names = {name.rsplit(".", 1)[0]: name.rsplit(".", 1)[1] for name in converted.weights if ".weight.int" in name}
    assert names == {
        "features.0.weight": f"int{bits}", "features.2.weight": f"int{other}", "head.weight": f"int{bits}"
    }  # fmt: skip
    for name, value in converted.weights.items():
        if name.endswith(".int4"):
            assert value.abs().max() <= 7


def test_results_get_16_bits_layer_by_layer() -> None:
    program, data = _net()
    converted, _ = run_passes(program, "quantize{int16=features.0}", data)
    wide = {
        converted.layer(node)
        for node in converted.graph.nodes
        if node.target is DSOPT.quantize.default and converted.dtype(node) == torch.int16
    }
    assert wide == {"features.1", ""}  # the ReLU that belongs to it, and the input that it alone reads


@pytest.mark.parametrize("pattern", ["head", "he*", "linear", "head|features.7*"])
def test_what_is_kept_stays_float_and_is_listed(pattern: str) -> None:
    program, data = _net()
    pattern = pattern.replace("|features.7*", "|features.0")
    lowered, skips, _ = _notes(program, data, f"quantize{{keep={pattern}}},lower-integer,remove-dead-code")
    kept = [node for node in lowered.graph.nodes if node.target is torch.ops.aten.linear.default]
    assert len(kept) == 1
    assert torch.equal(lowered.weights["head.weight"], program.weights["head.weight"])
    assert "it is kept in float, as the option says" in skips
    assert skips.count("kept in float") == len(pattern.split("|"))


@pytest.mark.parametrize("option", ["keep", "int16", "int8", "int4"])
def test_a_pattern_without_a_layer_is_refused_with_those_there_are(option: str) -> None:
    program, data = _net()
    with pytest.raises(UsageError, match=f"{option}='haed' names no layer of the model") as refused:
        run_passes(program, f"quantize{{{option}=haed}}", data)
    assert refused.value.fix == "its layers: features.0, features.1, features.2, features.3, head"


@pytest.mark.parametrize(
    "options",
    [
        "weights=5",
        "activations=4",
        "per=row",
        "observer=median",
        "group=1",
        "quantile=0.4",
        "power_of_two=true,per=group",
    ],
)
def test_options_that_mean_nothing_are_refused(options: str) -> None:
    with pytest.raises(DsoptError):
        run_passes(_net()[0], f"quantize{{{options}}}")


def test_powers_of_two_are_all_that_scales_then_are() -> None:
    program, data = _net()
    converted, _ = run_passes(program, "quantize{power_of_two=true}", data)
    steps = [torch.tensor(node.args[1]) for node in converted.graph.nodes if node.target is DSOPT.quantize.default]
    steps += [value for name, value in converted.weights.items() if name.endswith(".scale")]
    assert len(steps) > 6
    for step in steps:
        assert bool((torch.log2(step.double()) % 1 == 0).all())


def test_groups_of_inputs_have_scales_that_are_multiples_of_one() -> None:
    program, data = capture(WEIGHTED["linear"])
    converted, _ = run_passes(program, "quantize{weights=4,per=group,group=3}", data)
    scale = converted.weights["parts.0.weight.scale"]
    assert scale.shape == (5, 3)  # 8 inputs in groups of 3
    ratio = (scale / scale.amax(1, keepdim=True) * 255).double()
    torch.testing.assert_close(ratio, ratio.round(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("observer", ["minmax", "moving", "percentile", "mse"])
def test_every_observer_gives_a_program_that_runs(observer: str) -> None:
    program, data = _net()
    _, converted, lowered, _ = stages(program, data, f"observer={observer},quantile=0.99")
    assert values(lowered, data[0])[0].shape == values(converted, data[0])[0].shape


# ---- what stays float ----


@pytest.mark.parametrize(
    ("function", "shape", "reason"),
    [
        (lambda x: x.cumsum(1), (2, 5), "aten.cumsum.default has no integer form here"),
        (lambda x: x.log_softmax(-1), (2, 5), "end with softmax or with logits"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (1, 2, 4, 4), "nearest has"),
        (lambda x: x / x.sum(), (2, 5), "a quotient of two tensors has no integer form here"),
        (lambda x: F.group_norm(x, 2), (2, 4, 5), "only layer_norm and batch_norm have an integer form here"),
        (lambda x: torch.add(x, x * 2, alpha=3), (2, 5), "alpha is not 1"),
        (lambda x: F.conv1d(x, x[:, :, :2]), (1, 2, 5), "its weight is computed, not stored"),
        (lambda x: F.adaptive_avg_pool2d(x, 3), (1, 2, 5, 5), "its windows are not all of one size"),
        (lambda x: torch.matmul(x, x[0]), (5, 5), "a product with a vector has no integer form here"),
        (lambda x: torch.cumprod(x, 0), (3, 5), "aten.cumprod.default has no integer form here"),
    ],
)  # fmt: skip
def test_what_stays_float_is_listed_with_the_reason(function: Any, shape: tuple[int, ...], reason: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape) + 3
    program = export_module(Function(lambda x: function(0.5 * x)), (x,))
    data = [{program.signature.inputs[0].name: x}]
    lowered, skips, _ = _notes(program, data, "canonicalize,quantize,lower-integer,remove-dead-code")
    assert reason in skips
    # between a dequantize and what follows, it is computed as before
    wanted, got = values(program, data[0])[0], values(lowered, data[0])[0]
    assert abs(wanted - got).max() <= 0.05 * abs(wanted).max()


# ---- bad input ----


def test_no_data_is_refused() -> None:
    with pytest.raises(UsageError, match="quantisation needs calibration data") as refused:
        run_passes(_net()[0], "quantize")
    assert refused.value.code == "DS0311"
    assert "--data calib.npz" in refused.value.fix


def test_data_without_an_input_is_refused() -> None:
    with pytest.raises(UsageError, match="lacks the input 'x'"):
        run_passes(_net()[0], "quantize", [{"y": torch.zeros(1)}])


def test_one_sample_is_noted() -> None:
    program, data = _net()
    one = [{"x": data[0]["x"][:1]}]
    assert "calibrated on one sample: its ranges are guesses" in _notes(program, one, "quantize")[2]
    assert "one sample" not in _notes(program, data, "quantize")[2]


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_constant_activations_are_noted_and_kept_exactly(value: float) -> None:
    program, _ = _net()
    data = [{"x": torch.full((4, 2, 7, 7), value)}]
    lowered, _, notes = _notes(program, data, "quantize,lower-integer,remove-dead-code")
    assert f"it was always {value:.4g} in the calibration data" in notes
    rounding = next(node for node in lowered.graph.nodes if node.target is DSOPT.quantize.default)
    step, zero, low, high = rounding.args[1:]
    back = DSOPT.dequantize(DSOPT.quantize(data[0]["x"], step, zero, low, high), step, zero)
    torch.testing.assert_close(back, data[0]["x"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_data_that_are_no_numbers_are_refused_at_the_first_value(value: float) -> None:
    program, data = _net()
    data[0]["x"][1, 0, 2, 2] = value
    with pytest.raises(UsageError, match="NaN or infinite on the calibration data") as refused:
        run_passes(program, "quantize", data)
    assert refused.value.code == "DS0313"
    assert "%x" in refused.value.where.splitlines()[0]
    assert "1 elements were NaN or infinite" in refused.value.where.splitlines()[0]


def test_a_weight_that_is_no_number_is_refused() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.features[2].weight[1, 0, 0, 0] = float("nan")  # type: ignore[index,union-attr]
    x = torch.randn(4, 2, 7, 7)
    with pytest.raises(PassError, match="a weight holds NaN or infinity") as refused:
        run_passes(export_module(net, (x,)), "quantize", [{"x": x}])
    assert "features.2.weight: %" in refused.value.where


def test_dead_channels_are_counted_and_stay_dead() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.features[0].weight[1:3] = 0  # type: ignore[index,union-attr]
        net.features[0].bias[1:3] = torch.tensor([0.25, -1.0])  # type: ignore[index,union-attr]
    x = torch.randn(4, 2, 7, 7)
    program = export_module(net, (x,))
    lowered, _, notes = _notes(program, [{"x": x}], "quantize,lower-integer,remove-dead-code")
    assert "2 channels of its weight are all zeros" in notes
    wanted, got = values(program, {"x": x})[0], values(lowered, {"x": x})[0]
    assert abs(wanted - got).max() < 0.05 * abs(wanted).max()


def test_a_scale_that_underflows_is_noted() -> None:
    program, _ = _net()
    notes = _notes(program, [{"x": torch.randn(4, 2, 7, 7) * 1e-38}], "quantize")[2]
    assert "has steps too small for float32; they were set to 7.89e-31" in notes


def test_sums_that_could_overflow_int32_are_kept_in_int64_and_named() -> None:
    x = torch.rand(2, 70_000)  # 255 steps above zero, times 127, 70,000 times
    linear = nn.Linear(70_000, 2)
    with torch.no_grad():
        linear.weight.copy_(linear.weight.sign())
    program = export_module(Function(lambda each, x: each(x), linear), (x,))
    data = [{program.signature.inputs[0].name: x}]
    lowered, _, notes = _notes(program, data, "quantize,lower-integer,remove-dead-code")
    assert "beyond 2,147,483,648: they are kept in int64" in notes
    (node,) = (node for node in lowered.graph.nodes if node.target is DSOPT.q_linear.default)
    assert node.args[-1] is True
    converted, _ = run_passes(program, "quantize", data)
    wanted = values(converted, data[0])[0]
    # the sum of 70,000 products in float32 has an error of its own
    assert abs(values(lowered, data[0])[0] - wanted).max() <= 2 * abs(wanted).max() / 100


def test_a_program_is_prepared_once() -> None:
    program, data = _net()
    with pytest.raises(PassError, match="prepared for quantisation already"):
        run_passes(program, "quantize-prepare,quantize-prepare", data)


def test_powers_of_two_and_a_batch_norm_are_refused() -> None:
    program, data = capture(WEIGHTED["conv norm relu"])
    with pytest.raises(PassError, match="folding batch norm would scale weights by other numbers than powers of two"):
        run_passes(program, "quantize-prepare{power_of_two=true}", data)


def test_a_batch_norm_behind_rounded_weights_is_refused() -> None:
    program, data = capture(WEIGHTED["conv norm relu"])
    with pytest.raises(PassError, match="a batch norm still follows quantised weights") as refused:
        run_passes(program, "quantize-prepare,quantize-convert", data)
    assert refused.value.fix == "run fold-batch-norm before quantize-convert"


def test_a_scale_that_training_made_nan_is_refused() -> None:
    program, data = _net()
    prepared, _ = run_passes(program, "quantize-prepare", data)
    module = prepared.module()
    name = next(name for name in module.weights_by_name() if name.endswith("weight_scale"))
    with torch.no_grad():
        module.weights_by_name()[name].fill_(float("nan"))
    with pytest.raises(PassError, match="a scale is NaN or infinite"):
        run_passes(prepared.with_weights(module), "quantize-convert")

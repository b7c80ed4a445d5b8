from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dsopt.errors import UsageError, VerifyError
from dsopt.frontend.export import export_module
from dsopt.ir import Program, Rewriter, example_inputs, find
from tests.conftest import ConvNet, Counter, Nested, nested_example

aten = torch.ops.aten


def test_a_program_gives_what_the_module_gave(conv_net: nn.Module, conv_program: Program) -> None:
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(conv_program.run(x)[0], conv_net(x))


def test_its_text_numbers_values_and_names_dims(conv_program: Program) -> None:
    text = conv_program.text()
    assert text.startswith(
        "program(%x: f32[batch, 3, 8, 8])\n%0 = conv2d(%x, @stem.0.weight, None, [1, 1], [1, 1]): f32[batch, 8, 8, 8]"
    )
    assert "# stem.1" in text
    assert text.endswith("return output=%12\n") or "return output=%" in text


def test_inplace_operators_become_functional_and_dropout_stays(conv_program: Program) -> None:
    targets = {node.target for node in conv_program.graph.nodes}
    assert aten.relu.default in targets
    assert aten.relu_.default not in targets
    assert aten.dropout.default in targets


def test_writes_into_views_that_nobody_else_reads_become_functional_and_norms_stay() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop, self.act = nn.BatchNorm2d(3), nn.Dropout(0.2, inplace=True), nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.drop(self.act(self.norm(x).flatten(1)))

    model = Net().eval()
    program = export_module(model, (torch.randn(2, 3, 4, 4),))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets == [
        aten.batch_norm.default, aten.flatten.using_ints, aten.relu.default, aten.dropout.default,
    ]  # fmt: skip
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(program.run(x)[0], model(x))


def test_a_write_into_a_view_of_what_is_read_again_is_seen_there() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            y.flatten().relu_()
            return y + 1

    x = torch.randn(2, 3)
    assert torch.equal(export_module(Net(), (x,)).run(x)[0], Net()(x))


def test_batch_dim_survives_and_can_be_fixed(conv_net: nn.Module, conv_program: Program) -> None:
    assert list(conv_program.dims) == ["batch"]
    fixed = conv_program.specialize({"batch": 1})
    assert fixed.dims == {}
    assert fixed.shape(fixed.inputs[0]) == (1, 3, 8, 8)
    fixed.verify()
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(fixed.run(x)[0], conv_net(x))


def test_an_example_of_size_one_still_gives_a_varying_dim() -> None:
    program = export_module(ConvNet(), (torch.randn(1, 3, 8, 8),), {}, {"x": {0: ("batch", 1, 64)}})
    assert program.dims["batch"].max == 64
    assert program.run(torch.randn(7, 3, 8, 8))[0].shape == (7, 5)


def test_fixing_an_unknown_or_impossible_dim_is_refused(conv_program: Program) -> None:
    with pytest.raises(UsageError, match="varying dims: batch"):
        conv_program.specialize({"time": 1})
    with pytest.raises(UsageError, match="cannot be 0"):
        conv_program.specialize({"batch": 0})


def test_nested_inputs_and_outputs_keep_their_names(nested_program: Program) -> None:
    signature = nested_program.signature
    assert [spec.name for spec in signature.inputs] == ["x", "pair.0", "pair.1", "opts.gain"]
    assert [spec.name for spec in signature.outputs] == ["out", "parts.0", "parts.1"]
    assert signature.output_tree == {
        "dict": [["out", "out"], ["parts", {"tuple": ["parts.0", "parts.1"]}], ["note", {"const": None}]]
    }


def test_a_module_made_from_a_program_takes_and_gives_what_the_user_s_did() -> None:
    model = Nested().eval()
    args, kwargs = nested_example()
    module = export_module(model, args, kwargs).module()
    want, got = model(*args, **kwargs), module(*args, **kwargs)
    assert set(got) == {"out", "parts", "note"}
    torch.testing.assert_close(got["out"], want["out"])
    torch.testing.assert_close(got["parts"], want["parts"])


def test_state_is_explicit_and_stepped() -> None:
    model = Counter()
    program = export_module(model, (torch.randn(2, 3),))
    assert [state.name for state in program.states] == ["total"]
    xs = [torch.randn(2, 3) for _ in range(3)]
    states = None
    for x in xs:
        (got,), states = program.run_stateful((x,), states)
        torch.testing.assert_close(got, model(x))


def test_training_a_module_leaves_the_program_alone_and_with_weights_brings_it_back(conv_program: Program) -> None:
    x, labels = torch.randn(16, 3, 8, 8), torch.randint(0, 5, (16,))
    before = {name: value.clone() for name, value in conv_program.weights.items()}
    module = conv_program.module().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x), labels)
        loss.backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(conv_program.weights[name], value) for name, value in before.items())
    learned = conv_program.with_weights(module)
    module.eval()
    torch.testing.assert_close(learned.run(x)[0], module(x).detach())


def test_train_and_eval_switch_dropout_and_batch_norm(conv_program: Program) -> None:
    module, x = conv_program.module(), torch.randn(64, 3, 8, 8)
    assert torch.equal(module(x), module(x))
    module.train()
    mean = module.weights_by_name()["stem.1.running_mean"].clone()
    assert not torch.equal(module(x), module(x))
    assert not torch.equal(module.weights_by_name()["stem.1.running_mean"], mean)


def test_a_clone_is_edited_without_touching_the_original(conv_program: Program) -> None:
    text, copy = conv_program.text(), conv_program.clone()
    rewriter = Rewriter(copy)
    relu = next(node for node in copy.graph.nodes if node.target is aten.relu.default)
    rewriter.replace(relu, rewriter.call(aten.tanh.default, relu.args[0], like=relu))
    assert conv_program.text() == text
    assert copy.text() != text


def test_a_program_survives_being_saved_with_all_that_passes_recorded(conv_program: Program, tmp_path: Path) -> None:
    node = next(node for node in conv_program.graph.nodes if node.target is aten.linear.default)
    conv_program.facts(node)["scale"] = [0.5, float("inf"), {"deep": [True, None, "x"]}]
    conv_program.save(tmp_path / "net.dsp")
    loaded = Program.load(tmp_path / "net.dsp")
    assert loaded.text() == conv_program.text()
    assert loaded.dims == conv_program.dims
    twin = next(node for node in loaded.graph.nodes if node.target is aten.linear.default)
    assert loaded.facts(twin) == {"scale": [0.5, float("inf"), {"deep": [True, None, "x"]}]}
    assert loaded.source(twin) == conv_program.source(node)
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(loaded.run(x)[0], conv_program.run(x)[0])
    loaded.save(tmp_path / "again.dsp")
    assert (tmp_path / "again.dsp").read_bytes() == (tmp_path / "net.dsp").read_bytes()


@pytest.mark.parametrize("fixture", ["counter_program", "nested_program"])
def test_state_and_nesting_survive_being_saved(fixture: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    program: Program = request.getfixturevalue(fixture)
    program.save(tmp_path / "p.dsp")
    loaded = Program.load(tmp_path / "p.dsp")
    assert loaded.signature == program.signature
    inputs = example_inputs(program)
    for got, want in zip(loaded.run(*inputs), program.run(*inputs), strict=True):
        assert torch.equal(got, want)


def test_lstm_and_attention_stay_single_nodes() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 16, num_layers=2, batch_first=True)
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, _ = self.lstm(x)
            return self.attention(y, y, y, need_weights=False)[0]

    program = export_module(Both(), (torch.randn(2, 5, 8),), {}, {"x": {0: "batch", 1: "time"}})
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(aten.lstm.input) == 1
    assert targets.count(aten.scaled_dot_product_attention.default) == 1
    assert set(program.dims) == {"batch", "time"}
    assert program.run(torch.randn(3, 9, 8))[0].shape == (3, 9, 16)


# ---- verify ----


def test_verify_finds_a_shape_that_was_recorded_wrongly(conv_program: Program) -> None:
    relu = next(node for node in conv_program.graph.nodes if node.target is aten.relu.default)
    relu.meta["val"] = relu.meta["val"][:, :4]
    with pytest.raises(
        VerifyError, match=r"recorded torch.float32 .* 4, 8, 8\], the operator gives torch.float32 .* 8, 8, 8\]"
    ):
        conv_program.verify()


def test_verify_finds_a_stored_weight_of_another_shape_or_dtype(conv_program: Program) -> None:
    conv_program._weights["head.bias"] = torch.zeros(6)
    with pytest.raises(VerifyError, match=r"head.bias: stored torch.float32 \[6\], the graph says torch.float32 \[5\]"):
        conv_program.verify()
    conv_program._weights["head.bias"] = torch.zeros(5, dtype=torch.float64)
    with pytest.raises(VerifyError, match=r"stored torch.float64"):
        conv_program.verify()


def test_verify_finds_an_operator_that_writes_into_its_argument(conv_program: Program) -> None:
    relu = next(node for node in conv_program.graph.nodes if node.target is aten.relu.default)
    relu.target = aten.relu_.default
    with pytest.raises(VerifyError, match="writes into its argument"):
        conv_program.verify()


def test_verify_finds_a_state_whose_next_value_has_another_shape(counter_program: Program) -> None:
    output = counter_program.output_node
    rewriter = Rewriter(counter_program)
    update = counter_program.states[0].update
    cut = rewriter.call(aten.slice.Tensor, update, 0, 0, 2, like=output)
    output.args = ((cut, *output.args[0][1:]),)
    with pytest.raises(VerifyError, match=r"state total: .*\[3\] becomes .*\[2\]"):
        counter_program.verify()


# ---- rewriter ----


def test_a_replacement_of_another_type_is_refused(conv_program: Program) -> None:
    rewriter = Rewriter(conv_program)
    relu = next(node for node in conv_program.graph.nodes if node.target is aten.relu.default)
    with pytest.raises(VerifyError, match=r"replaced %relu_? aten.relu"):
        rewriter.replace(relu, rewriter.call(aten.sum.dim_IntList, relu.args[0], [1], like=relu))


def test_an_impossible_node_is_refused_and_not_left_behind(conv_program: Program) -> None:
    text, rewriter = conv_program.text(), Rewriter(conv_program)
    relu = next(node for node in conv_program.graph.nodes if node.target is aten.relu.default)
    with pytest.raises(VerifyError, match="cannot be"):
        rewriter.call(aten.linear.default, relu.args[0], relu.args[0], like=relu)
    assert conv_program.text() == text


def test_storing_a_weight_of_another_shape_retypes_what_follows(conv_program: Program) -> None:
    rewriter = Rewriter(conv_program)
    rewriter.set_parameters({"head.weight": torch.randn(9, 8), "head.bias": torch.randn(9)})
    conv_program.verify()
    assert conv_program.shape(conv_program.outputs[0]) == ("batch", 9)


def test_new_nodes_carry_the_layer_and_source_of_the_node_they_stand_for(conv_program: Program) -> None:
    rewriter = Rewriter(conv_program)
    linear = next(node for node in conv_program.graph.nodes if node.target is aten.linear.default)
    new = rewriter.call(aten.relu.default, linear, like=linear)
    assert conv_program.layer(new) == "head"
    assert conv_program.source(new).startswith("conftest.py:")


# ---- find ----


def test_find_binds_the_parameters_of_a_pattern(conv_program: Program) -> None:
    matches = list(find(conv_program, lambda x, y: aten.relu.default(aten.add.Tensor(x, y))))
    assert len(matches) == 1
    assert matches[0].root.target is aten.relu.default
    assert matches[0]["x"].target is aten.relu.default


def test_find_leaves_out_what_is_used_elsewhere(conv_program: Program) -> None:
    pattern_stem = list(find(conv_program, lambda x, y: aten.add.Tensor(aten.relu.default(x), y)))
    assert pattern_stem == []  # the stem's relu also feeds the body


def test_find_needs_the_same_value_for_the_same_parameter(capture_function) -> None:  # type: ignore[no-untyped-def]
    program = capture_function(lambda a, b: (a * a) + (a * b), torch.randn(3), torch.randn(3))
    assert len(list(find(program, lambda x: aten.mul.Tensor(x, x)))) == 1
    assert len(list(find(program, lambda x, y: aten.mul.Tensor(x, y)))) == 2

"""What a read model looks like: names, varying sizes, examples, layers, folded constants."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dsopt import capture
from dsopt.errors import ReadError, UnsupportedOpError
from dsopt.frontend.onnx_reader import read_onnx, supported_operators
from tests.frontend.onnx_reader.oracle import (
    assert_close,
    captured,
    computed,
    expected,
    floats,
    info,
    model_of,
    targets,
)

LONG = np.int64


def two_layers() -> bytes:
    """A network as exporters write it: MatMul and Add with stored weights, and a made-up name."""
    nodes = [
        helper.make_node("MatMul", ["input.1", "onnx::MatMul_7"], ["a"], name="/net/net.0/MatMul"),
        helper.make_node("Add", ["net.0.bias", "a"], ["b"], name="/net/net.0/Add"),
        helper.make_node("Relu", ["b"], ["c"], name="/net/net.1/Relu"),
        helper.make_node("Gemm", ["c", "net.2.weight", "net.2.bias"], ["out.1"], name="/net/net.2/Gemm", transB=1),
    ]
    stored = {
        "onnx::MatMul_7": floats(3, 4),
        "net.0.bias": floats(4),
        "net.2.weight": floats(2, 4),
        "net.2.bias": floats(2),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [info("input.1", ["batch", 3])],
        [info("out.1", ["batch", 2])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return model_of(graph).SerializeToString()


def test_weights_layers_inputs_and_outputs_keep_their_names() -> None:
    model = read_onnx(two_layers())
    assert model.input_names == ("input_1",) and model.onnx_input_names == ("input.1",)
    assert model.output_names == ("out.1",)
    assert model.dynamic == {"input_1": {0: "batch"}}
    shapes = {name: tuple(value.shape) for name, value in model.module.named_parameters()}
    assert shapes == {"net.0.weight": (4, 3), "net.0.bias": (4,), "net.2.weight": (2, 4), "net.2.bias": (2,)}
    program = captured(model)
    assert targets(program) == ["linear", "relu", "linear"]
    layers = [program.layer(node) for node in program.graph.nodes if node.op == "call_function"]
    assert layers == ["net.0", "net.1", "net.2"]
    assert [item.name for item in program.signature.inputs] == ["input_1"]
    assert [item.name for item in program.signature.outputs] == ["out.1"]


def test_a_captured_file_names_its_own_nodes_as_source(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(two_layers())
    program = capture(tmp_path / "net.onnx")
    sources = [program.source(node) for node in program.graph.nodes if node.op == "call_function"]
    assert sources == [f"node '/net/net.{index}/{op}' ({shown})" for index, op, shown in (
        (0, "MatMul", "Linear"), (1, "Relu", "Relu"), (2, "Gemm", "Linear"),
    )]  # fmt: skip


def test_inputs_are_taken_by_name_and_by_position() -> None:
    module = read_onnx(two_layers()).module
    assert list(inspect.signature(module.forward).parameters) == ["input_1"]
    x = torch.ones(5, 3)
    torch.testing.assert_close(module(x)["out.1"], module(input_1=x)["out.1"])
    with pytest.raises(TypeError):
        module(wrong=x)


def test_a_copy_of_the_module_has_weights_of_its_own() -> None:
    module = read_onnx(two_layers()).module
    twin = copy.deepcopy(module)
    before = module(torch.ones(1, 3))["out.1"]
    with torch.no_grad():
        twin.get_parameter("net.2.bias").add_(1)
    torch.testing.assert_close(module(torch.ones(1, 3))["out.1"], before)
    torch.testing.assert_close(twin(torch.ones(1, 3))["out.1"], before + 1)


def test_the_module_trains() -> None:
    module = read_onnx(two_layers()).module
    module(torch.ones(2, 3))["out.1"].sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_names_that_python_cannot_take_are_changed_and_stay_apart() -> None:
    nodes = [
        helper.make_node("Add", ["class", "a/b:0"], ["t"]),
        helper.make_node("Add", ["t", "a.b_0"], ["u"]),
        helper.make_node("Mul", ["u", "forward"], ["v"]),
        helper.make_node("Mul", ["v", "a"], ["self"]),
    ]
    stored = {name: floats(2, seed=seed) for seed, name in enumerate(["a/b:0", "a.b_0", "forward", "a"])}
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", [info("class", [2])], [info("self", [2])], tensors)
    proto = model_of(graph)
    model = read_onnx(proto.SerializeToString())
    assert model.input_names == ("class_",) and len(list(model.module.parameters())) == 4
    assert_close(computed(model, [floats(2, seed=9)]), expected(proto, [floats(2, seed=9)]))
    captured(model)


def test_shape_arithmetic_keeps_sizes_symbolic() -> None:
    """Flatten(1) as the older exporter writes it, by Shape, Gather, Unsqueeze, Concat and Reshape."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Gather", ["shape", "one"], ["length"]),
        helper.make_node("Mul", ["length", "four"], ["features"]),
        helper.make_node("Unsqueeze", ["batch", "axis"], ["batch1"]),
        helper.make_node("Unsqueeze", ["features", "axis"], ["features1"]),
        helper.make_node("Concat", ["batch1", "features1"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    numbers = {
        "zero": np.array(0, LONG),
        "one": np.array(1, LONG),
        "four": np.array(4, LONG),
        "axis": np.array([0], LONG),
    }
    tensors = [numpy_helper.from_array(array, name) for name, array in numbers.items()]
    graph = helper.make_graph(nodes, "g", [info("x", ["n", "t", 4])], [info("y", ["n", None])], tensors)
    program = captured(read_onnx(model_of(graph).SerializeToString()))
    assert program.shape(program.outputs[0]) == ("n", "4*t")
    assert not program.weights


def test_a_size_compared_with_minus_one_stays_varying() -> None:
    """Expand as the older exporter writes it: Where(Equal(target, -1), ones, target)."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Concat", ["shape", "three"], ["target"], axis=0),
        helper.make_node("Shape", ["target"], ["rank"]),
        helper.make_node(
            "ConstantOfShape", ["rank"], ["ones"], value=helper.make_tensor("v", TensorProto.INT64, [1], [1])
        ),
        helper.make_node("Equal", ["target", "minus"], ["asked"]),
        helper.make_node("Where", ["asked", "ones", "target"], ["sizes"]),
        helper.make_node("Unsqueeze", ["x", "last"], ["column"]),
        helper.make_node("Expand", ["column", "sizes"], ["y"]),
    ]
    numbers = {"three": [3], "minus": [-1], "last": [1]}
    tensors = [numpy_helper.from_array(np.array(value, LONG), name) for name, value in numbers.items()]
    graph = helper.make_graph(nodes, "g", [info("x", ["n"])], [info("y", ["n", 3])], tensors)
    program = captured(read_onnx(model_of(graph).SerializeToString()))
    assert program.shape(program.outputs[0]) == ("n", 3)


def test_a_size_fixed_by_accident_is_reported_with_what_was_tried() -> None:
    shape = numpy_helper.from_array(np.array([11, -1], LONG), "shape")
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    graph = helper.make_graph([node], "g", [info("x", [1, "t", 3])], [info("y", [None, None])], [shape])
    with pytest.raises(ReadError, match="tried with t=5"):
        read_onnx(model_of(graph).SerializeToString())


def test_sizes_computed_in_float_are_those_of_float() -> None:
    """An image doubled by Shape, Cast, Mul, Floor and Cast, as F.interpolate(scale_factor=2) was exported."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "two", "four", "zero"], ["plane"]),
        helper.make_node("Cast", ["plane"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "factor"], ["scaled"]),
        helper.make_node("Floor", ["scaled"], ["floor"]),
        helper.make_node("Cast", ["floor"], ["plane2"], to=TensorProto.INT64),
        helper.make_node("Slice", ["shape", "zero", "two", "zero"], ["front"]),
        helper.make_node("Concat", ["front", "plane2"], ["sizes"], axis=0),
        helper.make_node(
            "Resize", ["x", "", "", "sizes"], ["y"], mode="nearest", nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        ),
    ]  # fmt: skip
    numbers = {key: np.array([value], LONG) for key, value in (("zero", 0), ("two", 2), ("four", 4))}
    tensors = [numpy_helper.from_array(array, name) for name, array in numbers.items()]
    tensors.append(numpy_helper.from_array(np.array(2.0, np.float32), "factor"))
    for sizes in (["n", 2, 6, 8], ["n", 2, "h", "w"]):
        graph = helper.make_graph(nodes, "g", [info("x", sizes)], [info("y", [None] * 4)], tensors)
        proto = model_of(graph)
        model = read_onnx(proto.SerializeToString())
        x = floats(3, 2, 6, 8)
        assert_close(computed(model, [x]), expected(proto, [x]))
    program = captured(read_onnx(model_of(graph).SerializeToString()))
    (result,) = program.run(torch.ones(3, 2, 5, 7))
    assert result.shape == (3, 2, 10, 14)


def test_a_branch_that_is_always_taken_stands_in_place_of_its_if() -> None:
    then = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "then", [], [info("r", [2])])
    other = helper.make_graph([helper.make_node("Unheard", ["x"], ["r"])], "else", [], [info("r", [2])])
    node = helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other)
    yes = numpy_helper.from_array(np.array(True), "yes")
    model = read_onnx(
        model_of(helper.make_graph([node], "g", [info("x", [2])], [info("y", [2])], [yes])).SerializeToString()
    )
    assert targets(captured(model)) == ["relu"]


def test_a_branch_chosen_while_running_becomes_a_where() -> None:
    then = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "then", [], [info("r", [2])])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["r"])], "else", [], [info("r", [2])])
    node = helper.make_node("If", ["go"], ["y"], then_branch=then, else_branch=other)
    proto = model_of(
        helper.make_graph([node], "g", [info("x", [2]), info("go", [], TensorProto.BOOL)], [info("y", [2])])
    )
    model = read_onnx(proto.SerializeToString())
    for go in (True, False):
        feeds = [floats(2), np.array(go)]
        assert_close(computed(model, feeds), expected(proto, feeds))
    assert "where" in targets(captured(model))


def test_functions_are_expanded_with_their_attributes() -> None:
    body = [helper.make_node("LeakyRelu", ["a"], ["t"]), helper.make_node("Add", ["t", "a"], ["b"])]
    reference = body[0].attribute.add(name="alpha", ref_attr_name="slope")
    reference.type = 1
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)], attributes=["slope"]
    )
    nodes = [
        helper.make_node("Twice", ["x"], ["t"], domain="local", slope=0.5),
        helper.make_node("Twice", ["t"], ["y"], domain="local", slope=0.25),
    ]
    proto = model_of(
        helper.make_graph(nodes, "g", [info("x", [5])], [info("y", [5])]), domain="local", functions=[function]
    )
    model = read_onnx(proto.SerializeToString())
    assert_close(computed(model, [floats(5)]), expected(proto, [floats(5)]))


def test_a_tied_embedding_stays_one_weight() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["logits"]),
    ]
    table = numpy_helper.from_array(floats(7, 4), "table")
    graph = helper.make_graph(nodes, "g", [info("ids", ["n"], TensorProto.INT64)], [info("logits", ["n", 7])], [table])
    model = read_onnx(model_of(graph).SerializeToString())
    assert [name for name, _ in model.module.named_parameters()] == ["table"]
    assert targets(captured(model)) == ["embedding", "linear"]
    assert int(model.example[0].max()) < 7


def test_examples_fit_the_dims_of_the_file() -> None:
    inputs = [
        info("ids", ["batch", "sequence"], TensorProto.INT64),
        info("mask", ["batch", "past + sequence"], TensorProto.INT64),
        info("past", ["batch", "past", 3]),
        info("scale", []),
    ]
    nodes = [helper.make_node("Mul", ["past", "scale"], ["y"]), helper.make_node("Add", ["ids", "ids"], ["z"])]
    graph = helper.make_graph(nodes, "g", inputs, [info("y", [None] * 3), info("z", [None] * 2, TensorProto.INT64)])
    model = read_onnx(model_of(graph).SerializeToString())
    ids, mask, past, scale = model.example
    assert min(ids.shape) >= 2 and mask.shape[1] == past.shape[1] + ids.shape[1] and scale.shape == ()
    assert model.dynamic["mask"] == {0: "batch", 1: "past___sequence"}
    assert torch.equal(past, read_onnx(model_of(graph).SerializeToString()).example[2])


def test_an_image_of_any_size_gets_an_example_that_survives_pooling() -> None:
    nodes = [
        helper.make_node("MaxPool", [f"x{step}"], [f"x{step + 1}"], kernel_shape=[2, 2], strides=[2, 2])
        for step in range(5)
    ]
    graph = helper.make_graph(nodes, "g", [info("x0", ["n", 3, "h", "w"])], [info("x5", [None] * 4)])
    (example,) = read_onnx(model_of(graph).SerializeToString()).example
    assert min(example.shape[2:]) >= 32


def test_weights_that_are_no_numbers_are_accepted_and_reported() -> None:
    node = helper.make_node("Add", ["x", "bias"], ["y"])
    bias = numpy_helper.from_array(np.array([1, np.nan], np.float32), "bias")
    model = read_onnx(
        model_of(helper.make_graph([node], "g", [info("x", [2])], [info("y", [2])], [bias])).SerializeToString()
    )
    assert model.warnings == ("weight 'bias' has 1 elements that are not numbers",)


def test_everything_that_is_not_supported_is_named_at_once() -> None:
    nodes = [
        helper.make_node("Multinomial", ["x"], ["a"], name="first"),
        helper.make_node("Gelv", ["x"], ["b"], name="second"),
        helper.make_node(
            "BatchNormalization", ["x", "s", "s", "s", "s"], ["c", "m", "v"], name="third", training_mode=1
        ),
    ]
    scale = numpy_helper.from_array(floats(2), "s")
    graph = helper.make_graph(nodes, "g", [info("x", [3, 2])], [info("c", [3, 2])], [scale])
    with pytest.raises(UnsupportedOpError) as caught:
        read_onnx(model_of(graph).SerializeToString())
    error = caught.value
    assert error.code == "DS0198" and error.what == "3 nodes use what is not supported"
    assert error.why.splitlines() == [
        "node 'first' (Multinomial): operator Multinomial",
        "node 'second' (Gelv): operator Gelv; nearest supported form: Gelu",
        "node 'third' (BatchNormalization): BatchNormalization in training mode; nearest supported form: "
        "training_mode=0, as exported by model.eval()",
    ]


def test_supported_operators_are_many_and_sorted() -> None:
    names = supported_operators()
    assert len(names) >= 180 and list(names) == sorted(names) and not any(name.startswith("dsopt") for name in names)

"""Files from strangers: whatever their bytes, they end in a model or in one of dsopt's sentences."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dsopt.errors import DsoptError, ReadError
from dsopt.frontend.onnx_reader import read_onnx
from tests.frontend.onnx_reader.oracle import floats, info, model_of, one_node

LONG = np.int64
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


def small_network() -> bytes:
    """Convolution, pooling, shape arithmetic, a function, a branch and a recurrent layer in a few kilobytes."""
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    then = helper.make_graph([helper.make_node("Relu", ["p"], ["r"])], "then", [], [info("r", None)])
    other = helper.make_graph([helper.make_node("Neg", ["p"], ["r"])], "else", [], [info("r", None)])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("If", ["yes"], ["i"], then_branch=then, else_branch=other),
        helper.make_node("Twice", ["i"], ["d"], domain="local"),
        helper.make_node("Reshape", ["d", "shape"], ["s"]),
        helper.make_node("LSTM", ["s", "lw", "lr"], ["y"], hidden_size=2),
    ]
    stored = {
        "w": floats(2, 1, 3, 3),
        "lw": floats(1, 8, 8),
        "lr": floats(1, 8, 2),
        "yes": np.array([True]),
        "shape": np.array([2, -1, 8], LONG),
    }
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", [info("x", ["n", 1, 4, 4])], [info("y", None)], tensors)
    return model_of(graph, domain="local", functions=[function]).SerializeToString()


NETWORK = small_network()


def read_or_refuse(data: bytes) -> None:
    try:
        read_onnx(data)
    except DsoptError as error:
        assert error.code.startswith("DS019") and error.what


def test_the_network_that_is_altered_below_is_read() -> None:
    assert read_onnx(NETWORK).output_names == ("y",)


@FUZZ
@given(st.integers(0, len(NETWORK) - 1))
def test_a_truncated_file_is_refused_with_a_sentence(length: int) -> None:
    read_or_refuse(NETWORK[:length])


@FUZZ
@given(st.lists(st.tuples(st.integers(0, len(NETWORK) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_an_altered_file_is_read_or_refused_with_a_sentence(changes: list[tuple[int, int]]) -> None:
    data = bytearray(NETWORK)
    for place, byte in changes:
        data[place] = byte
    read_or_refuse(bytes(data))


@FUZZ
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_with_a_sentence(data: bytes) -> None:
    read_or_refuse(data)


NUMBERS = st.sampled_from([0, 1, -1, 2, 7, -2, 2**31 - 1, -(2**31), 2**62, -(2**63), 100_000])


@FUZZ
@given(st.integers(0, 5), st.integers(0, 20), NUMBERS)
def test_altered_attributes_are_read_or_refused_with_a_sentence(place: int, item: int, number: int) -> None:
    model = onnx.ModelProto.FromString(NETWORK)
    attributes = model.graph.node[place].attribute
    if attributes:
        attribute = attributes[item % len(attributes)]
        if attribute.ints:
            attribute.ints[item % len(attribute.ints)] = number
        else:
            attribute.i = number
    else:
        model.graph.initializer[place - 2].dims[0] = number
    read_or_refuse(model.SerializeToString())


def graph_of(*nodes: onnx.NodeProto) -> bytes:
    return model_of(helper.make_graph(list(nodes), "g", [info("x", [2])], [info("y", None)])).SerializeToString()


NODE = helper.make_node


def refused(data: bytes | Path, code: str) -> DsoptError:
    with pytest.raises(DsoptError) as caught:
        read_onnx(data)
    assert caught.value.code == code, caught.value
    return caught.value


@pytest.mark.parametrize("data", [b"", b"not a model at all", b"PK\x03\x04" + bytes(40), b"\x80\x02}q\x00."], ids=repr)
def test_what_is_no_model_is_refused(data: bytes) -> None:
    refused(data, "DS0191")


def test_paths_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert "absent.onnx" in refused(tmp_path / "absent.onnx", "DS0190").what
    refused(tmp_path, "DS0190")
    os.mkfifo(tmp_path / "pipe.onnx")
    refused(tmp_path / "pipe.onnx", "DS0190")


@pytest.mark.parametrize("size", [2**40, 2**62, -5])
def test_huge_and_negative_sizes_are_refused(size: int) -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [info("x", [size])], [info("y", None)])
    refused(model_of(graph).SerializeToString(), "DS0192" if size > 0 else "DS0197")


def test_an_input_of_no_elements_is_read() -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [info("x", [0, 3])], [info("y", None)])
    assert read_onnx(model_of(graph).SerializeToString()).example[0].shape == (0, 3)


def test_a_constant_of_a_terabyte_is_refused_before_it_is_made() -> None:
    shape = numpy_helper.from_array(np.array([2**38], LONG), "shape")
    graph = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["shape"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])],
        "g", [info("x", [1])], [info("y", None)], [shape],
    )  # fmt: skip
    refused(model_of(graph).SerializeToString(), "DS0192")


def test_numbers_that_double_at_every_node_do_not_fill_the_memory() -> None:
    nodes = [NODE("Shape", ["x"], ["s0"])]
    nodes += [NODE("Concat", [f"s{step}", f"s{step}"], [f"s{step + 1}"], axis=0) for step in range(34)]
    nodes += [NODE("Size", ["s34"], ["y"])]
    assert read_onnx(graph_of(*nodes)).output_names == ("y",)  # tried without numbers: no memory is asked for


@pytest.mark.parametrize(
    "node",
    [
        NODE("Split", ["x"], ["y"], num_outputs=2**62),
        NODE("Resize", ["x", "", "", "big"], ["y"], mode="cubic"),
        NODE("MaxPool", ["x"], ["y"], kernel_shape=[2**62]),
    ],
    ids=lambda node: node.op_type,
)
def test_huge_attributes_are_refused_soon(node: onnx.NodeProto) -> None:
    big = numpy_helper.from_array(np.array([1, 1, 2**40], LONG), "big")
    graph = helper.make_graph([node], "g", [info("x", [1, 1, 5])], [info("y", None)], [big])
    start = time.process_time()
    refused(model_of(graph, 18).SerializeToString(), "DS0196")
    assert time.process_time() - start < 5


def test_functions_that_double_at_every_level_are_refused_soon() -> None:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    functions = []
    for level in range(30):
        inner = "Identity" if level == 0 else f"f{level - 1}"
        domain = "" if level == 0 else "local"
        body = [
            helper.make_node(inner, ["a"], ["t"], domain=domain),
            helper.make_node(inner, ["t"], ["b"], domain=domain),
        ]
        functions.append(helper.make_function("local", f"f{level}", ["a"], ["b"], body, imports))
    node = helper.make_node("f29", ["x"], ["y"], domain="local")
    graph = helper.make_graph([node], "g", [info("x", [1])], [info("y", None)])
    start = time.process_time()
    refused(model_of(graph, domain="local", functions=functions).SerializeToString(), "DS0192")
    assert time.process_time() - start < 20


def test_a_function_that_calls_itself_is_refused() -> None:
    imports = [helper.make_opsetid("local", 1)]
    body = [helper.make_node("loop", ["a"], ["b"], domain="local")]
    function = helper.make_function("local", "loop", ["a"], ["b"], body, imports)
    node = helper.make_node("loop", ["x"], ["y"], domain="local")
    graph = helper.make_graph([node], "g", [info("x", [1])], [info("y", None)])
    refused(model_of(graph, domain="local", functions=[function]).SerializeToString(), "DS0192")


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([NODE("Add", ["x", "z"], ["y"])], "'z' is used and never defined"),
        ([NODE("Add", ["x", "t"], ["y"]), NODE("Neg", ["y"], ["t"])], "needs its own result"),
        ([NODE("Neg", ["x"], ["y"]), NODE("Abs", ["x"], ["y"])], "'y' is defined twice"),
        ([NODE("Neg", ["x"], ["t"])], "'y' is used and never defined"),
    ],
    ids=["undefined", "cycle", "twice", "no output"],
)
def test_a_graph_that_contradicts_itself_is_refused(nodes: list[onnx.NodeProto], says: str) -> None:
    assert says in refused(graph_of(*nodes), "DS0193").what


def test_nodes_in_any_order_are_sorted() -> None:
    assert read_onnx(graph_of(NODE("Neg", ["t"], ["y"]), NODE("Abs", ["x"], ["t"]))).output_names == ("y",)


def test_shapes_that_do_not_fit_name_the_node_and_its_inputs() -> None:
    proto, _ = one_node("MatMul", [floats(2, 3), floats(4, 5)])
    error = refused(proto.SerializeToString(), "DS0196")
    assert "MatMul" in error.where and "float32[2, 3], float32[4, 5]" in error.why


def test_states_of_the_wrong_shape_never_reach_torch() -> None:
    """torch.lstm trusts them and writes outside its memory."""
    stored = {1: floats(1, 24, 5), 2: floats(1, 24, 6), 5: floats(1, 1, 6), 6: floats(1, 1, 6)}
    proto, _ = one_node("LSTM", [floats(16, 2, 5)], stored=stored, hidden_size=6)
    assert "initial state" in refused(proto.SerializeToString(), "DS0196").why


@pytest.mark.parametrize("opset", [1, 6, 999])
def test_versions_that_are_not_read_are_named(opset: int) -> None:
    proto, _ = one_node("Relu", [floats(2)])
    proto.opset_import[0].version = opset
    assert f"opset {opset}" in refused(proto.SerializeToString(), "DS0199").what


def test_inputs_that_are_no_tensors_are_refused() -> None:
    value = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [2])
    graph = helper.make_graph([NODE("SequenceLength", ["x"], ["y"])], "g", [value], [info("y", [], TensorProto.INT64)])
    refused(model_of(graph).SerializeToString(), "DS0197")


@pytest.mark.parametrize("change", ["short", "shape", "negative"])
def test_a_tensor_whose_bytes_do_not_fit_its_shape_is_refused(change: str) -> None:
    model = onnx.ModelProto.FromString(NETWORK)
    tensor = model.graph.initializer[0]
    if change == "short":
        tensor.raw_data = tensor.raw_data[:-1]
    else:
        tensor.dims[0] = 3 if change == "shape" else -3
    refused(model.SerializeToString(), "DS0195")


# ---- weights beside the file ----


def external_model(folder: Path, location: str, offset: int = 0, length: int = 8) -> Path:
    tensor = TensorProto(name="w", dims=[2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    graph = helper.make_graph([NODE("Add", ["x", "w"], ["y"])], "g", [info("x", [2])], [info("y", [2])], [tensor])
    path = folder / "model.onnx"
    path.write_bytes(model_of(graph).SerializeToString())
    return path


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(bytes(4) + np.array([1.5, -2], np.float32).tobytes())
    model = read_onnx(external_model(tmp_path, "sub/w.bin", offset=4))
    assert model.module.get_parameter("w").tolist() == [1.5, -2]


def absolute(folder: Path) -> str:
    return str(folder / "w.bin")


def parent(_: Path) -> str:
    return "../w.bin"


def hidden_parent(_: Path) -> str:
    return "sub/../../w.bin"


def drive(_: Path) -> str:
    return "C:\\w.bin"


def backslash(_: Path) -> str:
    return "..\\w.bin"


def link(folder: Path) -> str:
    (folder / "link").symlink_to("/etc/passwd")
    return "link"


def linked_folder(folder: Path) -> str:
    (folder / "etc").symlink_to("/etc")
    return "etc/passwd"


def folder_itself(_: Path) -> str:
    return "."


PLACES: list[Callable[[Path], str]] = [
    absolute,
    parent,
    hidden_parent,
    drive,
    backslash,
    link,
    linked_folder,
    folder_itself,
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_weights_elsewhere_are_refused(place: Callable[[Path], str], tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for folder in (tmp_path, home):
        (folder / "w.bin").write_bytes(bytes(8))
    refused(external_model(home, place(home)), "DS0194")


def test_weights_that_are_missing_or_short_are_refused(tmp_path: Path) -> None:
    refused(external_model(tmp_path, "w.bin"), "DS0194")
    (tmp_path / "w.bin").write_bytes(bytes(7))
    assert "truncated" in refused(external_model(tmp_path, "w.bin"), "DS0194").fix
    refused(external_model(tmp_path, "w.bin", length=4), "DS0194")
    refused(external_model(tmp_path, "w.bin", offset=-1), "DS0194")


def test_a_model_given_as_bytes_has_no_folder(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(8))
    with pytest.raises(ReadError, match="DS0194"):
        read_onnx(external_model(tmp_path, "w.bin").read_bytes())

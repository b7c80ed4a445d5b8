"""Models whose tensors begin at round places read as the same models."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dsopt.backends.cpu.placing import ALIGNMENT, lay

SIZES = st.lists(st.sampled_from([0, 1, 63, 64, 127, 128, 1000, 16383, 16384, 70_000]), max_size=6)


@given(SIZES, st.integers(0, 200))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_tensors_lie_where_it_is_said_and_the_model_reads_as_usual(sizes: list[int], name_length: int) -> None:
    inner = helper.make_tensor("inner", TensorProto.INT64, [2], [3, 4])
    value = helper.make_tensor_value_info("y", TensorProto.INT64, [2])
    node = helper.make_node("Identity", ["inner"], ["y"])
    graph = helper.make_graph([node], "g" * name_length, [], [value], [inner])
    model = helper.make_model(graph, producer_name="dsopt")
    before = model.SerializeToString(deterministic=True)
    arrays = [np.arange(size, dtype=np.uint8) for size in sizes]
    tensors = [numpy_helper.from_array(array, f"t{number}") for number, array in enumerate(arrays)]
    content, places = lay(model, tensors)
    assert model.SerializeToString(deterministic=True) == before
    read = onnx.load_from_string(content)
    assert [each.name for each in read.graph.initializer] == ["inner", *places]
    for array, (name, offset) in zip(arrays, places.items(), strict=True):
        assert offset % ALIGNMENT == 0
        assert content[offset : offset + len(array)] == array.tobytes()
        found = next(each for each in read.graph.initializer if each.name == name)
        np.testing.assert_array_equal(numpy_helper.to_array(found), array)
    assert (read.graph.node, read.graph.output, read.producer_name) == (
        model.graph.node, model.graph.output, model.producer_name,
    )  # fmt: skip
    assert lay(model, tensors)[0] == content

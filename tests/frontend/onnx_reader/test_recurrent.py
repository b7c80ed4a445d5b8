"""Recurrent layers in every direction, layout and form, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dsopt.errors import UnsupportedOpError
from dsopt.frontend.onnx_reader import read_onnx
from tests.frontend.onnx_reader.oracle import captured, check, floats, model_of, one_node, targets

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
T, B, N, H = 5, 3, 4, 6


def weights(op: str, directions: int, bias: bool = True) -> dict[int, Any]:
    rows = GATES[op] * H
    stored = {1: 0.5 * floats(directions, rows, N, seed=1), 2: 0.5 * floats(directions, rows, H, seed=2)}
    return {**stored, 3: floats(directions, 2 * rows, seed=3)} if bias else stored


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_a_layer_is_one_torch_operator(op: str, has_state: bool, direction: str) -> None:
    directions = 2 if direction == "bidirectional" else 1
    state = floats(directions, B, H, seed=4)
    states: list[Any] = [None] * 4 + [state, state + 1][: 2 if op == "LSTM" else 1] if has_state else []
    form = {"linear_before_reset": 1} if op == "GRU" else {}
    model = check(
        op,
        [floats(T, B, N), *states],
        stored=weights(op, directions),
        outputs=3 if op == "LSTM" else 2,
        hidden_size=H,
        direction=direction,
        **form,
    )
    kernel = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}[op]
    assert targets(captured(model)).count(kernel) == 1
    assert "RNN_0.weight_hh_l0".replace("RNN", op) in dict(model.module.named_parameters())


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_a_layer_without_bias_has_no_bias(op: str) -> None:
    form = {"linear_before_reset": 1} if op == "GRU" else {}
    model = check(op, [floats(T, B, N)], stored=weights(op, 1, bias=False), outputs=2, hidden_size=H, **form)
    assert not any("bias" in name for name, _ in model.module.named_parameters())


FORMS: list[tuple[str, dict[str, Any]]] = [
    ("GRU", {"linear_before_reset": 0}),
    ("GRU", {"linear_before_reset": 0, "direction": "bidirectional"}),
    ("LSTM", {"clip": 0.4}),
    ("LSTM", {"activations": ["HardSigmoid", "Tanh", "Relu"]}),
    ("RNN", {"activations": ["LeakyRelu"], "activation_alpha": [0.3]}),
    ("RNN", {"activations": ["Relu"]}),
]


@pytest.mark.parametrize(("op", "attributes"), FORMS, ids=str)
def test_forms_that_torch_lacks_run_step_by_step(op: str, attributes: dict[str, Any]) -> None:
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    check(op, [floats(T, B, N)], stored=weights(op, directions), outputs=2, hidden_size=H, **attributes)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_sequences_of_different_lengths_stop_early(op: str) -> None:
    lengths = np.array([5, 2, 3], np.int32)
    for direction in ("forward", "reverse"):
        check(
            op,
            [floats(T, B, N), None, None, None, lengths],
            stored=weights(op, 1),
            outputs=2,
            hidden_size=H,
            direction=direction,
        )


def test_peepholes_are_looked_through() -> None:
    check("LSTM", [floats(T, B, N)], stored={**weights("LSTM", 1), 7: floats(1, 3 * H)}, outputs=3, hidden_size=H)


def test_computed_weights_are_reordered_while_running() -> None:
    stored = weights("LSTM", 1)
    check("LSTM", [floats(T, B, N), stored[1], stored[2], stored[3]], outputs=3, hidden_size=H)


def test_a_form_that_torch_lacks_over_a_varying_length_is_refused() -> None:
    proto, _ = one_node("GRU", [floats(T, B, N)], stored=weights("GRU", 1), hidden_size=H)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "time"
    model = read_onnx(model_of(proto.graph).SerializeToString())
    with pytest.raises(Exception, match="GRU") as caught:
        captured(model)
    error = caught.value
    assert isinstance(error, UnsupportedOpError) and error.code == "DS0198" and "linear_before_reset=1" in error.why

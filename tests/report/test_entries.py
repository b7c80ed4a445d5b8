"""What a manifest says of quantisation, read from strangers: kept where it is right, refused in words where it is not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.errors import ArtifactError
from dsopt.report.entries import read_accuracy, read_values
from dsopt.report.page import page

VALUE: dict[str, Any] = {
    "node": "relu", "layer": "features.2", "op": "aten.relu.default", "kind": "activation", "bits": 8, "scale": [0.5, 0.5],
    "zero_point": -128, "grid": [0.0, 127.5], "observed": [0.0, 200.0], "saturated": 0.25, "snr": 31.5, "histogram": [9, 4, 0, 1],
}  # fmt: skip
WEIGHT = VALUE | {
    "kind": "weight", "bits": 4, "scale": [0.1, 0.2], "zero_point": 0, "grid": [-1.4, 1.4], "observed": [-1.4, 1.4],
    "saturated": None, "snr": None, "histogram": [1] * 15,
}  # fmt: skip
ACCURACY: dict[str, Any] = {
    "metric": "accuracy", "float": 91.5, "quantised": 91.0, "drop": 0.5, "drop_unit": "points", "max_drop": 1.0, "passes": True,
    "samples": 800, "place": "ONNX Runtime", "calibration_samples": 100, "held_out": True, "kept": {"conv": "16-bit results"},
    "layers": [{"node": "conv", "layer": "stem", "op": "aten.conv2d.default", "source": "net.py:1", "snr": 12.5}],
}  # fmt: skip
MANIFEST: dict[str, Any] = {
    "target": "cpu", "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 3]}], "files": {"model.onnx": {"bytes": 1234, "sha256": "0" * 64}},
    "memory": {"ram_bytes": 4321, "buffers": []}, "passes": [{"name": "quantize", "skips": ["%gru: why"], "notes": ["%conv: dead"]}],
    "quantization": [VALUE, WEIGHT], "accuracy": ACCURACY, "calibration": {"samples": 100}, "check": {"checked": True, "place": "here"},
}  # fmt: skip

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def test_what_dsopt_writes_is_read() -> None:
    first, second = read_values(MANIFEST)
    assert (first.name, first.scale, first.observed, first.saturated) == ("features.2", (0.5, 0.5), (0, 200), 0.25)
    assert (second.is_weight, second.saturated, second.snr) == (True, None, None)
    found = read_accuracy(MANIFEST)
    assert found is not None
    assert (found.value, found.max_drop, found.layers[0].raised_to) == (91, 1, "16-bit results")
    assert read_values({}) == ()
    assert read_accuracy({}) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"scale": [1, 2, 3]}, "'scale' .* no pair of numbers"),
        ({"observed": [2, 1]}, "'observed' .* ends before it begins"),
        ({"grid": [0, 10**400]}, "'grid' .* no pair of numbers"),
        ({"grid": [float("-inf"), 0]}, "'grid' .* no pair of numbers"),
        ({"snr": True}, "'snr' .* no number"),
        ({"bits": -1}, "'bits' .* negative"),
        ({"zero_point": 1.5}, "'zero_point' .* no whole number"),
        ({"histogram": [1.5]}, "'histogram' .* no count"),
        ({"histogram": [0] * 5000}, "'histogram' .* too long"),
        ({"layer": ["a"]}, "'layer' .* no text"),
    ],
)
def test_a_malformed_value_is_refused_by_its_field(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ArtifactError, match=f"DS0804: .*{why}"):
        read_values({"quantization": [VALUE | change]})


@pytest.mark.parametrize(
    ("change", "why"),
    [({"passes": 1}, "'passes'"), ({"float": "1"}, "'float'"), ({"kept": []}, "'kept'"), ({"layers": [3]}, "'layers'")],
)
def test_a_malformed_verdict_is_refused_by_its_field(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ArtifactError, match=f"DS0804: .*{why}"):
        read_accuracy({"accuracy": ACCURACY | change})


@given(key=st.sampled_from(sorted(VALUE)), part=ANYTHING)
def test_any_value_becomes_a_page_or_a_sentence(key: str, part: Any) -> None:
    try:
        text = page("net", MANIFEST | {"quantization": [VALUE | {key: part}, WEIGHT | {key: part}]})
    except ArtifactError:
        return
    assert text.encode().endswith(b"</html>\n")


@given(key=st.sampled_from(sorted(ACCURACY)), part=ANYTHING)
def test_any_verdict_becomes_a_page_or_a_sentence(key: str, part: Any) -> None:
    try:
        text = page("net", MANIFEST | {"accuracy": ACCURACY | {key: part}})
    except ArtifactError:
        return
    assert text.encode().endswith(b"</html>\n")


@given(key=st.sampled_from(["calibration", "check"]), part=ANYTHING)
def test_any_other_record_becomes_a_page(key: str, part: Any) -> None:
    assert page("net", MANIFEST | {key: part}).encode().endswith(b"</html>\n")


@given(record=st.dictionaries(st.sampled_from(["name", "skips", "notes"]), ANYTHING))
def test_any_record_of_a_pass_becomes_a_page(record: dict[str, Any]) -> None:
    assert page("net", MANIFEST | {"passes": [record]}).encode().endswith(b"</html>\n")

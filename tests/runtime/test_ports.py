"""Arrays in the memory of a chip: what the runtime, which has no torch, rounds is what the one rule of rounding says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.errors import ArtifactError
from dsopt.ops.rounding import dequantize, quantize
from dsopt.runtime.ports import Port

BOUNDS = {"int8": (-128, 127), "int16": (-32768, 32767), "uint8": (0, 255)}


@given(
    st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=20),
    st.floats(2.0**-20, 2.0**10, width=32),
    st.sampled_from(sorted(BOUNDS)),
    st.data(),
)
def test_ports_of_integers_round_as_the_operators_do(
    values: list[float], scale: float, dtype: str, data: st.DataObject
) -> None:
    low, high = BOUNDS[dtype]
    zero = data.draw(st.integers(low, high))
    stored = {"dtype": dtype, "scale": scale, "zero_point": zero, "low": low, "high": high}
    port = Port.of({"name": "x", "shape": [len(values)], "dtype": "float32", "stored": stored})
    x = np.array(values, np.float32)
    written = port.write(x)
    assert len(written) == port.byte_count
    wanted = quantize(x, scale, zero, low, high)
    np.testing.assert_array_equal(np.frombuffer(written, dtype), wanted)
    np.testing.assert_array_equal(port.read(written), dequantize(wanted, scale, zero))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_images_with_channels_last_are_read_in_the_order_of_their_shape(batch: int, C: int, H: int, W: int) -> None:
    port = Port.of({"name": "x", "shape": [batch, C, H, W], "dtype": "int8", "channels_last": True})
    x = np.arange(batch * C * H * W, dtype=np.int8).reshape(batch, C, H, W)
    np.testing.assert_array_equal(port.read(x.transpose(0, 2, 3, 1).tobytes()), x)


@pytest.mark.parametrize(
    "stored", [{}, {"dtype": "int8", "scale": 0.0, "zero_point": 0, "low": -128, "high": 127}, {"dtype": "float64"}]
)
def test_a_manifest_that_does_not_say_how_a_port_is_stored_is_refused(stored: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match="DS0862: the manifest does not say how 'x' is stored"):
        Port.of({"name": "x", "shape": [1], "dtype": "float32", "stored": stored})

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsopt.errors import UsageError
from dsopt.frontend.example import parse_input_spec


@pytest.mark.parametrize(
    ("text", "name", "shape", "dtype"),
    [
        ("x:2x3x224x224:float32", "x", (2, 3, 224, 224), torch.float32),
        ("x:4", "x", (4,), torch.float32),
        ("x::float", "x", (), torch.float32),
        ("opts.k:1,2:half", "opts.k", (1, 2), torch.float16),
        ("ids:1x16:long", "ids", (1, 16), torch.int64),
        ("ids:1*16:torch.int32:5..9", "ids", (1, 16), torch.int32),
        ("mask:3:bool", "mask", (3,), torch.bool),
    ],
)
def test_an_input_is_described_in_one_text(text: str, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found, tensor = parse_input_spec(text)
    assert (found, tuple(tensor.shape), tensor.dtype) == (name, shape, dtype)


def test_the_same_text_gives_the_same_numbers() -> None:
    assert torch.equal(parse_input_spec("x:5")[1], parse_input_spec("x:5")[1])
    assert not torch.equal(parse_input_spec("x:5")[1], parse_input_spec("y:5")[1])


def test_integers_are_small_unless_a_range_is_given() -> None:
    assert set(parse_input_spec("i:1000:int64")[1].tolist()) == {0, 1}
    assert set(parse_input_spec("i:1000:int8:-2..2")[1].tolist()) == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("x", "DS0160", "'x' does not describe an input"),
        ("", "DS0160", "does not describe"),
        ("x:1:2:3:4", "DS0160", "does not describe"),
        ("1x:3", "DS0160", "does not describe"),
        ("x:2y3", "DS0160", "'2y3' in 'x:2y3' is not a shape"),
        ("x:-1x3", "DS0160", "is not a shape"),
        ("x:2x", "DS0160", "is not a shape"),
        ("x:3:flaot32", "DS0161", "Did you mean float32? Known: float32"),
        ("x:3:complex64", "DS0161", "is not a dtype"),
        ("x:0x3", "DS0162", "axis of size 0"),
        ("x:999999999x999999999", "DS0162", "bytes; an example may have"),
        ("x:3:int8:0..999", "DS0162", "does not fit torch.int8"),
        ("x:3:int8:9..0", "DS0162", "is empty"),
        ("x:3:float32:0..9", "DS0160", "is not a range of integers"),
        ("x:3:int8:many", "DS0160", "is not a range"),
    ],
)
def test_another_text_is_refused_with_the_right_form(text: str, code: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_input_spec(text)
    assert caught.value.code == code
    assert words in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="x1230:.int64float,-", max_size=14))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert parse_input_spec(text)[1].numel() >= 1
    except UsageError as error:
        assert error.fix

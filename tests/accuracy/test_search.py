"""The search for the fewest operators to raise, against trying every number of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsopt import PassContext, PassManager, parse_pipeline
from dsopt.accuracy.search import candidates, ladder
from dsopt.accuracy.sensitivity import LayerSensitivity, sensitivities
from dsopt.passes.base import Pass, make_pass
from tests.accuracy.nets import layers, samples


def _layers(count: int) -> list[LayerSensitivity]:
    return [LayerSensitivity(f"n{number}", "", "op", "", float(number), 4, 8) for number in range(count)]


def _count(quantizer: Pass, option: str) -> int:
    return len([part for part in str(getattr(quantizer, option)).split("|") if part])


@given(count=st.integers(1, 20), needed=st.integers(1, 20))
def test_the_least_sufficient_number_of_operators_is_found(count: int, needed: int) -> None:
    tried: list[Pass] = []

    def is_good(quantizer: Pass) -> bool:
        tried.append(quantizer)
        return _count(quantizer, "int16") >= needed

    found = candidates(make_pass("quantize", {}), _layers(count), "int16", is_good)
    if needed > count:
        assert found is None
        return
    assert found is not None
    assert found.options == {"int16": "|".join(f"n{number}" for number in range(needed))}
    assert found.kept == {f"n{number}": "16-bit results" for number in range(needed)}
    assert len(tried) <= 2 + count.bit_length() + 8


@pytest.mark.parametrize(
    ("options", "fallback", "steps"),
    [
        ({}, "none", []),
        ({}, "int16", ["int16"]),
        ({}, "float", ["int16", "keep"]),
        ({"weights": 4}, "int16", ["int8", "int16"]),
        ({"int4": "head"}, "int16", ["int8", "int16"]),
        ({"activations": 16}, "int16", []),
        ({"activations": 16, "weights": 4}, "float", ["int8", "keep"]),
    ],
)
def test_precisions_are_tried_from_the_cheapest_on(options: dict[str, Any], fallback: str, steps: list[str]) -> None:
    assert [option for option, _ in ladder(make_pass("quantize", options), fallback)] == steps


@st.composite
def _needs(draw: st.DrawFn) -> tuple[int, dict[str, frozenset[str]]]:
    """Return a number of operators, and which of them must be raised by each option."""
    count = draw(st.integers(1, 9))
    names = st.frozensets(st.sampled_from([f"n{number}" for number in range(count)]))
    return count, {option: draw(names) for option in ("int8", "int16", "keep")}


@given(_needs())
def test_operators_that_need_not_be_raised_are_not(case: tuple[int, dict[str, frozenset[str]]]) -> None:
    """Of few operators every one that a step raises without need is found; float does what the other two would have done."""
    count, needed = case

    def is_good(quantizer: Pass) -> bool:
        got = {option: set(str(getattr(quantizer, option)).split("|")) for option in needed}
        floats = got["keep"]
        return floats >= needed["keep"] and all(got[each] | floats >= needed[each] for each in ("int8", "int16"))

    found = candidates(make_pass("quantize", {"weights": 4}), _layers(count), "float", is_good)
    assert found is not None
    assert is_good(make_pass("quantize", {"weights": 4, **found.options}))
    raised = {option: frozenset(str(found.options.get(option, "")).split("|")) - {""} for option in needed}
    if needed["keep"]:
        assert raised["keep"] == needed["keep"]
    elif needed["int16"]:
        assert raised["int16"] == needed["int16"]
        assert not raised["keep"]
    if needed["keep"] or needed["int16"]:
        assert raised["int8"] == needed["int8"] - raised["keep"]
        assert raised["int16"] == needed["int16"] - raised["keep"]


def test_operators_are_raised_only_by_what_changes_them() -> None:
    """Weights of 8 bits mean nothing to a sum, and results of 16 bits nothing where they are so already."""
    seen: list[Pass] = []
    layers_ = [
        LayerSensitivity("sum", "", "add", "", 0.0, 0, 8),
        LayerSensitivity("wide", "", "linear", "", 1.0, 4, 16),
        LayerSensitivity("plain", "", "linear", "", 2.0, 4, 8),
    ]

    def is_good(quantizer: Pass) -> bool:
        seen.append(quantizer)
        return _count(quantizer, "int16") >= 2

    found = candidates(make_pass("quantize", {"weights": 4}), layers_, "int16", is_good)
    assert found is not None
    assert found.kept == {"sum": "16-bit results", "plain": "16-bit results"}
    assert {str(vars(each)["int8"]) for each in seen} <= {"", "wide", "wide|plain", "plain"}


def test_both_precisions_of_an_operator_are_named() -> None:
    def is_good(quantizer: Pass) -> bool:
        return "n1" in vars(quantizer)["int8"] and "n1" in vars(quantizer)["int16"]

    found = candidates(make_pass("quantize", {"weights": 4}), _layers(2), "int16", is_good)
    assert found is not None
    assert found.kept == {"n1": "8-bit weights, 16-bit results"}


def test_what_the_user_raised_stays_raised() -> None:
    found = candidates(
        make_pass("quantize", {"keep": "head"}), _layers(2), "float", lambda each: _count(each, "keep") >= 2
    )
    assert found is not None
    assert found.options == {"keep": "head|n0"}


def test_the_layer_that_suffers_comes_first() -> None:
    context = PassContext(calibration=[{"x": torch.from_numpy(samples(50))}])
    prepared, _ = PassManager(parse_pipeline("quantize-prepare{weights=4}")).run(layers(3.0), context)
    found = sensitivities(prepared, [{"x": samples(20)}])
    assert found[0].layer == "second"
    assert [each.snr for each in found] == sorted(each.snr for each in found)
    assert found[0].snr < 10 < found[1].snr  # decibels: its own weights are all rounded to nothing


def test_rounding_one_operator_alone_is_what_the_program_gives_with_the_others_in_float() -> None:
    """Compare with a program in which all other layers are kept in float by an option."""
    x = samples(50)
    context = PassContext(calibration=[{"x": torch.from_numpy(x)}])
    program = layers(3.0)
    prepared, _ = PassManager(parse_pipeline("quantize-prepare{weights=4}")).run(program, context)
    found = {each.layer: each.snr for each in sensitivities(prepared, [{"x": x}])}
    alone, _ = PassManager(parse_pipeline("quantize-prepare{weights=4,keep=first|second}")).run(program, context)
    wanted = program.run(torch.from_numpy(x))[0].double()
    got = alone.run(torch.from_numpy(x))[0].double()
    snr = 10 * torch.log10((wanted**2).sum() / ((got - wanted) ** 2).sum())
    # the other program also rounds what enters the layer
    assert found["third"] == pytest.approx(float(snr), abs=0.5)

"""Every converter takes the arguments that torch's schema of its operator has."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from dsopt.backends.cpu.registry import CONVERTERS, load_converters, operator_key

load_converters()
OPERATORS = sorted(key for key in CONVERTERS if key.startswith("aten.") or key.startswith("dsopt."))


def operator(key: str) -> Any:
    namespace, packet, overload = key.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


@pytest.mark.parametrize("key", OPERATORS)
def test_a_converter_binds_all_arguments_of_the_schema_and_the_required_ones_alone(key: str) -> None:
    found = operator(key)
    assert operator_key(found) == key
    arguments = found._schema.arguments
    signature = inspect.signature(CONVERTERS[key])
    for chosen in (arguments, [a for a in arguments if not a.has_default_value()]):
        positional = [None for argument in chosen if not argument.kwarg_only]
        signature.bind(None, *positional, **{argument.name: None for argument in chosen if argument.kwarg_only})


def test_most_operators_of_the_tables_are_not_lowered() -> None:
    assert len(OPERATORS) > 400

"""Conversions of dtype, and the operators that return their input."""

from __future__ import annotations

from typing import Any

from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.registry import RefusalError, converter


@converter(
    "aten.to.dtype",
    "aten.to.dtype_layout",
    "aten.to.device",
    "aten.to.other",
    "aten._to_copy.default",
    "aten.type_as.default",
)
def convert_cast(cx: Emitter, x: fx.Node, *args: Any, **kwargs: Any) -> Value:
    """Write a cast to the recorded dtype."""
    return cx.cast(cx.value(x), cx.dtype)


@converter(
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.detach.default",
    "aten.detach_.default",
    "aten.alias.default",
    "aten.lift_fresh_copy.default",
    "aten.lift_fresh.default",
    "aten.view.dtype",
    "aten.positive.default",
    "aten.resolve_conj.default",
    "aten.resolve_neg.default",
    "prims.device_put.default",
)
def convert_identity(cx: Emitter, x: fx.Node, *args: Any, **kwargs: Any) -> Value:
    """Pass the value on."""
    value = cx.value(x)
    if value.dtype != cx.dtype:
        raise RefusalError("it reads the bits of one dtype as another", "convert the value with .to(dtype)")
    return value


@converter(
    "aten.dropout.default",
    "aten.feature_dropout.default",
    "aten.alpha_dropout.default",
    "aten.feature_alpha_dropout.default",
)
def convert_dropout(cx: Emitter, x: fx.Node, p: float, train: bool) -> Value:
    """Pass the value on; dropout does nothing at inference."""
    if train and p:
        raise RefusalError("dropout in training mode gives random results", "call model.eval() before capturing")
    return cx.value(x)


@converter("aten.native_dropout.default")
def convert_native_dropout(cx: Emitter, x: fx.Node, p: float, train: bool | None) -> tuple[Value, None]:
    """Pass the value on."""
    return convert_dropout(cx, x, p, bool(train)), None

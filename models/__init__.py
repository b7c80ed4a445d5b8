"""Complete example models over dsopt's public API, each in a file of its own with a factory that returns a `dsopt.ModelSpec`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsopt import ModelSpec

MODELS: dict[str, str] = {
    "kws": "models.keyword_spotting:kws",
    "ic": "models.resnet8:ic",
    "vww": "models.mobilenet_v1:vww",
    "ad": "models.autoencoder:ad",
    "mobilenet_v2": "models.mobilenet_v2:mobilenet_v2",
    "resnet18": "models.resnet:resnet18",
    "resnet50": "models.resnet:resnet50",
    "resnet152": "models.resnet:resnet152",
    "bert": "models.bert:bert",
    "gpt": "models.gpt:gpt",
    "gpt_decode": "models.gpt:gpt_decode",
    "lstm": "models.rnn:lstm",
    "gru": "models.rnn:gru",
    "unet": "models.unet:unet",
    "digits": "models.digits:digits",
    "sst2": "models.sentiment:sst2",
    "fd001": "models.turbofan:fd001",
}
"""Factories by id, as `dsopt compile models.resnet:resnet50` takes them."""


def build(name: str) -> ModelSpec:
    """Call the factory of the model `name` of `MODELS`. Raises KeyError naming the known ones."""
    if name not in MODELS:
        raise KeyError(f"no model {name!r}; known: {', '.join(MODELS)}")
    module, _, factory = MODELS[name].partition(":")
    spec: ModelSpec = getattr(import_module(module), factory)()
    return spec

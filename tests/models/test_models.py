"""Every model builds, repeats, captures with the dims it says vary, and has the published number of parameters."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import dsopt
import models
from dsopt import ModelSpec
from models.bert import ATTENTION, Bert, bert
from models.resnet import resnet18

SLOW = {"resnet152"}
ALL = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in models.MODELS]

# Trained numbers, without the running statistics of batch normalisation.
PARAMETERS = {
    # torchvision.models, "num_params" of the weights' documentation
    "mobilenet_v2": 3_504_872,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnet152": 60_192_808,
    # Keras' "Trainable params" of the MLPerf Tiny reference models (github mlcommons/tiny)
    "kws": 23_756,
    "ic": 78_186,
    "vww": 216_322,
    "ad": 267_928,
    # google/bert_uncased_L-4_H-256_A-4
    "bert": 11_170_560,
}

# Bytes of the int8 reference models of MLPerf Tiny: one a weight, four a bias, batch normalisation folded.
INT8_BYTES = {"kws": 24_368, "ic": 78_744, "vww": 219_064, "ad": 270_880}


def resize(spec: ModelSpec, sizes: dict[str, int]) -> ModelSpec:
    """Return the spec with its example repeated or cut to `sizes`."""
    names = list(inspect.signature(spec.model.forward).parameters)

    def fit(name: str, value: Tensor) -> Tensor:
        for axis, dim in spec.dynamic.get(name, {}).items():
            value = torch.cat([value] * 2, axis).narrow(axis, 0, sizes[dim])
        return value

    args = tuple(fit(name, value) for name, value in zip(names, spec.args, strict=False))
    return spec._replace(args=args, kwargs={name: fit(name, value) for name, value in spec.kwargs.items()})


def run(spec: ModelSpec) -> list[Tensor]:
    with torch.inference_mode():
        return pytree.tree_leaves(spec.model(*spec.args, **spec.kwargs))


@pytest.mark.parametrize("name", ALL)
def test_a_model_is_seeded_finite_and_listens_to_its_input(name: str) -> None:
    state = torch.random.get_rng_state()
    spec, again = models.build(name), models.build(name)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not spec.model.training
    results = run(spec)
    for result, repeated in zip(results, run(again), strict=True):
        assert result.isfinite().all()
        assert torch.equal(result, repeated)
    if spec.dynamic:
        for result in results:
            assert (result[0] - result[1]).abs().max() > 1e-3 * result.abs().max()


@pytest.mark.parametrize("name", ALL)
def test_a_captured_model_works_at_every_size_it_says_varies(name: str) -> None:
    spec = models.build(name)
    program = dsopt.capture(spec)
    assert set(program.dims) == {dim for axes in spec.dynamic.values() for dim in axes.values()}
    for sizes in ({"batch": 1, "sequence": 5}, {"batch": 3, "sequence": 16}) if spec.dynamic else ({},):
        resized = resize(spec, sizes)
        inputs = pytree.tree_leaves((resized.args, dict(resized.kwargs)))
        for result, expected in zip(program.run(*inputs), run(resized), strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [p for p in ALL if p.values[0] in PARAMETERS])
def test_a_model_has_the_published_number_of_parameters(name: str) -> None:
    assert sum(parameter.numel() for parameter in models.build(name).model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", INT8_BYTES)
def test_a_folded_tiny_model_has_the_weights_of_the_int8_reference(name: str) -> None:
    module, _, factory = models.MODELS[name].partition(":")
    spec = getattr(__import__(module, fromlist=[factory]), factory)(folded=True)
    parameters = dict(spec.model.named_parameters())
    biases = sum(value.numel() for key, value in parameters.items() if key.endswith("bias"))
    weights = sum(value.numel() for key, value in parameters.items() if key.endswith("weight"))
    assert weights + 4 * biases == INT8_BYTES[name]


def test_the_large_published_encoder_is_reached_by_depth_and_width() -> None:
    with torch.device("meta"):
        model = Bert(12, 768, 12)
    # google-bert/bert-base-uncased, without its heads
    assert sum(parameter.numel() for parameter in model.parameters()) == 109_482_240


@pytest.mark.parametrize("attention", ATTENTION)
def test_all_ways_to_write_attention_agree_and_ignore_padding(attention: str) -> None:
    spec = bert(layers=2, hidden=32, vocabulary=50, attention=attention)
    expected = run(bert(layers=2, hidden=32, vocabulary=50))
    (ids,), mask = spec.args, spec.kwargs["mask"]
    for result, reference in zip(run(spec), expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-5, atol=1e-5)
    changed = torch.where(mask.bool(), ids, (ids + 1) % 50)
    assert not torch.equal(changed, ids)
    torch.testing.assert_close(run(spec._replace(args=(changed,)))[1], expected[1], rtol=1e-5, atol=1e-5)
    assert set(dsopt.capture(spec).dims) == {"batch", "sequence"}


def test_batch_normalisation_has_statistics_that_folding_must_get_right() -> None:
    for layer in resnet18(side=32).model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for value, default in ((layer.running_mean, 0), (layer.running_var, 1), (layer.weight, 1), (layer.bias, 0)):
                assert value is not None
                assert (value - default).abs().max() > 0.05


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    with pytest.raises(KeyError, match="no model 'resnet99'; known: kws, ic"):
        models.build("resnet99")

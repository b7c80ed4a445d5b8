"""qat: it learns, it is the same for the same seed, and it takes what loaders, teachers and scores there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsopt.errors import CheckError, UsageError
from dsopt.train import QatResult, qat
from models import digits
from tests.train.nets import Pair, digit_batches, net_program, pair_program, random_loader, same_weights


def _train(loader: Any = None, **options: Any) -> QatResult:
    chosen: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-2, **options}
    return qat(net_program(), random_loader() if loader is None else loader, F.cross_entropy, **chosen)


@pytest.mark.parametrize("bits", [8, 4])
def test_digits_are_learned_from_nothing(bits: int) -> None:
    batches = digit_batches(20)
    result = qat(net_program(), batches, F.cross_entropy, epochs=5, learning_rate=2e-2, quantize=f"weights={bits}")
    losses = [epoch.loss for epoch in result.history]
    assert [epoch.number for epoch in result.history] == list(range(5))
    assert losses[-1] < 0.5 * losses[0]
    # better than what needs no training: the nearest mean image of a class
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    means = torch.stack([images[labels == label].mean(0) for label in range(10)])
    data = digits.load_digits()
    nearest = torch.cdist(data.x_test.flatten(1), means.flatten(1)).argmin(1)
    baseline = float((nearest == data.y_test).float().mean())
    for program in (result.program, result.prepared):
        with torch.no_grad():
            guesses = program.module()(data.x_test).argmax(1)
        assert float((guesses == data.y_test).float().mean()) > baseline


def test_the_same_seed_gives_the_same_program_whatever_was_drawn_before() -> None:
    one = _train(seed=3)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    other = _train(seed=3)
    assert torch.equal(torch.get_rng_state(), state)  # and the caller's generator is left as it was
    assert same_weights(one.program, other.program)
    assert one.history == other.history
    assert not same_weights(one.program, _train(seed=4).program)


def test_a_generator_of_the_loader_is_left_as_it_was() -> None:
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    one = _train(random_loader(generator=generator))
    assert torch.equal(generator.get_state(), state)
    generator.manual_seed(6)
    assert same_weights(one.program, _train(random_loader(generator=generator)).program)


def test_the_program_given_is_not_changed() -> None:
    program = net_program()
    text, weights = program.text(), {name: value.clone() for name, value in program.weights.items()}
    qat(program, random_loader(), F.cross_entropy, epochs=1)
    assert program.text() == text
    assert all(torch.equal(value, program.weights[name]) for name, value in weights.items())


class Batch(NamedTuple):
    inputs: Any
    target: Tensor


def _pairs(kind: str) -> list[Any]:
    generator = torch.Generator().manual_seed(2)
    made: list[Any] = []
    for _ in range(4):
        a, b = (torch.randn(16, size, generator=generator) for size in (4, 3))
        target = (a.sum(1) - b.sum(1)).abs()
        made.append(Batch({"a": a, "b": b}, target) if kind == "named" else ({"b": b, "a": a}, target))
    return made


@pytest.mark.parametrize("kind", ["dict", "named"])
def test_inputs_may_be_given_by_name_and_outputs_may_be_a_dict(kind: str) -> None:
    result = qat(
        pair_program(), _pairs(kind), lambda out, wanted: F.mse_loss(out["sum"], wanted), epochs=20, learning_rate=3e-2
    )
    assert result.history[-1].loss < 0.3 * result.history[0].loss
    inputs, target = _pairs(kind)[0]
    # eager arithmetic on the same data says how far off "no answer" would be
    got = result.program.module()(**inputs)["sum"]
    assert float(F.mse_loss(got, target)) < 0.3 * float(target.square().mean())


def test_a_teacher_is_asked_without_gradients_and_left_alone() -> None:
    torch.manual_seed(1)
    teacher = Pair()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    seen: list[Any] = []

    def loss(out: Any, wanted: Tensor, taught: Any) -> Tensor:
        seen.append(taught["sum"])
        return F.mse_loss(out["sum"], taught["sum"])

    result = qat(pair_program(), _pairs("dict"), loss, epochs=10, learning_rate=3e-2, teacher=teacher)
    assert result.history[-1].loss < 0.5 * result.history[0].loss
    assert not any(each.requires_grad for each in seen)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    inputs, _ = _pairs("dict")[0]
    assert torch.equal(seen[0], teacher(**inputs)["sum"])


def test_a_program_may_be_the_teacher() -> None:
    loader = random_loader()

    def loss(out: Tensor, target: Tensor, taught: Tensor) -> Tensor:
        return F.kl_div(out.log_softmax(1), taught.log_softmax(1), log_target=True, reduction="batchmean")

    result = qat(net_program(0), loader, loss, epochs=3, learning_rate=1e-2, teacher=net_program(1))
    assert result.history[-1].loss < result.history[0].loss


def test_validate_keeps_the_best_epoch() -> None:
    kept: list[dict[str, Tensor]] = []
    scores = iter([0.1, 0.9, float("nan"), 0.9, 0.3])

    def validate(module: nn.Module) -> float:
        assert not module.training
        kept.append({name: value.clone() for name, value in module.state_dict().items()})
        return next(scores)

    result = _train(epochs=5, validate=validate, reestimate_batches=0)
    assert str([epoch.score for epoch in result.history]) == "[0.1, 0.9, nan, 0.9, 0.3]"
    best = {name.replace("/", "."): value for name, value in kept[1].items()}
    assert all(torch.equal(value, result.prepared.weights[name]) for name, value in best.items())
    assert not torch.equal(best["head.weight"], kept[3]["head/weight"])


def test_a_score_that_is_no_number_is_not_the_best() -> None:
    scores = iter([float("nan"), 0.2, 0.1])
    kept: list[Tensor] = []

    def validate(module: nn.Module) -> float:
        kept.append(module.state_dict()["head/weight"].clone())
        return next(scores)

    result = _train(epochs=3, validate=validate, reestimate_batches=0)
    assert torch.equal(result.prepared.weights["head.weight"], kept[1])


def test_what_validate_runs_does_not_move_the_grids() -> None:
    def validate(module: nn.Module) -> float:
        module(torch.full((2, 1, 8, 8), 1e3))
        return 0.0

    options: dict[str, Any] = {"observe": 1.0, "reestimate_batches": 0, "epochs": 1}
    plain, judged = _train(**options), _train(validate=validate, **options)
    assert same_weights(plain.prepared, judged.prepared)


def test_the_loss_that_is_no_number_stops_the_training() -> None:
    calls = 0

    def loss(out: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(out, target) * (float("nan") if calls == 8 else 1.0)

    state = torch.get_rng_state()
    with pytest.raises(CheckError, match="the loss is nan at step 7 of epoch 1") as refused:
        qat(net_program(), random_loader(), loss, epochs=2)
    assert refused.value.code == "DS0363"
    assert torch.equal(torch.get_rng_state(), state)


def _once() -> Iterator[Any]:
    yield from random_loader()


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (_once(), "can be iterated only once"),
        ([torch.zeros(2, 1, 8, 8)], "gave a Tensor"),
        ([({"image": torch.zeros(2, 1, 8, 8)}, torch.zeros(2))], "do not fit the program"),
        ([((torch.zeros(2, 1, 8, 8), torch.zeros(1)), torch.zeros(2))], "do not fit the program"),
    ],
    ids=["generator", "no pair", "another name", "one too many"],
)
def test_a_loader_that_does_not_fit_is_refused(loader: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        _train(loader)
    assert refused.value.code == "DS0366"


def test_a_loader_without_batches_is_refused() -> None:
    with pytest.raises(UsageError, match="no batch") as refused:
        _train([])
    assert refused.value.code == "DS0366"


@pytest.mark.parametrize("options", [{"observe": 1.5}, {"freeze_batch_norm": -0.1}])
def test_shares_outside_of_0_to_1_are_refused(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(UsageError, match=f"{name} is .* must be a share of the steps"):
        _train(**options)


def test_options_for_a_program_that_is_prepared_are_refused_and_without_them_it_is_trained_on() -> None:
    first = _train()
    with pytest.raises(UsageError, match="prepared already"):
        qat(first.prepared, random_loader(), F.cross_entropy, epochs=1, quantize="weights=4")
    second = qat(first.prepared, random_loader(), F.cross_entropy, epochs=2, learning_rate=1e-2)
    assert second.history[-1].loss < first.history[0].loss


def test_progress_counts_every_step() -> None:
    seen: list[tuple[int, int]] = []
    _train(progress=lambda done, total, what: seen.append((done, total)))
    assert seen == [(step, 12) for step in range(1, 13)]


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    rates: list[float] = []

    class Recording(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    def small(out: Tensor, target: Tensor) -> Tensor:
        return 1e-9 * F.cross_entropy(out, target)

    qat(net_program(), random_loader(), small, epochs=10, optimizer=lambda groups: Recording(groups, lr=1.0))
    warmup = [(step + 1) / 3 for step in range(3)]
    cosine = [0.5 + 0.5 * np.cos(np.pi * (step - 3) / 57) for step in range(3, 60)]
    np.testing.assert_allclose(rates, [*warmup, *cosine], rtol=1e-12)

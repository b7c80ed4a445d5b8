"""distill: its loss is the one of the papers, computed here by hand in float64; it learns, stops, goes on, and leaves all else alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsopt.errors import ReadError, UsageError
from dsopt.frontend.export import export_module
from dsopt.ir import Program
from dsopt.passes.base import PassManager, parse_pipeline
from dsopt.train import DistillResult, distill
from dsopt.train.data import mixed_seed
from dsopt.train.distill_loss import label_loss, logit_loss
from tests.train.encoders import captured, encoder_batches, seeded_encoder
from tests.train.nets import StopError, net_program, random_loader, same_weights, stop_after


def _step(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1)


def _kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    return temperature**2 * (p * (p.log() - q.log())).sum(1).mean()


def _maps(model: Any, x: Tensor) -> list[Tensor]:
    found, x = [], model.stem(x)
    for layer in model.layers:
        found.append(layer.maps(layer.norm1(x))[0])
        x = layer(x)
    return found


def test_a_step_is_the_one_of_the_papers_losses_by_hand() -> None:
    student, teacher = seeded_encoder(0, layers=2), seeded_encoder(1, layers=4)
    x, y = encoder_batches(1)[0]
    program = captured(student)
    result = distill(
        program, captured(teacher), [(x, y)], epochs=1, optimizer=_step, labels=0.3, logits=0.7, hidden=0.2, attention=5.0,
        temperature=3.0,
    )  # fmt: skip
    with torch.no_grad():
        wanted, hidden, maps = teacher(x), teacher.hidden(x), _maps(teacher, x)
    loss = 0.3 * F.cross_entropy(student(x), y) + 0.7 * _kl(student(x), wanted, 3.0)
    # the student's layers 0 and 1 stand for the teacher's 0..1 and 2..3
    loss = loss + 0.2 * sum(((a - hidden[n]) ** 2).mean() for a, n in zip(student.hidden(x), (1, 3), strict=True)) / 2
    loss = loss + 5.0 * sum(((a - maps[n]) ** 2).mean() for a, n in zip(_maps(student, x), (1, 3), strict=True)) / 2
    loss.backward()
    assert result.history[0].loss == pytest.approx(float(loss.detach()), rel=1e-12)
    assert result.pairs == (("layers.0", "layers.1"), ("layers.1", "layers.3"))
    for name, value in student.named_parameters():
        after = value.detach() - 0.1 * value.grad
        torch.testing.assert_close(result.program.weights[name], after, rtol=1e-9, atol=1e-12)
    assert not torch.equal(result.program.weights["head.weight"], program.weights["head.weight"])


def test_a_narrower_student_learns_through_a_projection_that_is_dropped() -> None:
    student, teacher = seeded_encoder(0, layers=1, width=6), seeded_encoder(1, layers=2, width=8, heads=4)
    x, _ = encoder_batches(1)[0]
    program = captured(student)
    options: dict[str, Any] = {"labels": 0.0, "logits": 0.0, "hidden": 1.0, "attention": 0.5, "seed": 7}
    result = distill(program, captured(teacher), [(x, None)], epochs=1, **options)
    torch.manual_seed(mixed_seed(7, -2))
    projection = nn.Linear(6, 8, bias=False, dtype=torch.float64)
    with torch.no_grad():
        hidden = ((projection(student.hidden(x)[0]) - teacher.hidden(x)[1]) ** 2).mean()
        maps = ((_maps(student, x)[0].mean(1) - _maps(teacher, x)[1].mean(1)) ** 2).mean()
    assert result.history[0].loss == pytest.approx(float(hidden + 0.5 * maps), rel=1e-12)
    assert result.program.text() == program.text()
    assert sorted(result.program.weights) == sorted(program.weights)


def test_modules_that_the_user_names_are_compared() -> None:
    student, teacher = seeded_encoder(0, layers=2), seeded_encoder(1, layers=4)
    x, _ = encoder_batches(1)[0]
    options: dict[str, Any] = {"labels": 0.0, "logits": 0.0, "hidden": 1.0, "epochs": 1}
    pairs = [("stem", "stem"), ("layers.0", "layers.2"), ("layers.1.down", "layers.3.down")]
    result = distill(captured(student), captured(teacher), [(x, None)], pairs=pairs, **options)
    found: list[Tensor] = []
    for model in (student, teacher):
        for name in ("layers.1.down",) if model is student else ("layers.3.down",):
            model.get_submodule(name).register_forward_hook(lambda module, given, out: found.append(out))
        with torch.no_grad():
            model(x)
    with torch.no_grad():
        parts = [student.stem(x) - teacher.stem(x), student.hidden(x)[0] - teacher.hidden(x)[2], found[0] - found[1]]
    assert result.history[0].loss == pytest.approx(float(sum((each**2).mean() for each in parts)) / 3, rel=1e-12)


def test_labels_and_logits_of_every_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    classes = torch.randint(0, 4, (3, 5), generator=generator)
    by_hand = -logits.log_softmax(-1).gather(-1, classes[..., None]).mean()
    torch.testing.assert_close(label_loss(logits, classes), by_hand)
    number = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        label_loss(number, torch.arange(6.0).double()), ((number[:, 0] - torch.arange(6.0)) ** 2).mean()
    )
    bits = torch.tensor([0, 1, 1, 0, 1, 0])
    chance = number[:, 0].sigmoid()
    torch.testing.assert_close(label_loss(number, bits), -torch.where(bits > 0, chance, 1 - chance).log().mean())
    other = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    p, q = (other[:, 0] / 2).sigmoid(), (number[:, 0] / 2).sigmoid()
    by_hand = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(logit_loss(number, other, 2.0), by_hand)
    with pytest.raises(UsageError, match="first output"):
        logit_loss(number, logits, 1.0)


def _net(loader: Any = None, teacher: Program | None = None, **options: Any) -> DistillResult:
    chosen: dict[str, Any] = {"epochs": 3, "learning_rate": 1e-2, **options}
    return distill(net_program(0), teacher or net_program(1), loader or random_loader(), **chosen)


def test_the_student_comes_closer_to_its_teacher_and_the_programs_given_are_not_changed() -> None:
    student, teacher = captured(seeded_encoder(0, layers=1)), captured(seeded_encoder(1, layers=3))
    before = {name: value.clone() for name, value in [*student.weights.items(), *teacher.weights.items()]}
    batches = encoder_batches(8)
    result = distill(student, teacher, batches, epochs=15, learning_rate=1e-2, labels=0.0, logits=1.0, hidden=0.1)
    assert result.history[-1].loss < 0.5 * result.history[0].loss
    unseen = torch.randn(64, 5, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    wanted = teacher.run(unseen)[0]
    assert float(F.mse_loss(result.program.run(unseen)[0], wanted)) < 0.5 * float(
        F.mse_loss(student.run(unseen)[0], wanted)
    )
    assert all(torch.equal(value, before[name]) for name, value in teacher.weights.items())


def test_batch_norm_trains_and_dropout_drops_in_the_student_only() -> None:
    teacher = net_program(1)
    state = {name: value.clone() for name, value in teacher.weights.items()}
    result = _net(teacher=teacher, epochs=1)
    assert not torch.equal(result.program.weights["norm.running_mean"], net_program(0).weights["norm.running_mean"])
    assert all(torch.equal(value, state[name]) for name, value in teacher.weights.items())
    assert any("dropout" in str(node.target) for node in result.program.graph.nodes)
    x, _ = next(iter(random_loader(shuffle=False)))
    wanted = teacher.run(x)[0]

    def first_loss(seed: int) -> float:
        return _net([(x, None)], teacher, epochs=1, labels=0.0, logits=1.0, seed=seed).history[0].loss

    assert first_loss(0) == first_loss(0) != first_loss(1)  # dropout is drawn by the seed
    kept = distill(teacher, teacher, [(x, None)], epochs=1, labels=0.0, logits=1.0, learning_rate=0.0)
    assert kept.history[0].loss > 0  # a student in training mode is no copy of a teacher in eval mode
    assert torch.equal(teacher.run(x)[0], wanted)


def test_labels_alone_need_no_teacher_and_the_user_s_loss_is_taken() -> None:
    x, y = encoder_batches(1)[0]
    model = seeded_encoder(0, layers=1)
    result = distill(captured(model), None, [(x, y)], lambda out, want: (out[:, 0] - want).square().mean(), epochs=1,
                     labels=2.0, logits=0.0)  # fmt: skip
    with torch.no_grad():
        assert result.history[0].loss == pytest.approx(float(2 * (model(x)[:, 0] - y).square().mean()), rel=1e-12)
    with pytest.raises(UsageError, match="there is no teacher"):
        distill(captured(model), None, [(x, y)], epochs=1)


def test_training_ends_when_scores_no_longer_rise_and_keeps_the_best(tmp_path: Path) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.9, 0.9])
    kept: list[Tensor] = []

    def validate(module: nn.Module) -> float:
        assert not module.training
        kept.append(module.state_dict()["head/weight"].clone())
        return next(scores)

    path = tmp_path / "net.ckpt"
    result = _net(epochs=6, validate=validate, patience=2, checkpoint=path)
    assert [each.score for each in result.history] == [0.1, 0.5, 0.4, 0.5]
    assert torch.equal(result.program.weights["head.weight"], kept[1])
    again = _net(epochs=6, validate=validate, patience=2, checkpoint=path)  # it had ended, and has
    assert again.history == result.history
    assert same_weights(again.program, result.program)
    with pytest.raises(UsageError, match="patience needs scores"):
        _net(patience=1)


@pytest.mark.parametrize("stop", [2, 5])
def test_gone_on_with_is_the_same_as_never_stopped(tmp_path: Path, stop: int) -> None:
    teacher = captured(seeded_encoder(1, layers=2))
    student = captured(seeded_encoder(0, layers=1, width=6, dropout=0.2))
    options: dict[str, Any] = {
        "epochs": 2, "hidden": 1.0, "attention": 1.0, "checkpoint_steps": 1, "validate": lambda module: float(module.training),
    }  # fmt: skip
    whole = distill(student, teacher, encoder_batches(), **options)
    path = tmp_path / "stopped.ckpt"
    with pytest.raises(StopError):
        distill(student, teacher, encoder_batches(), checkpoint=path, progress=stop_after(stop), **options)
    torch.manual_seed(123)  # another process would have another state
    resumed = distill(student, teacher, encoder_batches(), checkpoint=path, **options)
    assert resumed.history == whole.history
    assert same_weights(resumed.program, whole.program)
    with pytest.raises(ReadError, match="belongs to another training"):
        distill(student, teacher, encoder_batches(), checkpoint=path, temperature=3.0, **options)


def test_a_pruned_program_is_a_student() -> None:
    teacher = captured(seeded_encoder(1, layers=2))
    pruned, _ = PassManager(parse_pipeline("prune{ratio=0.4}")).run(teacher)
    result = distill(
        pruned, teacher, encoder_batches(4), epochs=6, learning_rate=2e-2, labels=0.0, logits=1.0, hidden=0.2
    )
    assert result.history[-1].loss < 0.7 * result.history[0].loss
    assert {name: value.shape for name, value in result.program.weights.items()} == {
        name: value.shape for name, value in pruned.weights.items()
    }


class Images(nn.Module):
    """Convolutions whose channels differ in number between student and teacher."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, channels, 3), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.stem(x)).mean((2, 3)))


def test_channels_of_images_are_projected_too() -> None:
    small, large = Images(3).double().eval(), Images(5).double().eval()
    x = torch.randn(4, 1, 6, 6, dtype=torch.float64)
    programs = [export_module(model, (x,), {}, {"x": {0: "batch"}}) for model in (small, large)]
    result = distill(
        programs[0], programs[1], [(x, None)], epochs=1, labels=0.0, logits=0.0, hidden=1.0, pairs=[("stem", "stem")]
    )
    torch.manual_seed(mixed_seed(0, -2))
    weight = nn.Linear(3, 5, bias=False, dtype=torch.float64).weight
    with torch.no_grad():
        by_hand = ((F.conv2d(small.stem(x), weight[:, :, None, None]) - large.stem(x)) ** 2).mean()
    assert result.history[0].loss == pytest.approx(float(by_hand), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": 0.0, "logits": 0.0}, "all weights of the loss are 0"),
        ({"hidden": -1.0}, "hidden is -1.0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"hidden": 1.0}, "do not pair"),
        ({"hidden": 1.0, "pairs": [("conv", "nothing")]}, "the teacher has no module 'nothing'"),
        ({"hidden": 1.0, "pairs": [("conv", "head")]}, "a projection can change one width"),
        ({"attention": 1.0, "pairs": [("conv", "conv")]}, "no pair of points has attention"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _net(**options)


def test_a_loader_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="do not fit the program"):
        _net([({"image": torch.zeros(2, 1, 8, 8)}, torch.zeros(2))])

"""Images are varied and imitated as documented, and learning rates follow the size of what they change."""

from __future__ import annotations

import torch

from benchmarks.quantize.images import imitation, vary
from benchmarks.quantize.optimizer import SMALLEST, relative_adamw


def test_images_are_mirrored_and_moved_and_nothing_else() -> None:
    # pixels count up along one diagonal, so that mirrored and moved images are told apart by two of them
    image = (torch.arange(8)[:, None] * 8 + torch.arange(8)).float().expand(1, 1, 8, 8)
    torch.manual_seed(0)
    seen = set()
    for _ in range(400):
        (varied,) = vary(image.repeat(1, 3, 1, 1))
        assert torch.equal(varied[0], varied[1])
        middle = varied[0, 2:6, 2:6]
        right = int(middle[0, 1] - middle[0, 0])
        assert torch.equal(middle.diff(dim=1), torch.full((4, 3), float(right)))
        assert torch.equal(middle.diff(dim=0), torch.full((3, 4), 8.0))
        seen.add((right, int(middle[0, 0])))
    assert len(seen) == 2 * 5 * 5  # mirrored or not, by -2 to 2 down and across


def test_imitation_is_least_where_the_teacher_is_matched() -> None:
    teacher = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    label = torch.zeros(2, dtype=torch.int64)
    best = imitation(teacher, label, teacher)
    for step in (torch.tensor([0.1, -0.1, 0.0]), torch.tensor([-0.1, 0.0, 0.1])):
        other = (teacher + step).clamp(0, 1)
        assert imitation(other / other.sum(-1, keepdim=True), label, teacher) > best
    assert torch.isfinite(imitation(torch.tensor([[0.0, 1.0, 0.0]]), label[:1], teacher[1:]))


def test_a_step_is_a_share_of_the_tensor_that_it_changes() -> None:
    weight, tiny, bias, grid = (torch.nn.Parameter(torch.full((4,), value)) for value in (100.0, 0.01, 0.0, 1e-5))
    groups = [
        {"params": [weight, tiny], "weight_decay": 0.5},
        {"params": [bias], "weight_decay": 0.0},
        {"params": [grid], "weight_decay": 0.0},
    ]
    optimizer = relative_adamw(0.01)(groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.5, 0.0, 0.0]
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    for each in (weight, tiny, bias, grid):
        each.grad = torch.full((4,), 3.0)
    optimizer.step()
    # Adam's first step is the learning rate, up to its epsilon
    for each, moved in ((weight, 100 - 1.0), (tiny, 0.01 - 1e-4), (bias, -0.01 * SMALLEST), (grid, 1e-5 - 1e-7)):
        torch.testing.assert_close(each.detach(), torch.full((4,), moved))

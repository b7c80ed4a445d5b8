"""The prune pass: text, options, what it keeps, what it refuses, and that the result trains, exports and composes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsopt.errors import PassError, UsageError
from dsopt.frontend.export import export_module
from dsopt.ir import Program
from dsopt.ir.multiply_adds import multiply_adds
from dsopt.passes.base import PassContext, PassManager, parse_pipeline
from models.gpt import gpt_decode
from tests.passes.prune.nets import CNNS, conv_bn
from tests.passes.prune.oracle import masked_difference, program_of, pruned
from tests.passes.prune.transformers import TOKEN_NETS, TOKENS, WIDTH


def shapes(program: Program) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in program.weights.items()}


def mobile() -> Program:
    return program_of(CNNS["mobile"](), torch.randn(2, 3, 8, 8))


class Gating(nn.Module):
    """One hidden layer of 4 channels, of which channels 1 and 2 have small weights."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 2)
        with torch.no_grad():
            self.up.weight[1:3] *= 0.01
            self.down.weight[:, 1:3] *= 0.01

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x).view(-1, 2, 2)).view(-1, 4))


def test_the_smallest_channels_go_and_nothing_else_changes(capture_function: object) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[1:3] *= 0.01
        model[2].weight[:, 1:3] *= 0.01
    program = export_module(model, (torch.randn(5, 3),), {}, {"input": {0: "batch"}})
    result, record = pruned(program, "prune{ratio=0.46}")
    assert result.text() == (
        "program(%input: f32[batch, 3])\n"
        "%0 = linear(%input, @0.weight, @0.bias): f32[batch, 2]  # 0\n"
        "%1 = relu(%0): f32[batch, 2]  # 1\n"
        "%2 = linear(%1, @2.weight, @2.bias): f32[batch, 2]  # 2\n"
        "return output=%2\n"
    )
    assert torch.equal(result.weights["0.weight"], model[0].weight[[0, 3]])
    assert torch.equal(result.weights["2.weight"], model[2].weight[:, [0, 3]])
    assert record.changes == (
        "0.weight [4, 3] -> [2, 3]", "0.bias [4] -> [2]", "2.weight [2, 4] -> [2, 2]",
    )  # fmt: skip
    assert record.notes == ("parameters: 26 -> 14 (-46.15 %)", "multiply-adds: 100 -> 50 (-50.00 %)")


def test_sizes_in_arguments_follow() -> None:
    program = program_of(Gating(), torch.randn(5, 3))
    result, _ = pruned(program, "prune{ratio=0.4}")
    assert "reshape(%0, [-1, 1, 2])" in result.text()
    assert "reshape(%2, [-1, 2])" in result.text()
    assert masked_difference(program, result) <= 1e-10


def test_the_program_given_is_left_as_it_was() -> None:
    program = mobile()
    text, before = program.text(), {name: value.clone() for name, value in program.weights.items()}
    pruned(program, "prune{ratio=0.5}")
    assert program.text() == text
    assert all(torch.equal(program.weights[name], value) for name, value in before.items())


def test_the_same_program_gives_the_same_choice() -> None:
    first, second = (pruned(mobile(), "prune{ratio=0.5}") for _ in range(2))
    assert first[1] == second[1]
    assert all(torch.equal(value, second[0].weights[name]) for name, value in first[0].weights.items())


def test_kept_layers_keep_their_shapes() -> None:
    program = mobile()
    result, _ = pruned(program, "prune{ratio=0.15,keep=1.body.0|3.*}")
    before, after = shapes(program), shapes(result)
    kept = [name for name in before if name.startswith(("1.body.0.", "3."))]
    assert kept
    assert all(before[name] == after[name] for name in kept)
    assert before != after


def test_a_pattern_that_names_no_layer_is_refused() -> None:
    with pytest.raises(UsageError, match="keep='nowhere' names no layer") as refusal:
        pruned(mobile(), "prune{keep=nowhere}")
    assert refusal.value.code == "DS0372"
    assert "3.fc" in refusal.value.fix


@pytest.mark.parametrize("align", [4, 8])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_widths_are_multiples_of_the_alignment(align: int, scope: str) -> None:
    model = nn.Sequential(
        conv_bn(3, 32),
        conv_bn(32, 64),
        conv_bn(64, 64, groups=8),
        conv_bn(64, 48),
        nn.Flatten(),
        nn.Linear(48 * 16, 10),
    )
    result, record = pruned(
        program_of(model, torch.randn(1, 3, 4, 4)), f"prune{{ratio=0.5,align={align},scope={scope}}}"
    )
    assert record.changes
    for name, shape in shapes(result).items():
        if name.endswith("weight") and len(shape) == 4:
            assert shape[0] % align == 0, (name, shape)


def test_whole_heads_go_where_they_are_aligned() -> None:
    program = program_of(TOKEN_NETS["gqa_flag"](), torch.randn(2, TOKENS, WIDTH))
    result, _ = pruned(program, "prune{ratio=0.3,align=8}")
    assert all(shapes(result)[name][0] % 8 == 0 for name in ("q.weight", "kv.weight", "out.weight"))
    assert masked_difference(program, result) <= 1e-10


def test_local_scope_takes_the_same_share_of_every_layer() -> None:
    model = nn.Sequential(conv_bn(3, 40), conv_bn(40, 40), conv_bn(40, 40), nn.Conv2d(40, 4, 1))
    with torch.no_grad():
        model[0][0].weight *= 100
    result, _ = pruned(program_of(model, torch.randn(1, 3, 6, 6)), "prune{ratio=0.6,scope=local}")
    widths = [shapes(result)[f"{layer}.0.weight"][0] for layer in range(3)]
    assert max(widths) - min(widths) <= 1


def test_scores_of_batch_normalisation_are_its_scales() -> None:
    program = program_of(nn.Sequential(conv_bn(3, 8), nn.Conv2d(8, 2, 1)), torch.randn(1, 3, 6, 6))
    scales = program.weights["0.1.weight"]
    result, _ = pruned(program, "prune{ratio=0.5,score=bn}")
    left = result.weights["0.1.weight"]
    assert set(left.tolist()) == set(scales.sort().values[-len(left) :].tolist())


def test_multiply_adds_are_met_and_are_those_that_inspect_counts() -> None:
    program = mobile()
    result, record = pruned(program, "prune{ratio=0.4,of=macs}")
    before, after = (sum(multiply_adds(node) for node in each.graph.nodes) for each in (program, result))
    assert abs(1 - after / before - 0.4) < 0.01
    assert f"multiply-adds: {before:,} -> {after:,}" in record.notes[1]


class Renormed(nn.Module):
    """A layer that an unknown operator reads, another that is free."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 32), nn.Linear(32, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.special.bessel_j0(self.a(x)).renorm(2, 0, 1.0)
        return self.c(torch.relu(self.b(y)))


def test_a_ratio_out_of_reach_is_refused_with_what_stands_in_the_way() -> None:
    program = program_of(Renormed(), torch.randn(2, 4))
    with pytest.raises(UsageError) as refusal:
        pruned(program, "prune{ratio=0.9}")
    error = refusal.value
    assert error.code == "DS0370"
    assert error.what == "ratio=0.9 cannot be reached: at most 55.4 % of the parameters can go"
    assert "a (32): %renorm aten.renorm.default at test_prune.py:" in error.where
    assert "y = torch.special.bessel_j0(self.a(x)).renorm(2, 0, 1.0)" in error.where
    assert "what it does with its operands is not known" in error.where
    assert "c (2): the output: it is an output of the program" in error.where
    assert error.fix == "ask for ratio=0.554 or less"
    result, record = pruned(program, "prune{ratio=0.55}")
    assert any("kept all that this touches: %renorm" in note for note in record.notes)
    assert masked_difference(program, result) <= 1e-10


def test_a_model_without_channels_is_refused() -> None:
    with pytest.raises(UsageError, match="no channels that can be removed") as refusal:
        pruned(program_of(nn.Linear(8, 4), torch.randn(2, 8)), "prune")
    assert refusal.value.code == "DS0371"
    assert "it is an output of the program" in refusal.value.where


def test_a_step_that_is_too_coarse_is_said() -> None:
    program = program_of(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8)), torch.randn(2, 8))
    _, record = pruned(program, "prune{ratio=0.4}")
    assert any(note.startswith("ratio=0.4 falls between two steps") for note in record.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ratio=1.5", "ratio is 1.5 and must be between 0 and 1"),
        ("of=bytes", "of is 'bytes' and must be one of params, macs, latency, ram"),
        ("score=random", "score is 'random' and must be one of l1, l2, bn, fpgm, taylor"),
        ("scope=all", "scope is 'all' and must be one of global, local"),
        ("align=0", "align is 0 and must be a whole number from 1 on"),
    ],
)
def test_wrong_options_are_refused_before_any_work(options: str, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_pipeline(f"prune{{{options}}}")
    assert message in refusal.value.why


def test_the_result_trains_exports_again_and_is_stored(tmp_path: Path) -> None:
    x = torch.randn(8, 3, 8, 8)
    program = export_module(CNNS["shuffle"]().eval(), (x,), {}, {"input": {0: "batch"}})
    result, _ = pruned(program, "prune{ratio=0.5}")
    module = result.module().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    labels, losses = torch.randint(0, 5, (8,)), []
    for _ in range(6):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x), labels)
        loss.backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    again = export_module(module.eval(), (x,))
    torch.testing.assert_close(again.run(x)[0], module(x).detach())
    result.save(tmp_path / "net.dsp")
    assert Program.load(tmp_path / "net.dsp").text() == result.text()


def test_it_composes_with_what_comes_before_and_after() -> None:
    x = torch.randn(3, 3, 8, 8)
    program = export_module(CNNS["mobile"]().eval(), (x,), {}, {"input": {0: "batch"}})
    twice, _ = PassManager(parse_pipeline("prune{ratio=0.3},prune{ratio=0.3}")).run(program)
    assert sum(v.numel() for v in twice.weights.values()) < sum(v.numel() for v in program.weights.values())
    alone, _ = PassManager(parse_pipeline("prune{ratio=0.4}")).run(program)
    folded, _ = PassManager(parse_pipeline("canonicalize,prune{ratio=0.4},fold-batch-norm,fuse-activation")).run(
        program
    )
    torch.testing.assert_close(folded.run(x)[0], alone.run(x)[0], rtol=1e-4, atol=1e-5)


def test_shared_weights_are_cut_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.both, self.head = nn.Linear(4, 12), nn.Linear(12, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.both(torch.relu(self.both(self.up(x))))))

    program = program_of(Shared(), torch.randn(2, 4))
    result, _ = pruned(program, "prune{ratio=0.5}")
    rows, columns = shapes(result)["both.weight"]
    assert rows == columns < 12
    assert masked_difference(program, result) <= 1e-10


def test_buffers_that_serve_as_weights_are_cut_too() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head = nn.Linear(4, 12), nn.Linear(12, 3)
            self.register_buffer("scale", torch.rand(12))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.up(x) * self.scale)

    program = program_of(Buffered(), torch.randn(2, 4))
    result, _ = pruned(program, "prune{ratio=0.5}")
    assert shapes(result)["scale"] == [shapes(result)["up.weight"][0]]
    assert masked_difference(program, result) <= 1e-10


def test_states_keep_what_they_touch() -> None:
    spec = gpt_decode(layers=1)
    program = program_of(spec.model, *spec.args)
    result, _ = pruned(program, "prune{ratio=0.4}")
    assert [list(result.weights[state.name].shape) for state in result.states] == [[1, 4, 64, 16]] * 2
    assert shapes(result)["gpt.layers.0.attention.qkv.weight"][0] == 3 * 64
    assert masked_difference(program, result) <= 1e-10


def macs(program: Program) -> int:
    return sum(multiply_adds(node) for node in program.graph.nodes)


@pytest.mark.parametrize("of", ["latency", "ram"])
def test_the_cost_model_of_the_caller_decides(of: str) -> None:
    asked: list[int] = []

    def cost(program: Program) -> dict[str, float]:
        program.verify()
        asked.append(macs(program))
        return {
            "seconds": 1e-6 + 1e-9 * macs(program),
            "ram_bytes": float(sum(v.numel() for v in program.weights.values())),
        }

    program = program_of(CNNS["flattened"](), torch.randn(2, 3, 8, 8))
    result, records = PassManager(parse_pipeline(f"prune{{ratio=0.2,of={of}}}")).run(program, PassContext(cost=cost))
    key = {"latency": "seconds", "ram": "ram_bytes"}[of]
    assert abs(1 - cost(result)[key] / cost(program)[key] - 0.2) < 0.05  # its channels are few
    assert len(asked) < 20
    assert records[0].changes
    assert masked_difference(program, result) <= 1e-10


def test_without_a_cost_model_time_cannot_be_asked_for() -> None:
    with pytest.raises(PassError, match="asks for a cost"):
        pruned(mobile(), "prune{of=latency}")


@pytest.mark.parametrize("score", ["l1", "taylor"])
def test_scores_can_be_taken_anew_on_the_way(score: str) -> None:
    program = program_of(CNNS["dense"](), torch.randn(2, 3, 8, 8))
    context = PassContext(calibration=[{"x": torch.randn(2, 3, 8, 8).double()}])
    result, records = PassManager(parse_pipeline(f"prune{{ratio=0.6,score={score},steps=4}}")).run(program, context)
    assert "(-60." in records[0].notes[0] or "(-59." in records[0].notes[0]
    assert len(records[0].changes) == len({line.split()[0] for line in records[0].changes})
    assert masked_difference(program, result) <= 1e-10


@pytest.mark.parametrize(
    "squeeze", [lambda x: x.squeeze(), lambda x: x.squeeze(1).squeeze(-1), lambda x: x.squeeze((0, 1, 2))]
)
def test_a_width_of_one_is_not_squeezed_away(squeeze: Callable[[Tensor], Tensor]) -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 3), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(squeeze(self.up(x).unsqueeze(1)))

    program = program_of(Squeezed(), torch.randn(2, 6))
    result, _ = pruned(program, "prune{ratio=0.59}")
    assert shapes(result)["up.weight"] == [1, 6]
    assert masked_difference(program, result) <= 1e-10


def test_a_cost_in_steps_is_met_as_nearly_as_it_can_be() -> None:
    """Widths are padded to 4 by the machine, so that channels that fill no lane are for nothing, and odd ones cost extra."""
    program = program_of(CNNS["dense"](), torch.randn(2, 3, 8, 8))

    def cost(tried: Program) -> dict[str, float]:
        widths = [value.shape[0] for value in tried.weights.values() if value.dim() == 4]
        return {
            "seconds": float(sum(-(-width // 4) * 4 + (3 if width % 4 else 0) for width in widths)),
            "ram_bytes": 0.0,
        }

    for ratio in (0.1, 0.2, 0.3):
        result, records = PassManager(parse_pipeline(f"prune{{ratio={ratio},of=latency}}")).run(
            program, PassContext(cost=cost)
        )
        reached = 1 - cost(result)["seconds"] / cost(program)["seconds"]
        assert abs(reached - ratio) < 0.1
        assert f"(-{100 * reached:.2f} %)" in records[0].notes[2]

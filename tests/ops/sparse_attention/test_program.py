"""The operator inside programs: sizes that vary, archives, interpretation, and what passes do with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dsopt
from dsopt.frontend.export import export_module
from dsopt.ir import Program
from dsopt.ir.multiply_adds import multiply_adds
from dsopt.ops.sparse_attention import OPERATOR, sparse_attention
from dsopt.passes.base import PassManager, parse_pipeline
from dsopt.train.points import attention_map
from tests.ops.sparse_attention.oracle import Call, dense
from tests.ops.sparse_attention.samples import padding, sample
from tests.ops.sparse_attention.test_work import counted
from tests.passes.prune.oracle import masked_difference, program_of, pruned
from tests.passes.quantize.programs import float_operators, stages, values

WIDTH = 16
FEW = {"budget": [5.0], "unit": "keys", "tile": 4, "window": 1}


class Bare(nn.Module):
    """The operator on inputs."""

    def __init__(self, causal: str = "none", **options: Any) -> None:
        super().__init__()
        self.rest = (causal, options.get("scale"), *({**FEW, **options}[name] for name in FEW))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        return OPERATOR(query, key, value, mask, *self.rest)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention between linear layers, heads of keys perhaps shared."""

    def __init__(self, heads: int = 4, shared: int = 4, **options: Any) -> None:
        super().__init__()
        self.attend, self.heads, self.shared = Bare(**options), heads, shared
        self.q, self.k, self.v = nn.Linear(WIDTH, 8 * heads), nn.Linear(WIDTH, 8 * shared), nn.Linear(WIDTH, 8 * shared)
        self.out, self.last = nn.Linear(8 * heads, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, 8)).transpose(1, 2)
        k, v = (each(x).unflatten(-1, (self.shared, 8)).transpose(1, 2) for each in (self.k, self.v))
        y = self.attend(q, k, v, None if mask is None else mask[:, None, None]).transpose(1, 2).flatten(2)
        return self.last(x + self.out(y))  # type: ignore[no-any-return]


def of(program: Program) -> Any:
    (node,) = [node for node in program.graph.nodes if node.target is OPERATOR]
    return node


# ---- capture, types, archives ----


def varying() -> Program:
    call = sample(40, 24, batch=2)
    of_keys = {0: "batch", 2: "keys"}
    sizes = {"query": {0: "batch", 2: "queries"}, "key": of_keys, "value": of_keys, "mask": {0: "batch", 3: "keys"}}
    return dsopt.capture(
        Bare("end", budget=[6.0, -1.0], unit="log2"),
        (call.query, call.key, call.value, padding(40, 40, 9)),
        dynamic=sizes,
    )


@pytest.mark.parametrize("is_loaded", [False, True])
def test_sizes_may_vary(is_loaded: bool, tmp_path: Path) -> None:
    program = varying()
    if is_loaded:
        program.save(tmp_path / "p.dsp")
        program = Program.load(tmp_path / "p.dsp")
    program.verify()
    assert [str(size) for size in program.shape(of(program))] == ["batch", "2", "queries", "4"]
    for S, T in ((40, 24), (130, 7), (3, 9), (16, 16)):
        call = sample(
            S, T, batch=3, seed=S, bias=padding(S, S, 1, S // 2), causal="end", budget=(6.0, -1.0), tile=4, window=1
        )
        (found,) = program.run(call.query, call.key, call.value, call.bias)
        assert torch.equal(found, sparse_attention(*call.arguments))


def test_the_text_says_what_it_is() -> None:
    assert "sparse_attention" in varying().text()


def test_sizes_that_cannot_fit_are_refused_when_a_program_is_made() -> None:
    call = sample(40, 24, batch=2)
    with pytest.raises(dsopt.DsoptError, match="budget has 3 numbers"):
        dsopt.capture(Bare(budget=[1.0, 2.0, 3.0]), (call.query, call.key, call.value))


def test_sizes_can_be_fixed() -> None:
    program = varying().specialize({"batch": 1, "queries": 5, "keys": 64})
    program.verify()
    call = sample(64, 5, bias=padding(64, 60), causal="end", budget=(6.0, -1.0), tile=4, window=1)
    (found,) = program.run(call.query, call.key, call.value, call.bias)
    assert torch.equal(found, sparse_attention(*call.arguments))


# ---- counting ----


@pytest.mark.parametrize(("budget", "unit"), [([12.0], "log2"), ([0.3], "share"), ([9.0, -1.0], "keys")])
def test_multiply_adds_are_those_that_are_counted(budget: list[float], unit: str) -> None:
    call = sample(512, 256, batch=2, budget=tuple(budget), unit=unit, tile=4, window=1)
    program = export_module(Bare(budget=budget, unit=unit), (call.query, call.key, call.value), {}, None)
    assert multiply_adds(of(program)) == pytest.approx(counted(call).total, rel=1e-6)


# ---- passes ----


def test_canonicalize_freezes_the_scale() -> None:
    call = sample(40, 24)
    program = export_module(Bare(), (call.query, call.key, call.value), {}, None)
    result, _ = PassManager(parse_pipeline("canonicalize")).run(program)
    assert of(result).args[5] == 1 / 6**0.5
    assert torch.equal(
        result.run(call.query, call.key, call.value)[0], program.run(call.query, call.key, call.value)[0]
    )


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": "end"},
    "budgets of heads": {"budget": [2.0, 5.0, -1.0, 9.0]},
    "share": {"budget": [0.6], "unit": "share"},
    "shares of heads": {"budget": [0.6, 1.0, 0.7, 0.9], "unit": "share"},
    "grouped": {"shared": 2},
    "grouped, budgets of heads": {"shared": 2, "budget": [2.0, 5.0, -1.0, 9.0]},
    "scale": {"scale": 0.2},
}


@pytest.mark.parametrize("pipeline", ["prune{ratio=0.4}", "prune{ratio=0.3,of=macs,scope=local}"])
@pytest.mark.parametrize("name", OPTIONS)
def test_pruned_attention_gives_what_the_masked_original_gives(name: str, pipeline: str) -> None:
    options = OPTIONS[name]
    program = program_of(Block(**options), torch.randn(2, 40, WIDTH))
    result, record = pruned(program, pipeline)
    before, after = of(program), of(result)
    assert record.changes
    assert result.shape(after.args[0]) != program.shape(before.args[0])
    assert masked_difference(program, result) <= 1e-10
    heads = result.shape(after.args[0])[1]
    assert len(after.args[6]) in (1, heads)
    assert after.args[5] is not None or result.shape(after.args[0])[3] == 8


def test_pruned_heads_take_their_budgets_with_them() -> None:
    block = Block(budget=[2.0, 5.0, -1.0, 9.0])
    with torch.no_grad():
        # two heads that matter to nothing
        for layer, axis in ((block.q, 0), (block.k, 0), (block.v, 0), (block.out, 1)):
            layer.weight.unflatten(axis, (4, 8)).select(axis, 1).mul_(1e-3)
            layer.weight.unflatten(axis, (4, 8)).select(axis, 2).mul_(1e-3)
    program = export_module(block, (torch.randn(2, 40, WIDTH),), {}, None)
    result, _ = pruned(program, "prune{ratio=0.5}")
    assert list(of(result).args[6]) == [2.0, 9.0]


def test_quantisation_leaves_it_in_floats_and_says_why() -> None:
    program = export_module(Block(causal="end"), (torch.randn(2, 40, WIDTH),), {}, None)
    batch = {"x": torch.randn(2, 40, WIDTH)}
    _, _, lowered, records = stages(program, [batch])
    lowered.verify()
    assert str(OPERATOR) in float_operators(lowered)
    assert "aten.linear.default" not in float_operators(lowered)
    assert any("decided in floats" in skip for record in records for skip in record.skips)
    wanted, found = values(program, batch)[0], values(lowered, batch)[0]
    assert ((wanted - found) ** 2).mean() < 0.02 * wanted.var()


@pytest.mark.parametrize("causal", ["none", "start", "end"])
@pytest.mark.parametrize("is_masked", [False, True])
def test_the_map_for_distillation_is_that_of_dense_attention(causal: str, is_masked: bool) -> None:
    call = sample(
        12, 7, heads=4, shared=2, causal=causal, bias=padding(12, 9) if is_masked else None, dtype=torch.float64
    )
    given = tuple(each for each in call.arguments[:4] if each is not None)
    program = export_module(Bare(causal), given, {}, None)
    node = of(program)
    values = dict(program.trace(*given))
    values |= {each.name: each_value for each, each_value in zip(node.args[:4], given, strict=False)}
    found = attention_map(node, values)
    seen = [row for row in range(7) if call.seen(row)]
    mixed = found @ call.value.repeat_interleave(2, 1)
    torch.testing.assert_close(mixed[:, :, seen], dense(call)[:, :, seen])


def test_the_gradient_goes_through_a_program() -> None:
    call: Call = sample(40, 24)
    program = export_module(Bare(), (call.query, call.key, call.value), {}, None)
    query = call.query.clone().requires_grad_()
    program.module()(query, call.key, call.value).sum().backward()
    direct = call.query.clone().requires_grad_()
    OPERATOR(direct, call.key, call.value, None, "none", None, [5.0], "keys", 4, 1).sum().backward()
    assert direct.grad is not None
    torch.testing.assert_close(query.grad, direct.grad)

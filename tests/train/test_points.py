"""Maps of attention are those that the fused operator uses and does not give: checked against its result, and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsopt.frontend.export import export_module
from dsopt.train.points import attention_map, match_modules
from models import bert

T, S = 5, 7


class Attention(nn.Module):
    """Attend with given options; queries, keys and values come from modules, so that they can be named."""

    def __init__(self, mask: Tensor | None, options: dict[str, Any]) -> None:
        super().__init__()
        self.mask, self.options = mask, options
        self.inner = nn.Identity()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q * 1.0, k * 1.0, v * 1.0, attn_mask=self.mask, **self.options) * 1.0


def _masks() -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(T, S, generator=generator) < 0.6
    seen[:, 0] = True
    added = torch.randn(1, 1, T, S, generator=generator, dtype=torch.float64)
    return {"none": None, "bool": seen, "float": added, "minus infinity": added.masked_fill(~seen, -math.inf)}


_OPTIONS: list[dict[str, Any]] = [{}, {"scale": 0.3}, {"enable_gqa": True}, {"is_causal": True}]
_CASES = [(kind, each) for kind in sorted(_masks()) for each in _OPTIONS if kind == "none" or "is_causal" not in each]


@pytest.mark.parametrize(("kind", "options"), _CASES, ids=str)
def test_a_map_times_the_values_is_what_the_operator_gives(kind: str, options: dict[str, Any]) -> None:
    heads = 2 if "enable_gqa" in options else 4
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(2, 4, T, 3, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, heads, S, 3, generator=generator, dtype=torch.float64)
    program = export_module(Attention(_masks()[kind], options).eval(), (q, k, v))
    values = program.trace(q, k, v)
    (node,) = [each for each in program.graph.nodes if "attention" in str(each.target)]
    values |= {each.name: program.weights[name] for each in program.placeholders if (name := program.weight_name(each))}
    found = attention_map(node, values)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 4, T, dtype=torch.float64))
    torch.testing.assert_close(found @ v.repeat_interleave(4 // heads, 1), program.run(q, k, v)[0])


def test_a_query_that_sees_no_key_has_a_map_and_a_gradient() -> None:
    seen = torch.ones(T, S, dtype=torch.bool)
    seen[1] = False
    q, k = (torch.randn(1, 1, size, 3, dtype=torch.float64, requires_grad=True) for size in (T, S))
    program = export_module(Attention(seen, {}).eval(), (q.detach(), k.detach(), k.detach()))
    (node,) = [each for each in program.graph.nodes if "attention" in str(each.target)]
    names = [node.args[0].name, node.args[1].name, node.args[3].name]  # type: ignore[union-attr]
    found = attention_map(node, dict(zip(names, (q, k, seen), strict=True)))
    found.square().sum().backward()  # type: ignore[no-untyped-call]
    assert q.grad is not None
    assert torch.isfinite(q.grad).all()
    torch.testing.assert_close(found[0, 0, 1].detach(), torch.full((S,), 1 / S, dtype=torch.float64))


@pytest.mark.parametrize("form", sorted(bert.ATTENTION))
def test_attention_is_found_in_every_form_and_its_map_is_the_same(form: str) -> None:
    torch.manual_seed(0)
    layer = bert.Layer(8, 2, bert.ATTENTION[form]).double().eval()
    x, mask = torch.randn(2, 4, 8, dtype=torch.float64), torch.tensor([[[[1, 1, 1, 0]]], [[[1, 1, 1, 1]]]]).bool()
    program = export_module(layer, (x, mask))
    (pair,) = match_modules(program, program, [("attention", "attention")])
    (node,) = pair[0].attention
    values = {**program.trace(x, mask), program.inputs[1].name: mask}
    own = layer.attention
    with torch.no_grad():
        q, k = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (own.query, own.key))
        by_hand = (q @ k.transpose(-1, -2) / 2).masked_fill(~mask, -math.inf).softmax(-1)
    torch.testing.assert_close(attention_map(node, values), by_hand)

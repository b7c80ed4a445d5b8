from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dsopt.frontend.export import export_module
from dsopt.ir import Program
from dsopt.passes.base import PassManager, PassRecord, parse_pipeline

B, H, T, S, D, E = 2, 3, 7, 9, 8, 5
Q, K, V = torch.Size([B, H, T, D]), torch.Size([B, H, S, D]), torch.Size([B, H, S, E])
Capture = Callable[..., Program]


def _run(program: Program) -> tuple[Program, PassRecord]:
    result, records = PassManager(parse_pipeline("canonicalize,fuse-attention")).run(program)
    return result, records[-1]


def _is_fused(program: Program) -> bool:
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return any("scaled_dot_product" in target for target in targets) and not any(
        "softmax" in target for target in targets
    )


def _masks() -> tuple[Tensor, Tensor]:
    keep = torch.rand(B, 1, T, S) > 0.3
    keep[..., 0] = True
    return torch.randn(B, 1, T, S), keep


FORMS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "divided scores": (lambda q, k, v: (q @ k.transpose(-2, -1) / math.sqrt(D)).softmax(-1) @ v, ""),
    "scaled query": (lambda q, k, v: torch.softmax(torch.matmul(q * 0.3, k.mT), -1) @ v, ""),
    "scaled key": (lambda q, k, v: torch.softmax(q @ (k * 0.3).transpose(2, 3), 3) @ v, ""),
    "scaled transposed key": (lambda q, k, v: torch.softmax(q @ (k.transpose(2, 3) * 0.3), 3) @ v, ""),
    "permuted key": (lambda q, k, v: (q @ k.permute(0, 1, 3, 2)).softmax(-1) @ v, ""),
    "key given transposed": (lambda q, k, v: (q @ k.reshape(B, H, D, S)).softmax(-1) @ v, ""),
    "no scale": (lambda q, k, v: (q @ k.mT).softmax(-1) @ v, ""),
    "dropout": (lambda q, k, v: nn.functional.dropout((q @ k.mT).softmax(-1), 0.2, False) @ v, ""),
    "additive mask": (lambda q, k, v, m: (q @ k.mT * 0.2 + m).softmax(-1) @ v, "additive"),
    "mask before the scale": (lambda q, k, v, m: ((q @ k.mT + m) / 3).softmax(-1) @ v, "additive"),
    "mask on the left": (lambda q, k, v, m: (m + q @ k.mT).softmax(-1) @ v, "additive"),
    "masked_fill -inf": (lambda q, k, v, m: (q @ k.mT).masked_fill(~m, -math.inf).softmax(-1) @ v, "keep"),
    "masked_fill -1e9": (lambda q, k, v, m: (q @ k.mT).masked_fill(m == 0, -1e9).softmax(-1) @ v, "keep"),
    "where lowest": (
        lambda q, k, v, m: torch.where(m, q @ k.mT, torch.finfo(torch.float32).min).softmax(-1) @ v,
        "keep",
    ),
    "einsum bhtd": (
        lambda q, k, v: torch.einsum("bhts,bhse->bhte", torch.einsum("bhtd,bhsd->bhts", q, k).softmax(-1), v),
        "",
    ),
    "einsum swapped": (
        lambda q, k, v: torch.einsum("xyts,xyse->xyte", torch.einsum("xysd,xytd->xyts", k, q).softmax(-1), v),
        "",
    ),
}


@pytest.mark.parametrize("form", sorted(FORMS))
def test_attention_written_by_hand_is_found(form: str, capture_function: Capture) -> None:
    function, mask = FORMS[form]
    additive, keep = _masks()
    inputs = [torch.randn(Q), torch.randn(K), torch.randn(V)] + ({"": [], "additive": [additive], "keep": [keep]}[mask])
    result, record = _run(capture_function(function, *inputs))
    assert _is_fused(result), record.skips
    torch.testing.assert_close(result.run(*inputs)[0], function(*inputs), rtol=1e-5, atol=1e-5)


def test_einsum_with_heads_last_gets_the_permutations_it_needs(capture_function: Capture) -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("bhts,bshe->bthe", (torch.einsum("bthd,bshd->bhts", q, k) / 4).softmax(-1), v)

    q, k, v = torch.randn(B, T, H, D), torch.randn(B, S, H, D), torch.randn(B, S, H, E)
    result, record = _run(capture_function(function, q, k, v))
    assert _is_fused(result), record.skips
    torch.testing.assert_close(result.run(q, k, v)[0], function(q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["bmm", "baddbmm"])
def test_batched_products_of_rank_three_are_found(form: str, capture_function: Capture) -> None:
    def function(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
        kt = k.transpose(1, 2)
        scores = torch.bmm(q, kt) * 0.2 if form == "bmm" else torch.baddbmm(m, q, kt, alpha=0.2)
        return torch.bmm(scores.softmax(2), v)

    inputs = [torch.randn(6, T, D), torch.randn(6, S, D), torch.randn(6, S, E), torch.randn(6, T, S)]
    result, record = _run(capture_function(function, *inputs))
    assert _is_fused(result), record.skips
    torch.testing.assert_close(result.run(*inputs)[0], function(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("padding", [False, True])
def test_multihead_attention_is_found_when_its_weights_are_not_used(need_weights: bool, padding: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(24, 3, batch_first=True)

        def forward(self, x: Tensor, ignore: Tensor) -> Tensor:
            mask = ignore if padding else None
            return self.attention(x, x, x, key_padding_mask=mask, need_weights=need_weights)[0]

    model = Net().eval()
    ignore = torch.zeros(2, 7, dtype=torch.bool)
    ignore[:, 5:] = True
    x = torch.randn(2, 7, 24)
    result, record = _run(export_module(model, (x, ignore)))
    assert _is_fused(result), record.skips
    torch.testing.assert_close(result.run(x, ignore)[0], model(x, ignore), rtol=1e-5, atol=1e-5)


def test_varying_batch_and_length_stay_varying(capture_function: Capture) -> None:
    function, _ = FORMS["divided scores"]
    dynamic = {name: {0: "batch", 2: dim} for name, dim in (("q", "time"), ("k", "keys"), ("v", "keys"))}
    program = capture_function(function, torch.randn(Q), torch.randn(K), torch.randn(V), dynamic=dynamic)
    result, record = _run(program)
    assert _is_fused(result), record.skips
    inputs = torch.randn(4, H, 3, D), torch.randn(4, H, 5, D), torch.randn(4, H, 5, E)
    torch.testing.assert_close(result.run(*inputs)[0], function(*inputs), rtol=1e-5, atol=1e-5)


# ---- near misses ----

LEFT_ALONE: dict[str, tuple[Callable[..., Tensor | tuple[Tensor, Tensor]], str]] = {
    "weights used": (lambda q, k, v: ((w := (q @ k.mT).softmax(-1)) @ v, w), "weights are used elsewhere"),
    "softmax over queries": (lambda q, k, v: (q @ k.mT).softmax(-2) @ v, "runs over axis -2"),
    "weak fill": (
        lambda q, k, v: (q @ k.mT).masked_fill(q[..., :1] > 0, -1e4).softmax(-1) @ v,
        "leaves them some weight",
    ),
    "broadcast keys": (lambda q, k, v: (q @ k[:, :1].mT).softmax(-1) @ v, "different batch or head dims"),
}


@pytest.mark.parametrize("case", sorted(LEFT_ALONE))
def test_a_near_miss_is_left_alone_and_the_reason_recorded(case: str, capture_function: Capture) -> None:
    function, reason = LEFT_ALONE[case]
    inputs = torch.randn(Q), torch.randn(K), torch.randn(V)
    program = capture_function(function, *inputs)
    result, record = _run(program)
    assert not _is_fused(result)
    assert reason in record.skips[0]
    for got, want in zip(result.run(*inputs), program.run(*inputs), strict=True):
        torch.testing.assert_close(got, want)


def test_a_softmax_that_is_no_attention_is_passed_over_silently(capture_function: Capture) -> None:
    result, record = _run(capture_function(lambda x: x.softmax(-1), torch.randn(3, 4)))
    assert not _is_fused(result)
    assert record.skips == ()


def test_running_it_twice_changes_nothing_more(capture_function: Capture) -> None:
    function, _ = FORMS["divided scores"]
    once, _ = _run(capture_function(function, torch.randn(Q), torch.randn(K), torch.randn(V)))
    twice, record = _run(once)
    assert twice.text() == once.text()
    assert record.changes == ()

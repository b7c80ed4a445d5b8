"""Sparse attention on a GPU, selection included, against the best of torch's own backends for dense attention.

Both sides are bfloat16, run from CUDA graphs (so that no launch from Python is measured) and are timed by CUDA events, taking turns.
Peers: FlashAttention, cuDNN and memory-efficient attention behind `scaled_dot_product_attention`; the fastest of a length counts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.sparse_attention.budget import WINDOW, keys_of, share_of
from dsopt.backends.cuda.sparse import has_triton

LENGTHS = {1024: 16, 4096: 4, 16384: 1, 65536: 1, 131072: 1}
"""Keys, and batches of them: at least 16,384 tokens."""

HEADS, HEAD_SIZES = 16, (64, 128)
TILE = 64
TRAINED = 4096
"""The length at which a step of training is measured as well."""

PEERS = {
    "FlashAttention": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_ROUNDS, _SAMPLE_SECONDS = 7, 0.02


def why_not() -> str:
    """Return what is missing here to measure, "" for nothing."""
    if not torch.cuda.is_available():
        return "there is no GPU here that this torch can use"
    return "" if has_triton() else "Triton is not installed: pip install 'dsopt[cuda]'"


def rows() -> list[dict[str, Any]]:
    """Return one row a length, head size and kind: "speed" with `ratio` to the peer (above 1 is faster), "kernel" with TFLOP/s.

    Only where `why_not` has nothing to say.
    """
    found: list[dict[str, Any]] = []
    for head in HEAD_SIZES:
        for length, batch in LENGTHS.items():
            inputs = _inputs(batch, length, head, False)
            found.append(_against_peers("forward", inputs, _sparse, _dense))
            found.append(_kernel_alone(inputs))
            if length == TRAINED:
                found.append(
                    _against_peers(
                        "forward and backward", _inputs(batch, length, head, True), _train(_sparse), _train(_dense)
                    )
                )
            torch.cuda.empty_cache()
    return found


def _inputs(batch: int, length: int, head: int, wants_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator("cuda").manual_seed(length + head)
    shape = (batch, HEADS, length, head)
    query, key, value = (
        torch.randn(shape, generator=draw, device="cuda", dtype=torch.bfloat16).requires_grad_(wants_gradient)
        for _ in range(3)
    )
    return query, key, value


def _sparse(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from dsopt.backends.cuda.sparse.function import sparse_attention

    return sparse_attention(query, key, value, None, "none", None, _budget(query), "keys", TILE, WINDOW)


def _budget(query: Tensor) -> tuple[float]:
    """Return the keys of the one schedule."""
    return (float(keys_of(query.shape[2], TILE, query.shape[3], query.shape[3])),)


def _dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value)


def _train(attention: Callable[..., Tensor]) -> Callable[..., Any]:
    def step(query: Tensor, key: Tensor, value: Tensor) -> Any:
        out = attention(query, key, value)
        return torch.autograd.grad(out, (query, key, value), out.detach())

    return step


def _against_peers(
    what: str, inputs: tuple[Tensor, Tensor, Tensor], ours: Callable[..., Any], peer: Callable[..., Any]
) -> dict[str, Any]:
    runs = {"dsopt": _graph(lambda: ours(*inputs))}
    for name, backend in PEERS.items():
        try:
            with sdpa_kernel([backend]):
                runs[name] = _graph(lambda: peer(*inputs))
        except RuntimeError as error:  # not every backend takes every shape on every GPU
            print(f"{name}: {str(error).splitlines()[0]}", flush=True)
    seconds = _seconds(runs)
    mine = seconds.pop("dsopt")
    if not seconds:
        raise RuntimeError("no peer runs on this GPU")
    best = min(seconds, key=lambda name: seconds[name])
    row = _row("speed", inputs, mine)
    return {**row, "what": what, "peer": f"torch {best}", "peer_seconds": seconds[best], "ratio": seconds[best] / mine}


def _kernel_alone(inputs: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
    """Measure the softmax by given lists, and the selection; products are counted from the lists themselves."""
    from dsopt.backends.cuda.sparse.function import by_schedule
    from dsopt.backends.cuda.sparse.launch import build_pyramid, forward, select

    query, key, value = inputs
    batch, heads, length, head = query.shape
    (some,) = by_schedule(query, key, value, None, ("none", None, _budget(query), "keys", TILE, WINDOW))
    pyramid = build_pyramid(some)
    made = select(some, pyramid)
    result, lse = torch.empty_like(query), query.new_empty((batch, heads, length), dtype=torch.float32)
    seconds = _seconds(
        {
            "pool": _graph(lambda: build_pyramid(some)),
            "select": _graph(lambda: select(some, pyramid)),
            "attend": _graph(lambda: forward(some, made, result, lse)),
        }
    )
    attended = int(made.count.sum(dtype=torch.int64)) + int((made.node >= 0).sum()) + made.count.numel() * (length % 8)
    operations = 2 * 2 * head * TILE * attended
    row = _row("kernel", inputs, seconds["attend"])
    shares = {"pool_seconds": seconds["pool"], "select_seconds": seconds["select"]}
    return {**row, **shares, "what": "softmax by given lists", "tflops": operations / seconds["attend"] / 1e12}


def _row(measure: str, inputs: tuple[Tensor, Tensor, Tensor], seconds: float) -> dict[str, Any]:
    batch, heads, length, head = inputs[0].shape
    return {
        "measure": measure, "target": "cuda", "device": torch.cuda.get_device_name(), "n": length, "heads": heads, "head_size": head,
        "batch": batch, "threads": 0, "share": share_of(length, TILE, head, head), "seconds": seconds,
    }  # fmt: skip


def _graph(run: Callable[[], Any]) -> Callable[[], Any]:
    """Return what runs this from a graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _seconds(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median of several samples of each, taken in turns."""
    repeats = {name: max(1, math.ceil(_SAMPLE_SECONDS / _sample(run, 1))) for name, run in runs.items()}
    samples = [{name: _sample(run, repeats[name]) for name, run in runs.items()} for _ in range(_ROUNDS)]
    return {name: statistics.median(each[name] for each in samples) for name in runs}


def _sample(run: Callable[[], Any], repeats: int) -> float:
    """Return the seconds of one run."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    run()
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / repeats

"""The native kernel beside the best dense attention of the same run: torch, and ONNX Runtime's MultiHeadAttention."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.harness import Row, interleave, paired_ratio, progress
from benchmarks.sparse_attention.budget import WINDOW, keys_of, share_of

HEADS, HEAD = 12, 64
TILE = 64
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
QUICK_LENGTHS = LENGTHS[:4]
THREADS = (1, 2)
OPENINGS = 3
"""Times that all sides are made anew, with arrays elsewhere in memory."""

LEAST_ROUNDS = 3

LONG = 8192
"""From this length on, where a call of a dense side takes many seconds, sides are made once."""

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""query, key and value (1, H, n, D), float32."""


def cpu_rows(lengths: Sequence[int], seconds: float) -> list[Row]:
    """Return a row for each length and number of threads, and where sparse attention begins to pay; none without the kernel.

    seconds: of timing for each row; more, if `LEAST_ROUNDS` take more.
    """
    try:
        libraries = build()
    except ImportError as problem:
        progress(f"speed: left out, there is no native kernel here ({problem})")
        return []
    rows: list[Row] = []
    for threads in THREADS:
        own = []
        for n in lengths:
            progress(f"speed: {n} keys, {threads} threads")
            own.append(time_one(n, threads, seconds, libraries))
        rows += [*own, crossover(own)]
    torch.set_num_threads(1)
    return rows


def build() -> Mapping[str, bytes]:
    """Compile the kernel for every level of CPU. How many keys it picks is told at run time. Raises ImportError if there is none."""
    from dsopt.backends.cpu import sparse

    libraries: Mapping[str, bytes] = sparse.build(config(1024))
    return libraries


def config(n: int) -> Any:
    """Return the attributes of the operator at the keys of the schedule."""
    from dsopt.runtime.sparse_call import KernelConfig

    return KernelConfig(
        heads=HEADS, key_heads=HEADS, head=HEAD, value_head=HEAD, causal="none", scale=None,
        budget=(float(keys_of(n, TILE, HEAD, HEAD)),), unit="keys", tile=TILE, window=WINDOW, has_bias=False,
    )  # fmt: skip


def time_one(n: int, threads: int, seconds: float, libraries: Mapping[str, bytes]) -> Row:
    """Time all sides in turn on random numbers."""
    torch.set_num_threads(threads)
    rng = np.random.default_rng(n)
    rounds: dict[str, list[list[float]]] = {}
    openings = 1 if n >= LONG else OPENINGS
    for _ in range(openings):
        query, key, value = (rng.standard_normal((1, HEADS, n, HEAD), dtype=np.float32) for _ in range(3))
        calls = {
            "dsopt": native((query, key, value), threads, libraries),
            "torch": torch_dense((query, key, value)),
            "onnxruntime": onnx_dense((query, key, value), threads),
        }
        for name, taken in interleave(calls, budget_seconds=seconds / openings, least_rounds=LEAST_ROUNDS).items():
            rounds.setdefault(name, []).append(taken)
    return row(n, threads, rounds)


def row(n: int, threads: int, rounds: Mapping[str, Sequence[Sequence[float]]]) -> Row:
    """Compare rounds. ratio: how many times as long the best dense side takes, and its one-sided 95% lower bound."""
    medians = {name: statistics.median(second for each in taken for second in each) for name, taken in rounds.items()}
    peer = min((name for name in medians if name != "dsopt"), key=lambda name: medians[name])
    ratio = paired_ratio(rounds["dsopt"], rounds[peer])
    return {
        "measure": "speed", "target": "cpu", "n": n, "heads": HEADS, "head_size": HEAD, "threads": threads, "tile": TILE,
        "keys": keys_of(n, TILE, HEAD, HEAD),
        "share": share_of(n, TILE, HEAD, HEAD), "seconds": medians["dsopt"],
        "peer": peer, "peer_seconds": medians[peer], "ratio": 1 / ratio.median, "ratio_lower95": 1 / ratio.upper95,
    }  # fmt: skip


def crossover(rows: Sequence[Row]) -> Row:
    """Return the smallest length from which on sparse attention is nowhere slower; none where it is slower at the last."""
    fast: int | None = None
    for each in sorted(rows, key=lambda row: -int(row["n"])):
        if each["ratio"] < 1:
            break
        fast = each["n"]
    return {"measure": "crossover", "target": "cpu", "threads": rows[0]["threads"], "n": fast}


def native(arrays: Arrays, threads: int, libraries: Mapping[str, bytes]) -> Callable[[], object]:
    """Return a call of the kernel."""
    from dsopt.runtime.sparse_kernel import SparseKernel

    kernel = SparseKernel(config(arrays[0].shape[2]), libraries, threads)
    return lambda: kernel.run(*arrays)


def torch_dense(arrays: Arrays) -> Callable[[], torch.Tensor]:
    """Return a call of torch's scaled dot product attention."""
    query, key, value = (torch.from_numpy(each) for each in arrays)

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return F.scaled_dot_product_attention(query, key, value)

    return call


def onnx_dense(arrays: Arrays, threads: int) -> Callable[[], list[np.ndarray]]:
    """Return a call of ONNX Runtime's MultiHeadAttention, on arrays (1, n, H * D) as it takes them: nothing is transposed in the time."""
    import onnxruntime
    from onnx import TensorProto, helper

    names = ("query", "key", "value")
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "n", HEADS * HEAD]) for name in (*names, "out")
    ]
    node = helper.make_node("MultiHeadAttention", names, ["out"], domain="com.microsoft", num_heads=HEADS)
    graph = helper.make_graph([node], "attention", values[:3], values[3:])
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {
        name: np.ascontiguousarray(each.transpose(0, 2, 1, 3)).reshape(1, -1, HEADS * HEAD)
        for name, each in zip(names, arrays, strict=True)
    }

    def call() -> list[np.ndarray]:
        results: list[np.ndarray] = session.run(None, feeds)
        return results

    return call

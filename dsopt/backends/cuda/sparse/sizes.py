"""How the kernels are cut for what they are given: block sizes, warps and stages. Plain numbers, chosen by what fits into registers."""

from __future__ import annotations

from dataclasses import dataclass

from dsopt.sparse_schedule import LEAF, OPENED, Schedule

MOST_ROWS = 128
"""Rows of a tile, at most: one program holds them all."""

MOST_CANDIDATES = 4096
"""Keys that a search may score at the end, at most: one program holds their scores."""

MOST_CHANNELS = 256
"""Head size, at most."""


def power(number: int, least: int = 1) -> int:
    """Return the lowest power of two that is not below either number."""
    return max(least, 1 << max(number - 1, 0).bit_length())


@dataclass(frozen=True)
class Launch:
    """How one kernel is compiled: constants by name, warps, stages of software pipelining."""

    constants: dict[str, int | bool | str]
    warps: int
    stages: int


@dataclass(frozen=True)
class Problem:
    """What decides about code: dtype ("bf16", "fp16", "fp32"), head sizes D and E, rows of a tile, which features are there, and arch."""

    dtype: str
    head: int
    value_head: int
    tile: int
    causal: bool
    bias: bool
    arch: str = "sm_90"

    @property
    def precision(self) -> str:
        """Return how products of floats are rounded: of 32 bits never to fewer, of 16 bits it makes no difference."""
        return "ieee" if self.dtype == "fp32" else "tf32"

    @property
    def channels(self) -> dict[str, int | bool | str]:
        """Return the constants that every kernel of rows has."""
        return {
            "D": self.head, "E": self.value_head, "DP": power(self.head, 16), "EP": power(self.value_head, 16),
            "CAUSAL": self.causal, "HAS_BIAS": self.bias, "PRECISION": self.precision,
        }  # fmt: skip


def most_nodes(plan: Schedule, leaves: int) -> int:
    """Return how many nodes a cover of a prefix of at most `leaves` leaves can have."""
    top = leaves >> plan.top
    if plan.top == plan.fine:
        return top + plan.fine
    between = 2 * OPENED + 1 - OPENED
    return max(top - OPENED, 0) + between * (plan.top - plan.fine - 1) + 2 * OPENED + 1 + plan.fine


def node_rows(plan: Schedule, leaves: int) -> int:
    """Return how many rows hold the nodes of a tile: a power of two, as blocks of products are."""
    return power(most_nodes(plan, leaves), 16)


def pool_launch(problem: Problem, plan: Schedule) -> Launch:
    """Return how the pyramid is built."""
    log = min(plan.top, 5)
    constants: dict[str, int | bool | str] = {
        "D": problem.head, "E": problem.value_head, "C": 32, "LOG": log, "UPPER": power(max(plan.top - log, 1)), "HAS_BIAS": problem.bias,
    }  # fmt: skip
    return Launch(constants, 4, 2)


def select_launch(problem: Problem, plan: Schedule, leaves: int) -> Launch:
    """Return how keys are searched."""
    candidates = power(LEAF * min(plan.beam, leaves))
    nodes = node_rows(plan, leaves)
    constants = {
        **problem.channels,
        "N_FIRST": power(leaves >> plan.first), "N_LEVEL": power(2 * min(plan.beam, leaves) + 1, 16), "N_KEYS": candidates,
        "NODES": nodes, "N": 64, "C": 8,
    }  # fmt: skip
    is_wide = candidates > 1024 or nodes * power(max(problem.head, problem.value_head)) > 4096
    return Launch(constants, 8 if is_wide else 4, 1)


def forward_launch(problem: Problem, nodes: int) -> Launch:
    """Return how rows attend. nodes: rows of nodes, 0 where all keys are exact."""
    rows, widest = power(problem.tile, 16), power(max(problem.head, problem.value_head), 16)
    if problem.dtype == "fp32":
        keys, warps = 16, (8 if rows * widest > 2048 else 4)
    else:
        keys, warps = (64 if widest <= 128 else 32), (8 if rows * widest > 8192 else 4)
    constants = {**problem.channels, "ROWS": rows, "N": keys, "NODES": max(nodes, 16), "SPARSE": nodes > 0}
    return Launch(constants, warps, 3 if widest <= 64 else 2)


def backward_launch(problem: Problem, nodes: int) -> Launch:
    """Return how the gradient of queries is computed, and of lists. nodes: as for `forward_launch`."""
    rows, widest = power(problem.tile, 16), power(max(problem.head, problem.value_head), 16)
    is_new = problem.arch == "sm_90"
    if problem.dtype == "fp32":
        keys, warps = 16, 8 if rows * widest > 2048 else 4
    else:
        # An A100 multiplies from registers, and so has fewer of them for the rest: at 128 channels some spill all the same.
        keys = 32 if widest <= (128 if is_new else 64) else 16
        warps = 8 if rows * widest >= 4096 else 4
    constants = {**problem.channels, "ROWS": rows, "N": keys, "NODES": max(nodes, 16), "SPARSE": nodes > 0}
    return Launch(constants, warps, 2 if is_new and widest <= 128 else 1)


def keys_launch(problem: Problem, is_sparse: bool, adds: bool) -> Launch:
    """Return how the gradient of keys and values is computed. adds: whether heads with another schedule were before."""
    widest = power(max(problem.head, problem.value_head), 16)
    is_new = problem.arch == "sm_90"
    if problem.dtype == "fp32":
        block, rows = 32, 16
    else:
        block, rows = 64 if widest <= 128 else 32, 64 if widest <= 64 and is_new else 32
    constants = {**problem.channels, "BLOCK": block, "N": rows, "SPARSE": is_sparse, "ADDS": adds}
    return Launch(constants, 8 if widest > 64 else 4, 2 if is_new and widest <= 128 else 1)


def sum_launch(problem: Problem, width: int) -> Launch:
    """Return how rows are added up by the places to which they belong."""
    wide = power(width, 16)
    constants: dict[str, int | bool | str] = {
        "WIDTH": width, "WIDTH_P": wide, "BLOCK": 64 if wide <= 128 else 32, "N": 32, "PRECISION": problem.precision,
    }  # fmt: skip
    return Launch(constants, 4 if wide <= 64 else 8, 2)

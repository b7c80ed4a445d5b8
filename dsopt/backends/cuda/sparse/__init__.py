"""dsopt::sparse_attention on NVIDIA GPUs: kernels in Triton, compiled at the first call (`function`) or ahead of time (`build`).

Nothing here imports Triton before it is needed, and nothing needs a GPU to be imported.
"""

from __future__ import annotations

import importlib.util

from dsopt.ops.library import register_on_device

__all__ = ["has_triton", "register"]


def has_triton() -> bool:
    """Return whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def register(device: str = "cuda") -> None:
    """Let the operator run by the kernels on a kind of device, gradients too. Needs Triton only once the operator runs."""
    from dsopt.backends.cuda.sparse.function import sparse_attention

    register_on_device("sparse_attention", device, sparse_attention)

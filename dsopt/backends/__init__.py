"""The backends by the kind of their target, imported when asked for."""

BACKENDS: dict[str, str] = {
    "cpu": "dsopt.backends.cpu:CpuBackend",
    "cuda": "dsopt.backends.cuda:CudaBackend",
    "mcu": "dsopt.backends.mcu:McuBackend",
}
"""Target kind -> "module:Class"."""

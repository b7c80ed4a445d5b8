"""What a program is compiled for: frozen, checked when constructed, and the same as its text form.

    parse_target("cpu")                 CpuTarget()
    parse_target("cuda:sm_90")          CudaTarget(archs=("sm_90",))
    parse_target("mcu:cortex-m4")       McuTarget(core="cortex-m4")

Imports no heavy package: `dsopt targets` answers at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from dsopt.errors import UsageError


@dataclass(frozen=True)
class Core:
    """A microcontroller core: how it is compiled for and where it can be emulated; nowhere, if `simulators` is empty."""

    name: str
    family: str  # "arm" or "riscv"
    has_fpu: bool
    has_dsp: bool
    has_mve: bool
    simulators: tuple[str, ...]
    note: str = ""


CORES: dict[str, Core] = {
    core.name: core
    for core in (
        Core("cortex-m0", "arm", False, False, False, ("unicorn",)),
        Core("cortex-m0plus", "arm", False, False, False, ("unicorn",), "emulated as a Cortex-M0"),
        Core("cortex-m3", "arm", False, False, False, ("unicorn", "qemu")),
        Core("cortex-m4", "arm", True, True, False, ("unicorn", "qemu")),
        Core("cortex-m7", "arm", True, True, False, ("unicorn", "qemu")),
        Core("cortex-m33", "arm", True, True, False, ("unicorn", "qemu")),
        Core("cortex-m55", "arm", True, True, True, ("qemu",), "runs where qemu-system-arm is installed"),
        Core("cortex-m85", "arm", True, True, True, (), "compiled and assembled only"),
        Core("rv32imc", "riscv", False, False, False, ("unicorn",), "portable C, as of ESP32-C3"),
        Core("rv32imafc", "riscv", True, False, False, ("unicorn",), "portable C, as of ESP32-P4"),
    )
}

DEFAULT_CUDA_ARCHS = ("sm_80", "sm_90", "sm_100")


@dataclass(frozen=True)
class Target(ABC):
    """Base of the targets. `kind` chooses the backend, `name` is the text form."""

    @property
    def kind(self) -> str:
        """Return the part of the name before the colon."""
        return self.name.partition(":")[0]

    @property
    @abstractmethod
    def name(self) -> str:
        """Return the text that `parse_target` reads back."""


@dataclass(frozen=True)
class CpuTarget(Target):
    """This computer, through ONNX Runtime."""

    @property
    def name(self) -> str:
        """Return "cpu"."""
        return "cpu"


@dataclass(frozen=True)
class CudaTarget(Target):
    """NVIDIA GPUs. `archs` are compute capabilities such as "sm_90"; PTX of the newest is added for later GPUs."""

    archs: tuple[str, ...] = DEFAULT_CUDA_ARCHS

    def __post_init__(self) -> None:
        if not self.archs:
            raise UsageError(
                "DS0904", "a CUDA target needs at least one architecture", fix='name one, as in "cuda:sm_90"'
            )
        for arch in self.archs:
            digits = arch.removeprefix("sm_").removesuffix("a")
            if not arch.startswith("sm_") or not digits.isdigit() or not 70 <= int(digits) <= 121:
                raise UsageError(
                    "DS0904",
                    f"unknown CUDA architecture {arch!r}",
                    fix="use sm_70 to sm_121, as in cuda:sm_80 or cuda:sm_90",
                )

    @property
    def name(self) -> str:
        """Return "cuda" or "cuda:sm_80+sm_90"."""
        return "cuda" if self.archs == DEFAULT_CUDA_ARCHS else "cuda:" + "+".join(self.archs)


@dataclass(frozen=True)
class McuTarget(Target):
    """A microcontroller core with its memories, in bytes. A program that needs more is refused with a BudgetError."""

    core: str = "cortex-m4"
    ram_bytes: int = 4 << 20
    flash_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        if self.core not in CORES:
            raise UsageError(
                "DS0904", f"unknown microcontroller core {self.core!r}", fix="known cores: " + ", ".join(CORES)
            )
        for label, value in (("ram_bytes", self.ram_bytes), ("flash_bytes", self.flash_bytes)):
            if not 1024 <= value <= 1 << 28:
                raise UsageError(
                    "DS0904", f"{label}={value} is not a memory size", fix="give 1 KiB to 256 MiB, in bytes"
                )

    @property
    def name(self) -> str:
        """Return "mcu:cortex-m4"."""
        return f"mcu:{self.core}"


def parse_target(text: str) -> Target:
    """Read "cpu", "cuda", "cuda:sm_80+sm_90" or "mcu:cortex-m4". Raises UsageError naming the known targets."""
    kind, _, rest = text.strip().partition(":")
    if kind == "cpu" and not rest:
        return CpuTarget()
    if kind == "cuda":
        return CudaTarget(tuple(rest.split("+"))) if rest else CudaTarget()
    if kind == "mcu" and rest:
        return McuTarget(rest)
    known = ", ".join(target_names())
    raise UsageError("DS0904", f"unknown target {text!r}", fix=f"known targets: {known}")


def target_names() -> tuple[str, ...]:
    """Return every target by name, in a stable order."""
    return ("cpu", "cuda", *(f"cuda:{arch}" for arch in DEFAULT_CUDA_ARCHS), *(f"mcu:{core}" for core in CORES))

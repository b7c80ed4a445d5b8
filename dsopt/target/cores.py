"""The microcontroller cores by name."""

from __future__ import annotations

from dataclasses import dataclass


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

    @property
    def about(self) -> str:
        """Return what is special about it, in a line."""
        units = [word for word, has in (("FPU", self.has_fpu), ("DSP", self.has_dsp), ("MVE", self.has_mve)) if has]
        parts = (
            "with " + ", ".join(units) if units else "without FPU",
            "runs on " + " and ".join(self.simulators) if self.simulators else "",
            self.note,
        )
        return "; ".join(part for part in parts if part)


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

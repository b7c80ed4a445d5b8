"""Compiles generated C with the simulator's firmware to one image, with ziglang or a cross-compiling gcc, and weighs the image.

What belongs to the model and what to the firmware is told apart by section: see simulate/firmware/README.md.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dsopt.errors import ReadError, ToolchainError, UsageError
from dsopt.native import cache_folder
from dsopt.simulate import firmware
from dsopt.simulate.boards import VECTORS_BYTES, MemoryMap, memory_maps
from dsopt.simulate.image import MAGIC, VERSION
from dsopt.target import CORES

VARIABLE = "DSOPT_TOOLCHAIN"
"""The environment variable that chooses between "zig" and "gcc"; without it, ziglang where it is installed."""

GCC = "arm-none-eabi-gcc"
_GCCS = {"arm": GCC, "riscv": "riscv64-unknown-elf-gcc"}
_GCC_PACKAGES = {"arm": "gcc-arm-none-eabi", "riscv": "gcc-riscv64-unknown-elf"}

# Zig names the FPU of no Cortex-M as a part of the core: without these features its code calls soft float. M7 and M33 may
# have the double-precision unit, and many do not: single precision is what all of them run.
_ZIG_CORES = {
    "cortex-m0": ("thumb-freestanding-eabi", "cortex_m0"),
    "cortex-m0plus": ("thumb-freestanding-eabi", "cortex_m0plus"),
    "cortex-m3": ("thumb-freestanding-eabi", "cortex_m3"),
    "cortex-m4": ("thumb-freestanding-eabihf", "cortex_m4+vfp4d16sp"),
    "cortex-m7": ("thumb-freestanding-eabihf", "cortex_m7+fp_armv8d16sp-fp64"),
    "cortex-m33": ("thumb-freestanding-eabihf", "cortex_m33+dsp+fp_armv8d16sp-fp64"),
    "cortex-m55": ("thumb-freestanding-eabihf", "cortex_m55+mve_fp"),
    "cortex-m85": ("thumb-freestanding-eabihf", "cortex_m85+mve_fp"),
    "rv32imc": ("riscv32-freestanding", "generic_rv32+m+c"),
    "rv32imafc": ("riscv32-freestanding", "generic_rv32+m+a+f+c"),
}
_GCC_FPUS = {
    "cortex-m4": "fpv4-sp-d16",
    "cortex-m7": "fpv5-sp-d16",
    "cortex-m33": "fpv5-sp-d16",
    "cortex-m55": "auto",
    "cortex-m85": "auto",
}
_GCC_ABIS = {"rv32imc": "ilp32", "rv32imafc": "ilp32f"}

_COMPILE = (
    "-std=c99", "-ffreestanding", "-fno-builtin", "-fomit-frame-pointer", "-ffunction-sections", "-fdata-sections",
    "-fno-unwind-tables", "-fno-asynchronous-unwind-tables", "-Wall", "-Wextra", "-Wconversion", "-Werror",
)  # fmt: skip
_LINK = (
    "-Wl,-T,link.ld", "-Wl,-e,harness_reset", "-Wl,--gc-sections", "-Wl,--build-id=none",
    "-Wl,-z,max-page-size=4096",
)  # fmt: skip
_SOURCE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}")
_SECONDS = 600
_SHOWN_LINES = 12


@dataclass(frozen=True)
class BuildOptions:
    """stack_bytes: room for the stack, at the lower end of RAM.  optimize: the compiler's -O, "1", "2", "3" or "s"."""

    stack_bytes: int = 32 << 10
    optimize: str = "2"

    def __post_init__(self) -> None:
        assert self.optimize in ("1", "2", "3", "s")
        assert 256 <= self.stack_bytes <= 64 << 20
        assert self.stack_bytes % 8 == 0


@dataclass(frozen=True)
class Image:
    """A linked image: an ELF file for `dsopt.simulate`, the same bytes for the same sources, options and compiler."""

    elf: bytes
    memory: MemoryMap


@dataclass(frozen=True)
class Toolchain:
    """A compiler for a core. name: "zig" or "gcc"; version: as it says itself; command: how it is started."""

    name: str
    version: str
    command: tuple[str, ...]

    def compile(self, sources: Mapping[str, str | bytes], core: str, options: BuildOptions | None = None) -> Image:
        """Compile every .c and .S file of `sources` with the firmware; the other files lie beside them.

        Raises ToolchainError with the compiler's first lines, if it refuses the code: that is a bug of dsopt.
        """
        options = options or BuildOptions()
        assert "harness_tables.c" in sources
        for name in sources:
            assert _SOURCE.fullmatch(name), name
            assert name == "harness_tables.c" or not name.startswith("harness"), name
        try:
            with tempfile.TemporaryDirectory(prefix="dsopt-") as name:
                return self._build(Path(name), sources, core, options)
        except OSError as error:
            raise ToolchainError(
                "DS1024", "the files of the image cannot be written", where=tempfile.gettempdir(),
                why=error.strerror or str(error), fix="free some space there, or set TMPDIR to another folder",
            ) from error  # fmt: skip

    def _build(self, folder: Path, sources: Mapping[str, str | bytes], core: str, options: BuildOptions) -> Image:
        objects = self._compile_all(folder, sources, core, options)
        for memory in memory_maps(core):
            (folder / "link.ld").write_text(_linker_script(memory, options), encoding="utf-8")
            helpers = ("-nostdlib", "-lgcc") if self.name == "gcc" else ()
            output = ("-o", "image.elf")
            done = self._run(folder, core, (f"-O{options.optimize}", *objects, *_LINK, *helpers, *output))
            if done.returncode == 0:
                return Image((folder / "image.elf").read_bytes(), memory)
            if "overflowed by" not in done.stderr:
                break
        raise self._refused("link the image", done.stderr)

    def _compile_all(
        self, folder: Path, sources: Mapping[str, str | bytes], core: str, options: BuildOptions
    ) -> list[str]:
        (folder / "model").mkdir()
        (folder / "firmware").mkdir()
        for name, content in firmware.sources().items():
            (folder / "firmware" / name).write_bytes(content)
        for name, text in sources.items():
            (folder / "model" / name).write_bytes(text.encode() if isinstance(text, str) else text)
        paths = [f"firmware/{name}" for name in firmware.sources()] + [f"model/{name}" for name in sorted(sources)]
        paths = [path for path in paths if path.endswith((".c", ".S"))]
        flags = (f"-O{options.optimize}", *_COMPILE, *self._compile_flags(), "-Ifirmware")
        # Threads only wait for compilers; which of several complaints is shown does not depend on which came first.
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            results = pool.map(lambda path: self._run(folder, core, (*flags, "-c", path, "-o", path + ".o")), paths)
            for path, done in zip(paths, results, strict=True):
                if done.returncode:
                    raise self._refused(f"compile {path.partition('/')[2]}", done.stderr)
        return [path + ".o" for path in paths]

    def _compile_flags(self) -> tuple[str, ...]:
        if self.name == "gcc":
            # Each layer stays the function that it was written as, under its name: not specialised for its one caller, not merged
            # with a layer that happens to be equal. And the loop of memcpy does not become a call of memcpy.
            return "-fno-ipa-cp", "-fno-ipa-sra", "-fno-ipa-icf", "-fno-tree-loop-distribute-patterns"
        # Nor does what two layers have in common become a function: what a layer takes would depend on the others.
        return ("-fno-sanitize=undefined", "-g0", "-mno-outline")

    def _core_flags(self, core: str) -> tuple[str, ...]:
        if self.name == "zig":
            triple, name = _ZIG_CORES[core]
            return "-target", triple, f"-mcpu={name}"
        if core in _GCC_ABIS:
            return f"-march={core}", f"-mabi={_GCC_ABIS[core]}"
        base = f"-mcpu={core}", "-mthumb"
        return (
            (*base, "-mfloat-abi=hard", f"-mfpu={_GCC_FPUS[core]}")
            if core in _GCC_FPUS
            else (*base, "-mfloat-abi=soft")
        )

    def _run(self, folder: Path, core: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "LC_ALL": "C"}
        if self.name == "zig":
            # Its helper library is kept, the objects are not: nothing would ever delete them.
            environment.setdefault("ZIG_GLOBAL_CACHE_DIR", str(_zig_cache(folder)))
            environment["ZIG_LOCAL_CACHE_DIR"] = str(folder / "zig-objects")
        try:
            return subprocess.run(
                [*self.command, *self._core_flags(core), *arguments], cwd=folder, env=environment, check=False,
                capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=_SECONDS,
            )  # fmt: skip
        except OSError as error:
            raise ToolchainError(
                "DS1022", f"{self.command[0]} cannot be started", why=error.strerror or str(error)
            ) from error
        except subprocess.TimeoutExpired:
            raise ToolchainError("DS1022", f"{self.version} did not finish within {_SECONDS} s") from None

    def _refused(self, what: str, errors: str) -> ToolchainError:
        lines = [line for line in errors.splitlines() if line.strip()]
        if self.name == "gcc" and any(re.search("(unrecognized|unknown).*-m(cpu|arch)", line) for line in lines):
            return ToolchainError(
                "DS1025", f"{self.version} does not know this core", why=lines[0],
                fix="install a newer one, or pip install dsopt[mcu] for ziglang, and unset DSOPT_TOOLCHAIN",
            )  # fmt: skip
        return ToolchainError(
            "DS1021", f"{self.version} could not {what}", why="\n".join(lines[:_SHOWN_LINES]),
            fix="this is a bug of dsopt, unless the disk is full: please report it with the model",
        )  # fmt: skip


def find_toolchain(core: str) -> Toolchain:
    """Return the compiler for a core: what DSOPT_TOOLCHAIN says, else ziglang, else the gcc of its family.

    Raises ToolchainError if there is none, UsageError for an unknown core or choice.
    """
    if core not in CORES:
        raise UsageError("DS1013", f"unknown core {core!r}", fix="known cores: " + ", ".join(CORES))
    chosen = os.environ.get(VARIABLE, "")
    if chosen not in ("", "zig", "gcc"):
        raise UsageError("DS1023", f"{VARIABLE}={chosen!r} is no toolchain", fix="set it to zig or gcc, or not at all")
    family = CORES[core].family
    ways = {"zig": "pip install dsopt[mcu]", "gcc": f"apt-get install {_GCC_PACKAGES[family]}"}
    wanted = [chosen] if chosen else ["zig", "gcc"]
    for name in wanted:
        found = _find_zig() if name == "zig" else _find_gcc(_GCCS[family])
        if found is not None:
            return found
    raise ToolchainError(
        "DS1020", f"no compiler for {core} is installed", fix=" or ".join(ways[name] for name in wanted)
    )


def _find_zig() -> Toolchain | None:
    found = importlib.util.find_spec("ziglang")
    if found is None or found.origin is None:
        return None
    # What `python -m ziglang` runs, without starting Python for each file.
    program = Path(found.origin).with_name("zig.exe" if os.name == "nt" else "zig")
    version = importlib.metadata.version("ziglang")
    return Toolchain("zig", f"zig {version}", (str(program), "cc"))


def _find_gcc(program: str = GCC) -> Toolchain | None:
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run([path, "-dumpfullversion"], check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Toolchain("gcc", f"{program} {done.stdout.strip()}", (path,)) if done.returncode == 0 else None


def _zig_cache(folder: Path) -> Path:
    """Return where zig keeps its helper library: our cache, or `folder` where that cannot be written."""
    try:
        cache = cache_folder() / "zig"
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return folder / "zig-cache"
    return cache if os.access(cache, os.W_OK) else folder / "zig-cache"


def _linker_script(memory: MemoryMap, options: BuildOptions) -> str:
    values = {field.name.upper(): getattr(memory, field.name) for field in fields(memory)}
    values |= {"VECTORS_BYTES": VECTORS_BYTES, "STACK_BYTES": options.stack_bytes, "MAGIC": MAGIC, "VERSION": VERSION}
    return re.sub(r"@([A-Z_]+)@", lambda match: hex(values[match[1]]), firmware.linker_script())


@dataclass(frozen=True)
class ImageSizes:
    """Bytes of the model in an image: its code and weights in flash, its variables in RAM (also those with first values, which
    count in both), without the firmware and the stack. symbols: of each function and variable.
    """

    flash_bytes: int
    ram_bytes: int
    symbols: Mapping[str, int]


def measure_image(elf: bytes) -> ImageSizes:
    """Weigh an image. Raises ReadError if it is none, ToolchainError without pyelftools."""
    try:
        from elftools.elf.elffile import ELFFile
    except ModuleNotFoundError as error:
        raise ToolchainError(
            "DS1010", "the package 'pyelftools' is missing, and images are read with it", fix="pip install dsopt[mcu]"
        ) from error
    try:
        file = ELFFile(io.BytesIO(elf))
        sections = {number: section for number, section in enumerate(file.iter_sections()) if _is_model(section)}
        symbols: dict[str, int] = {}
        for symbol in file.get_section_by_name(".symtab").iter_symbols():
            if symbol["st_shndx"] in sections and symbol["st_size"]:
                symbols[symbol.name] = symbols.get(symbol.name, 0) + symbol["st_size"]
    except Exception as error:  # pyelftools raises nearly anything for damaged files
        raise ReadError("DS1003", "this is no image that can be measured", why=str(error)[:200]) from error
    flash = sum(section["sh_size"] for section in sections.values() if section["sh_type"] != "SHT_NOBITS")
    ram = sum(section["sh_size"] for section in sections.values() if section.name in (".data", ".bss"))
    return ImageSizes(flash, ram, dict(sorted(symbols.items(), key=lambda item: (-item[1], item[0]))))


def _is_model(section: Any) -> bool:
    is_loaded = section["sh_flags"] & 2  # SHF_ALLOC
    return bool(is_loaded) and not section.name.startswith(".harness")

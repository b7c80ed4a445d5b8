"""Machine code without a GPU: both compilers, what the cubin holds, and what is said when there is no compiler."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from dsopt.backends.cuda import compiler
from dsopt.backends.cuda.compiler import (
    CudaCompiler,
    Nvcc,
    Nvrtc,
    Resources,
    find_compiler,
    nvrtc_library,
    read_resources,
)
from dsopt.errors import ToolchainError

SOURCE = """
extern "C" __global__ void __launch_bounds__(128) add(float* x, float* y) { y[threadIdx.x] = x[threadIdx.x] + 1.0f; }
extern "C" __global__ void __launch_bounds__(128) table(float* x, float* y) {
  float kept[64];
  for (int i = 0; i < 64; ++i) kept[i] = x[threadIdx.x * 64 + i];
  for (int i = 0; i < 64; ++i) kept[(int)kept[i] & 63] += expf(kept[i]);
  for (int i = 0; i < 64; ++i) y[threadIdx.x] += kept[i];
}
"""
NORM = """
extern "C" __global__ void __launch_bounds__(128) k0_norm(float* x, float* y) {
  float total = 0.0f;
  for (int i = 0; i < 64; ++i) total = total + expf(x[threadIdx.x * 64 + i]) * x[i];
  for (int i = 0; i < 64; ++i) y[threadIdx.x * 64 + i] = tanhf(x[threadIdx.x * 64 + i] / total);
}
"""  # as generated kernels are: scalars only, no arrays of its own
CUDA_MACHINE = 190  # EM_CUDA
EIATTR_REGCOUNT = 0x2F


def _compilers() -> list[CudaCompiler]:
    found: list[CudaCompiler] = []
    library, nvcc = nvrtc_library(), shutil.which("nvcc")
    if library is not None:
        found.append(Nvrtc(library))
    if nvcc is not None:
        found.append(Nvcc(nvcc))
    return found


COMPILERS = _compilers()
each_compiler = pytest.mark.parametrize("cuda", COMPILERS, ids=lambda cuda: cuda.name)


def _registers(elf: ELFFile) -> dict[str, int]:
    """Read the register counts from the .nv.info section: (format, attribute, size) and, for counts, (symbol, number)."""
    symbols = elf.get_section_by_name(".symtab")
    content, at, found = elf.get_section_by_name(".nv.info").data(), 0, {}
    while at < len(content):
        kind, attribute, size = content[at], content[at + 1], int.from_bytes(content[at + 2 : at + 4], "little")
        if attribute == EIATTR_REGCOUNT:
            symbol, count = (int.from_bytes(content[at + k : at + k + 4], "little") for k in (4, 8))
            found[symbols.get_symbol(symbol).name] = count
        at += 4 + (size if kind == 4 else 0)
    return found


@each_compiler
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_90a", "sm_100"])
def test_a_cubin_holds_code_of_every_kernel_and_the_registers_that_are_reported(cuda: CudaCompiler, arch: str) -> None:
    image = cuda.compile(SOURCE, arch)
    elf = ELFFile(io.BytesIO(image.code))
    assert elf["e_machine"] == "EM_CUDA" or elf["e_machine"] == CUDA_MACHINE
    for kernel in ("add", "table"):
        assert elf.get_section_by_name(f".text.{kernel}")["sh_size"] > 0
    assert {name: used.registers for name, used in image.resources.items()} == _registers(elf)
    assert image.resources["table"].stack_bytes == 256  # the array that is indexed by data
    assert image.resources["add"].stack_bytes == 0
    assert image.file == f"kernels.{arch}.cubin"


@each_compiler
def test_ptx_is_text_for_the_architecture(cuda: CudaCompiler) -> None:
    image = cuda.compile(SOURCE, "compute_90")
    text = image.code.decode()
    assert ".target sm_90" in text
    assert ".entry add(" in text
    assert image.file == "kernels.compute_90.ptx"
    assert image.resources == {}


@each_compiler
def test_division_and_square_root_are_those_of_ieee_and_denormals_are_kept(cuda: CudaCompiler) -> None:
    source = 'extern "C" __global__ void k(float* x) { x[0] = x[1] / x[2]; x[3] = sqrtf(x[4]); x[5] = x[6] * x[7]; }'
    text = cuda.compile(source, "compute_80").code.decode()
    assert "div.rn.f32" in text
    assert "sqrt.rn.f32" in text
    assert ".ftz" not in text
    assert ".approx" not in text


@each_compiler
def test_the_same_source_gives_the_same_bytes_whatever_the_environment(
    cuda: CudaCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [cuda.compile(NORM, arch).code for arch in ("sm_90", "compute_90")]
    monkeypatch.setenv("PADDING", "x" * 21_003)  # moves the addresses that compilers hash by
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert [cuda.compile(NORM, arch).code for arch in ("sm_90", "compute_90")] == before


def test_what_nvrtc_has_compiled_before_leaves_no_trace() -> None:
    library = nvrtc_library()
    if library is None:
        pytest.skip("nvidia-cuda-nvrtc is not installed")
    cuda = Nvrtc(library)
    first = cuda.compile(NORM, "compute_90").code
    for arch in ("sm_100", "sm_80"):
        cuda.compile(NORM, arch)
    assert cuda.compile(NORM, "compute_90").code == first


@each_compiler
def test_code_holds_no_path_of_this_machine(cuda: CudaCompiler) -> None:
    code = cuda.compile(SOURCE, "sm_90").code
    for path in (str(Path.home()), str(Path.cwd()), "/tmp", "dsopt-nvcc"):
        assert path.encode() not in code


@each_compiler
def test_an_unknown_architecture_is_answered_with_the_known_ones(cuda: CudaCompiler) -> None:
    with pytest.raises(ToolchainError, match="DS0702") as caught:
        cuda.compile(SOURCE, "sm_61")
    assert "sm_80, sm_86" in caught.value.why
    assert caught.value.exit_code == 4


@each_compiler
def test_source_that_does_not_compile_is_refused_with_the_log(cuda: CudaCompiler) -> None:
    with pytest.raises(ToolchainError, match="DS0704") as caught:
        cuda.compile('extern "C" __global__ void k() { no_such_name = 1; }', "sm_90")
    assert 'kernels.cu(1): error: identifier "no_such_name" is undefined' in caught.value.why


def test_nvrtc_comes_first_then_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    if len(COMPILERS) < 2:
        pytest.skip("needs both nvidia-cuda-nvrtc and nvcc")
    assert isinstance(find_compiler(), Nvrtc)
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    assert isinstance(find_compiler(), Nvcc)


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    with pytest.raises(ToolchainError, match="DS0701: there is no CUDA compiler here") as caught:
        find_compiler()
    assert caught.value.fix == 'pip install "dsopt[cuda]"'


def test_a_damaged_nvrtc_is_named(tmp_path: Path) -> None:
    library = tmp_path / "libnvrtc.so.13"
    library.write_bytes(b"\x7fELF and nothing else")
    with pytest.raises(ToolchainError, match=r"DS0701: libnvrtc\.so\.13 cannot be loaded"):
        Nvrtc(library)


def test_the_newest_nvrtc_wheel_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12", "cu13/lib/libnvrtc-builtins.so.13.5"):
        file = tmp_path / "nvidia" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    spec = compiler.importlib.machinery.ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "nvidia")]
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: spec)
    assert nvrtc_library() == tmp_path / "nvidia/cu13/lib/libnvrtc.so.13"


def test_spills_are_read_from_the_log() -> None:
    log = (
        "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function 'k7_big' for 'sm_90'\n"
        "ptxas info    : Function properties for k7_big\nptxas         .     312 bytes stack frame, 40 bytes spill stores, "
        "44 bytes spill loads\nptxas info    : Used 255 registers, used 0 barriers, 312 bytes cumulative stack size\n"
    )
    assert read_resources(log) == {"k7_big": Resources(255, 312, 40, 44)}

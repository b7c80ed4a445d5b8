"""The generated files: what compilers say of them, what the API does, and whether their own test finds an error."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dsopt
from dsopt.ir import Program
from tests.backends.mcu.desk import DeskModel, compile_c, placed, prepared, sources, write
from tests.backends.tir.host_runner import relative_error

Capture = Callable[..., Program]


@pytest.fixture
def program(conv_program: Program) -> Program:
    return prepared(conv_program.specialize({"batch": 1}))


@pytest.mark.parametrize("standard", ["c99", "c11"])
def test_the_files_compile_without_a_warning_and_pass_their_own_test(
    program: Program, standard: str, tmp_path: Path
) -> None:
    write(tmp_path, sources(program))
    names = ("model.c", "weights.c", "test_vectors.c", "run_tests.c")
    done = compile_c(tmp_path, *names, "-o", "tests", standard=standard)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([tmp_path / "tests"], check=False).returncode == 0


def test_ziglang_compiles_the_files_without_a_warning(program: Program, tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    write(tmp_path, sources(program))
    flags = ["-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m4+vfp4d16sp", "-ffreestanding", "-std=c99", "-O2"]
    flags += ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-pedantic", "-Werror", "-fno-builtin", "-c"]
    for name in ("model.c", "weights.c", "run_tests.c"):
        command = [sys.executable, "-m", "ziglang", "cc", *flags, name, "-o", f"{name}.o"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_object_asks_for_nothing_of_a_c_library(program: Program, tmp_path: Path) -> None:
    write(tmp_path, sources(program))
    assert compile_c(tmp_path, "-ffreestanding", "-fno-builtin", "-fno-pic", "-c", "model.c").returncode == 0
    done = subprocess.run(["nm", "-u", "model.o"], cwd=tmp_path, capture_output=True, text=True, check=True)
    undefined = {line.split()[-1] for line in done.stdout.splitlines() if line.strip()}
    assert {name for name in undefined if not name.startswith("model_weight_")} <= {"memcpy", "memset", "memmove"}


def test_the_header_can_be_included_from_cpp(program: Program, tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    write(tmp_path, sources(program))
    (tmp_path / "main.cpp").write_text(
        '#include "model.h"\nint main() { model_init(); model_run(); return model_input(9) != 0; }\n'
    )
    names = ["model.c", "weights.c"]
    assert compile_c(tmp_path, "-c", *names).returncode == 0
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    done = subprocess.run(
        [compiler, *flags, "main.cpp", "model.o", "weights.o", "-o", "main"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert subprocess.run([tmp_path / "main"], check=False).returncode == 0


def test_two_models_live_in_one_image(program: Program, tmp_path: Path) -> None:
    paths: list[str] = []
    for name in ("first", "second"):
        write(tmp_path / name, sources(program, name))
        paths += [f"{name}/{file}.c" for file in ("model", "weights", "test_vectors", "run_tests")]
    calls = "int first_run_tests(void);\nint second_run_tests(void);\n"
    (tmp_path / "main.c").write_text(calls + "int main(void) { return first_run_tests() + second_run_tests(); }\n")
    done = compile_c(tmp_path, "-DFIRST_NO_MAIN", "-DSECOND_NO_MAIN", "main.c", *paths, "-o", "both")
    assert done.returncode == 0, done.stderr
    assert subprocess.run([tmp_path / "both"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("file", "pattern", "replacement"),
    [
        ("model.c", r"\+= x\[", "-= x["),
        ("model.c", r"ic < 3;", "ic < 2;"),
        ("model.c", r"0\.0f\)", "0.5f)"),
        ("weights.c", r"= \{\n    -?\d", "= {\n    9"),
    ],
)
def test_a_planted_error_fails_the_generated_test(
    program: Program, file: str, pattern: str, replacement: str, tmp_path: Path
) -> None:
    files = dict(sources(program))
    changed = re.sub(pattern, replacement, files[file], count=1)
    assert changed != files[file]
    write(tmp_path, {**files, file: changed})
    names = ("model.c", "weights.c", "test_vectors.c", "run_tests.c")
    assert compile_c(tmp_path, *names, "-o", "tests").returncode == 0
    assert subprocess.run([tmp_path / "tests"], check=False).returncode == 1


def test_the_same_program_gives_the_same_bytes(conv_program: Program) -> None:
    first, second = (sources(prepared(conv_program.specialize({"batch": 1}))) for _ in range(2))
    assert first == second


def test_layers_are_named_after_the_users_modules(program: Program) -> None:
    text = sources(program)["model.c"]
    for name in ("stem_0_conv", "body_0_conv", "head_linear"):
        assert f"LAYER void {name}(" in text
    assert "arena at " in text
    assert "multiply-adds" in text


def test_equal_layers_share_their_loops_and_keep_their_names(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)), nn.Linear(6, 2)).eval()
    program = prepared(dsopt.capture(model, (torch.randn(1, 6),)))
    text = sources(program)["model.c"]
    assert text.count("LAYER void shared_layer_0_0_linear(") == 1
    assert all(f"LAYER void layer_{number}_0_linear(void)" in text for number in range(3))
    assert "LAYER void layer_3_linear(\n    const float *restrict x," in text
    x = torch.randn(1, 6)
    assert relative_error(DeskModel(program, tmp_path).run(x.numpy())[0], program.run(x)[0].numpy()) < 1e-6


def test_a_ram_budget_can_be_asserted_at_compile_time(program: Program, tmp_path: Path) -> None:
    write(tmp_path, sources(program))
    need = placed(program).plan.arena_bytes
    enough = compile_c(tmp_path, f"-DMODEL_RAM_BUDGET={need}", "-c", "model.c", standard="c11")
    assert enough.returncode == 0, enough.stderr
    short = compile_c(tmp_path, f"-DMODEL_RAM_BUDGET={need - 1}", "-c", "model.c", standard="c11")
    assert "the model does not fit the RAM budget" in short.stderr


def test_a_port_that_does_not_exist_has_no_address(program: Program, tmp_path: Path) -> None:
    model = DeskModel(program, tmp_path)
    assert [getattr(model.library, f"model_{kind}")(99) for kind in ("input", "output", "state")] == [None] * 3


def test_states_step_and_reset(counter_program: Program, tmp_path: Path) -> None:
    program = prepared(counter_program)
    model = DeskModel(program, tmp_path)
    x = torch.randn(2, 3)
    states = None
    for _ in range(3):
        wanted, states = program.run_stateful((x,), states)
        np.testing.assert_allclose(model.run(x.numpy())[0], wanted[0].numpy(), rtol=1e-6)
        np.testing.assert_allclose(model.state(0), states["total"].numpy(), rtol=1e-6)
    model.reset()
    np.testing.assert_allclose(model.run(x.numpy())[0], program.run(x)[0].numpy(), rtol=1e-6)


class Cache(nn.Module):
    """Writes a row of a cache and reads all of it, as a decoder does; a second state starts at ones."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(5, 3))
        self.register_buffer("other", torch.ones(3))

    def forward(self, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        before = self.other * 2
        self.rows.index_copy_(0, at, x[None])
        self.other.mul_(0.5).add_(x)
        return self.rows.sum(0) + self.other, before


def test_a_cache_is_updated_in_place_and_read_after_it(tmp_path: Path) -> None:
    program = prepared(dsopt.capture(Cache(), (torch.randn(3), torch.tensor([1]))))
    model = DeskModel(program, tmp_path)
    states = None
    for step in range(4):
        inputs = (torch.randn(3), torch.tensor([step]))
        wanted, states = program.run_stateful(inputs, states)
        got = model.run(*(value.numpy() for value in inputs))
        errors = [relative_error(one, other.numpy()) for one, other in zip(got, wanted, strict=True)]
        assert max(errors) < 1e-6
        np.testing.assert_allclose(model.state(0), states["rows"].numpy(), rtol=1e-6)
        np.testing.assert_allclose(model.state(1), states["other"].numpy(), rtol=1e-6)
    assert placed(program).plan.arena_bytes < 5 * 3 * 4 + 200


class Swap(nn.Module):
    """Two states that take each other's value, and an output that is a state's old value."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.tensor([1.0, 2.0]))
        self.register_buffer("b", torch.tensor([3.0, 4.0]))

    def forward(self, x: Tensor) -> Tensor:
        old = self.a.clone()
        self.a.copy_(self.b)
        self.b.copy_(old)
        return old + 0 * x


def test_states_may_take_each_others_values(tmp_path: Path) -> None:
    program = prepared(dsopt.capture(Swap(), (torch.zeros(2),)))
    model = DeskModel(program, tmp_path)
    got = [model.run(np.zeros(2, np.float32))[0].tolist() for _ in range(3)]
    assert got == [[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]


PORTS: dict[str, tuple[Callable[..., object], tuple[Tensor, ...]]] = {
    "an input that is an output": (lambda x: (x, x + 1), (torch.randn(3),)),
    "nothing but the input": (lambda x: x, (torch.randn(2, 2),)),
    "one value twice": (lambda x: (y := x * 2, y, y.view(-1)), (torch.randn(2, 2),)),
    "integers and booleans": (lambda x, i: (x > 0, i + 1, x.argmax()), (torch.randn(4), torch.arange(3))),
    "an input that is not used": (lambda x, y: x * 2, (torch.randn(3), torch.randn(5))),
    "a constant": (lambda x: (x + 1, torch.arange(4.0)), (torch.randn(3),)),
    "a scalar": (lambda x: x.sum(), (torch.randn(3),)),
    "infinity": (lambda x: x.masked_fill(x > 0, float("-inf")) + torch.tensor([0.0, float("inf"), 1.0]), (torch.randn(3),)),
}  # fmt: skip


@pytest.mark.parametrize("name", PORTS)
def test_unusual_inputs_and_outputs_arrive(name: str, capture_function: Capture, tmp_path: Path) -> None:
    function, inputs = PORTS[name]
    program = prepared(capture_function(function, *inputs))
    wanted = program.run(*inputs)
    got = DeskModel(program, tmp_path).run(*(value.numpy() for value in inputs))
    for one, other in zip(got, wanted, strict=True):
        assert relative_error(one, other.numpy()) <= 1e-6


def test_sanitizers_find_nothing_in_a_network_with_every_kind_of_border(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.ConvTranspose2d(4, 3, 3, 2, 1),
        nn.AvgPool2d(2, padding=1), nn.ReflectionPad2d(1), nn.Upsample(scale_factor=1.5, mode="bilinear"), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(12, 5), nn.Softmax(-1),
    ).eval()  # fmt: skip
    program = prepared(dsopt.capture(model, (torch.randn(1, 2, 17, 19),)))
    write(tmp_path, sources(program))
    names = ("model.c", "weights.c", "test_vectors.c", "run_tests.c")
    done = compile_c(tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", *names, "-o", "tests")
    if done.returncode and "sanitize" in done.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert done.returncode == 0, done.stderr
    assert subprocess.run([tmp_path / "tests"], check=False, capture_output=True).returncode == 0


def test_the_hash_changes_with_the_weights(conv_program: Program) -> None:
    program = prepared(conv_program.specialize({"batch": 1}))
    module = program.module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    headers = [sources(each)["model.h"] for each in (program, program.with_weights(module))]
    hashes = [re.findall(r'MODEL_HASH "(\w+)"', header) for header in headers]
    assert hashes[0] != hashes[1]

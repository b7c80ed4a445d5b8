"""model.h: clean in C99, C11 and C++17, true where the compiler can check it, and two models in one image."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dsopt
from dsopt.ir import Program
from tests.backends.mcu.desk import prepared, sources, write
from tests.backends.tir.host_runner import host_compiler

FLAGS = ("-O1", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wundef", "-pedantic", "-Werror")
C99, C11, CPP = ("-x", "c", "-std=c99"), ("-x", "c", "-std=c11"), ("-x", "c++", "-std=c++17")
DIALECTS = {"C99": C99, "C11": C11, "C++11": ("-x", "c++", "-std=c++11"), "C++17": CPP}


class Several(nn.Module):
    """Inputs of several types, a scalar, two outputs and a state."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(5, 4)
        self.body = nn.Linear(4, 3)
        self.register_buffer("seen", torch.ones(3))

    def forward(self, ids: Tensor, mask: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(self.table(ids).mean(0)) * gain
        self.seen.add_(y)
        return torch.where(mask, y, self.seen), y > 0


def several(seed: int = 0) -> Program:
    inputs = (torch.tensor([1, 4]), torch.tensor([True, False, True]), torch.tensor(2.0))
    return prepared(dsopt.capture(Several(seed).eval(), inputs))


def compiled(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([host_compiler(), *arguments], cwd=folder, capture_output=True, text=True, check=False)


def accepted(folder: Path, *arguments: str) -> None:
    done = compiled(folder, *arguments)
    assert done.returncode == 0, done.stderr


USES = """
#include "model.h"
#include "model.h"

const char *describe(void);
const char *describe(void)
{
    static const int32_t shape[] = MODEL_INPUT_1_SHAPE;
    const MODEL_OUTPUT_0_TYPE *const output = static_pointer(model_output(0));
    model_init();
    model_reset();
    model_run();
    return shape[0] == MODEL_INPUT_1_DIM_0 && MODEL_INPUT_2_RANK == 0 && output[0] > 0.0f ? MODEL_NAME : MODEL_HASH;
}
"""


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_header_is_clean_in_every_dialect(dialect: str, tmp_path: Path) -> None:
    write(tmp_path, sources(several()))
    cast = "static_cast<const MODEL_OUTPUT_0_TYPE *>(" if "++" in dialect else "(const MODEL_OUTPUT_0_TYPE *)("
    (tmp_path / "uses.c").write_text(USES.replace("static_pointer(", cast))
    strict = ("-Wold-style-cast",) if "++" in dialect else ("-Wstrict-prototypes", "-Wmissing-prototypes")
    accepted(tmp_path, *DIALECTS[dialect], *FLAGS, *strict, "-c", "uses.c", "-o", "uses.o")


@pytest.mark.parametrize("standard", ["c99", "c11", "gnu17"])
def test_the_sources_are_clean(standard: str, tmp_path: Path) -> None:
    files = write(tmp_path, sources(several()))
    for name in ("model.c", "weights.c", "run_tests.c", "test_vectors.c"):
        accepted(
            files, f"-std={standard}", *FLAGS, "-Wstrict-prototypes", "-Wmissing-prototypes", "-c", name, "-o", "it.o"
        )


def test_results_cannot_be_written_to(tmp_path: Path) -> None:
    write(tmp_path, sources(several()))
    (tmp_path / "uses.c").write_text(
        '#include "model.h"\nfloat *first(void);\nfloat *first(void) { return model_output(0); }\n'
    )
    done = compiled(tmp_path, *C99, *FLAGS, "-c", "uses.c")
    assert "discards" in done.stderr
    assert "const" in done.stderr


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_broken_promise_stops_the_compiler_where_it_can_check(dialect: str, tmp_path: Path) -> None:
    write(tmp_path, sources(several()))
    done = compiled(tmp_path, *DIALECTS[dialect], *FLAGS, "-DMODEL_RAM_BUDGET=8", "-c", "model.h", "-o", "it.o")
    assert (done.returncode == 0) == (dialect == "C99")
    assert ("the model does not fit the RAM budget" in done.stderr) == (dialect != "C99")
    accepted(tmp_path, *DIALECTS[dialect], *FLAGS, "-DMODEL_RAM_BUDGET=65536", "-c", "model.h", "-o", "it.o")


def test_the_macros_say_what_the_model_is() -> None:
    text = sources(several())["model.h"]
    for line in (
        '#define MODEL_NAME "model"',
        '#define MODEL_TARGET "mcu:cortex-m4"',
        "#define MODEL_ARENA_ALIGNMENT ",
        "#define MODEL_INPUT_0_TYPE int64_t",
        "#define MODEL_INPUT_0_DIM_0 2",
        "#define MODEL_INPUT_1_TYPE bool",
        "#define MODEL_INPUT_2_SHAPE {1}",
        "#define MODEL_OUTPUT_1_BYTES 3",
        "#define MODEL_STATE_0_ELEMENTS 3",
    ):
        assert line in text, line


TWO = """
#include "first/model.h"
#include "second/model.h"

int first_run_tests(void);
int second_run_tests(void);

int main(void)
{
    const int alone = first_run_tests() + second_run_tests();
    const int again = first_run_tests() + second_run_tests();
    return alone + again + (FIRST_ARENA_BYTES != SECOND_ARENA_BYTES) + (first_output(0) == second_output(0));
}
"""


@pytest.mark.parametrize("dialect", ["C99", "C++17"])
def test_two_models_are_one_image(dialect: str, tmp_path: Path) -> None:
    objects = []
    for seed, name in enumerate(("first", "second")):
        write(tmp_path / name, sources(several(seed), name))
        for file in ("model", "weights", "run_tests", "test_vectors"):
            objects.append(f"{name}/{file}.o")
            source = f"{name}/{file}.c"
            accepted(
                tmp_path, *C99, *FLAGS, f"-D{name.upper()}_NO_MAIN", "-I.", "-Ifirst", "-c", source, "-o", objects[-1]
            )
    functions = ("int first_run_tests(void);", "int second_run_tests(void);")
    text = TWO
    if "++" in dialect:
        for function in functions:
            text = text.replace(function, f'extern "C" {function}')
    (tmp_path / "main.c").write_text(text)
    accepted(tmp_path, *DIALECTS[dialect], *FLAGS, "-c", "main.c", "-o", "main.o")
    accepted(tmp_path, "main.o", *objects, "-o", "both")
    assert subprocess.run([str(tmp_path / "both")], check=False).returncode == 0


@pytest.mark.mcu
def test_ports_of_integers_say_what_they_stand_for(tmp_path: Path) -> None:
    program = dsopt.load_model("tests.cli.models:plain_convolutions")
    x = np.random.default_rng(0).standard_normal((12, 3, 16, 16), dtype=np.float32)
    artifact = dsopt.compile(program, "mcu:cortex-m4", "...,quantize", {"x": x}, io="int8")
    stored = artifact.manifest["inputs"][0]["stored"]
    text = artifact.files["model.h"].decode()
    assert "#define MODEL_INPUT_0_TYPE int8_t" in text
    assert f"#define MODEL_INPUT_0_ZERO_POINT ({stored['zero_point']})" in text
    assert "#define MODEL_INPUT_0_LOW (-128)\n#define MODEL_INPUT_0_HIGH (127)" in text
    scale = re.search(r"#define MODEL_INPUT_0_SCALE (\S+)f\n", text)
    assert scale is not None
    assert np.float32(scale[1]) == np.float32(stored["scale"])
    (tmp_path / "model.h").write_text(text)
    (tmp_path / "uses.c").write_text(
        '#include "model.h"\nfloat real(int8_t q);\n'
        "float real(int8_t q) { return MODEL_OUTPUT_0_SCALE * (float)(q - MODEL_OUTPUT_0_ZERO_POINT); }\n"
    )
    accepted(tmp_path, *C99, *FLAGS, "-c", "uses.c", "-o", "uses.o")
    accepted(tmp_path, *CPP, *FLAGS, "-Wno-missing-declarations", "-c", "uses.c", "-o", "uses.o")

"""An Arduino library (Arduino library specification 1.5: library.properties, src, examples)."""

from __future__ import annotations

from dsopt.projects.example import sketch
from dsopt.projects.model import VERSION, Model

CHECKED = (
    "structure only, against the rules of the Arduino library specification. The sketch and the sources are compiled "
    "and run on a desk with a stand-in for Arduino.h, and not with an Arduino core."
)

HOW = """Copy this folder to the `libraries` folder of your sketchbook under the name `NAME`, or zip it and choose
Sketch, Include Library, Add .ZIP Library. Then open File, Examples, NAME, RunTests, and upload it: the serial monitor
shows, at 115200 baud, how many outputs differ."""


def files(model: Model) -> dict[str, str | bytes]:
    """Return the files by name."""
    p = model.name
    keywords = [f"{p}_{function}\tKEYWORD2" for function in ("init", "reset", "run", "input", "output", "state")]
    return {
        **model.library("src/"),
        **model.test_files("examples/RunTests/"),
        "examples/RunTests/RunTests.ino": sketch(model),
        "keywords.txt": "\n".join(keywords) + "\n",
        "library.properties": _properties(model),
    }


def _properties(model: Model) -> str:
    name = model.name.strip("_") or "model"
    name = f"model_{name}" if name.startswith("arduino") or name[0].isdigit() else name
    values = {
        "name": name[:63],
        "version": VERSION,
        "author": "dsopt",
        "maintainer": "dsopt",
        "sentence": f"The neural network {model.name} as C, compiled by dsopt.",
        "paragraph": f"Compiled for {model.target}. One static arena, no heap, no operating system.",
        "category": "Data Processing",
        "url": "https://example.com/" + model.dashed,
        "architectures": "*",
        "includes": f"{model.name}.h",
    }
    return "".join(f"{key}={value}\n" for key, value in values.items())

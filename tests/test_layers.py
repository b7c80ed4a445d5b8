"""Imports point down. The table is the one of docs/architecture.md; this test is what enforces it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "dsopt"

BASE = {"dims", "errors", "nesting", "sparse_schedule", "zip_limits", "target"}
RULES: dict[str, tuple[set[str], set[str]]] = {
    # layer: (may import of dsopt, may import of others)
    "cli": (
        {
            "api",
            "measure",
            "report",
            "accuracy",
            "artifact",
            "runtime",
            "feeds",
            "passes",
            "frontend",
            "compression",
            "train",
            "config",
            "projects",
            *BASE,
        },
        {"click", "rich", "numpy"},
    ),
    "compression": (
        {
            "api",
            "measure",
            "accuracy",
            "train",
            "backends",
            "passes",
            "ir",
            "artifact",
            "runtime",
            "feeds",
            *BASE,
        },
        {"torch", "numpy"},
    ),
    "config": ({*BASE}, {"click", "tomli"}),
    "api": ({"accuracy", "backends", "passes", "frontend", "ir", "artifact", "feeds", "lock", *BASE}, {"torch"}),
    "accuracy": (
        {"backends", "passes", "ir", "ops", "runtime", "artifact", "feeds", *BASE},
        {"torch", "numpy"},
    ),
    "train": ({"passes", "ir", *BASE}, {"torch", "numpy", "rich"}),
    "measure": (
        {"accuracy", "backends", "passes", "frontend", "ir", "artifact", "runtime", "feeds", *BASE},
        {"torch", "numpy", "onnxruntime"},
    ),
    "lock": ({"passes", "ir", *BASE}, set()),
    "backends": (
        {"native", "passes", "ir", "ops", "artifact", "simulate", "runtime", *BASE},
        {"torch", "tvm", "tvm_ffi", "onnx", "triton", "numpy", "elftools", "ziglang"},
    ),
    "passes": ({"ir", "ops", "native", *BASE}, {"torch", "numpy"}),
    "frontend": ({"ir", "ops", *BASE}, {"torch", "onnx", "numpy"}),
    "ir": ({"ops", *BASE}, {"torch"}),
    "ops": ({"errors", "sparse_schedule"}, {"torch", "numpy"}),
    "npy": (set(), {"numpy"}),
    "native": (set(), set()),
    "runtime": ({"artifact", "simulate", "npy", *BASE}, {"numpy", "onnxruntime"}),
    "simulate": ({"native", *BASE}, {"numpy", "unicorn", "elftools"}),
    "projects": ({"artifact", *BASE}, set()),
    "artifact": ({*BASE}, {"numpy"}),
    "feeds": ({"npy", *BASE}, {"numpy"}),
    "report": (set(BASE), set()),
    **{name: ({"errors"}, set()) for name in sorted(BASE - {"errors"})},
    "errors": (set(), set()),
    "__init__": ({"api", "accuracy", "compression", "artifact", "frontend", "ir", "ops", "passes", *BASE}, set()),
    "__main__": ({"cli"}, set()),
}
STANDARD = set(__import__("sys").stdlib_module_names)

FILES = sorted(ROOT.rglob("*.py"))


def _layer(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            found.append((node.lineno, str(node.module)))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_layer_may(path: Path) -> None:
    layer = _layer(path)
    assert layer in RULES, f"{layer} is no layer of the table"
    ours, others = RULES[layer]
    wrong = []
    for line, name in _imports(path):
        top, _, rest = name.partition(".")
        inner = rest.partition(".")[0]
        if top == "dsopt":
            allowed = not inner or inner == layer or inner in ours
        else:
            allowed = top in STANDARD or top in others
        if not allowed:
            wrong.append(
                f"dsopt/{path.relative_to(ROOT)}:{line} imports {name}; {layer} may import {sorted(ours | others)}"
            )
    assert not wrong, "\n".join(wrong)


def test_passes_do_not_import_each_other() -> None:
    shared = {"dsopt.passes", "dsopt.passes.base"}
    for path in (ROOT / "passes").rglob("*.py"):
        parts = path.relative_to(ROOT / "passes").parts
        own = "dsopt.passes." + parts[0].removesuffix(".py")
        for line, name in _imports(path):
            if name.startswith("dsopt.passes") and name not in shared:
                assert name == own or name.startswith(own + "."), f"{path}:{line} imports {name}"


def test_the_backends_of_two_targets_do_not_import_each_other() -> None:
    targets = {"cpu", "cuda", "mcu"}
    for target in targets:
        for path in (ROOT / "backends" / target).rglob("*.py"):
            for line, name in _imports(path):
                for other in targets - {target}:
                    assert not name.startswith(f"dsopt.backends.{other}"), f"{path}:{line} imports {name}"


def test_private_names_of_torch_live_in_one_file() -> None:
    for path in FILES:
        if path.name == "torch_private.py":
            continue
        for line, name in _imports(path):
            parts = name.split(".")
            assert not (parts[0] == "torch" and any(part.startswith("_") for part in parts)), (
                f"{path}:{line} imports {name}"
            )
            assert not name.startswith("torch.fx.experimental"), f"{path}:{line} imports {name}"

"""dsopt doctor: what is installed, what is missing, and how to get it."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import click

from dsopt.cli.options import speaking
from dsopt.cli.output import Output, pairs, table
from dsopt.cli.packages import EXTRAS, PACKAGES, TOOLS, Package, Tool


@click.command(short_help="Say what is installed and what is missing.")
@click.option("--onnx", is_flag=True, help="List the ONNX operators that models may hold instead.")
@speaking
def command(console: Output, onnx: bool) -> None:
    """Say which packages and programs are here, what each missing one is for, and how to get it."""
    if onnx:
        _show_onnx(console)
        return
    packages = [_package(package) for package in PACKAGES]
    tools = [_tool(tool) for tool in TOOLS]
    system = {
        "dsopt": _version("dsopt"), "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}",
        "interpreter": sys.executable,
    }  # fmt: skip
    rows = [
        (each["name"], each["version"] or "missing", each["purpose"], "" if each["version"] else each["install"])
        for each in packages
    ]
    rows += [
        (each["name"], each["path"] or "missing", each["purpose"], "" if each["path"] else each["install"])
        for each in tools
    ]
    text = pairs(list(system.items())) + "\n" + table(["needs", "found", "for", "get it with"], rows)
    console.result({"system": system, "packages": packages, "tools": tools}, text)


def _package(package: Package) -> dict[str, Any]:
    found = _version(package.distribution) if _is_importable(package.module) else ""
    install = f"dsopt[{package.extra}]" if package.extra else "dsopt"
    return {
        "name": package.distribution, "version": found or None, "purpose": EXTRAS[package.extra], "install": f'pip install "{install}"'
    }  # fmt: skip


def _is_importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package is missing or broken
        return False


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _tool(tool: Tool) -> dict[str, Any]:
    return {"name": tool.name, "path": _find(tool.name), "purpose": tool.purpose, "install": tool.install}


def _find(name: str) -> str | None:
    if name.startswith("lib"):
        from ctypes.util import find_library

        return find_library(name.removeprefix("lib"))
    return shutil.which(name)


def _show_onnx(console: Output) -> None:
    from dsopt.frontend.onnx_reader import supported_operators

    found = list(supported_operators())
    text = "\n".join(str(each) for each in found)
    console.result({"operators": [str(each) for each in found]}, f"{text}\n\n{len(found)} operators")

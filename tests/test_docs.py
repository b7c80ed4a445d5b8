"""Every code block of the README and docs runs, in order, each file in one namespace and one empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _blocks(path: Path) -> list[tuple[str, str]]:
    return [(match[1], match[2]) for match in _BLOCK.finditer(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", [path for path in FILES if _blocks(path)], ids=lambda path: path.name)
def test_the_code_blocks_of_a_document_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    module = types.ModuleType("documented")
    monkeypatch.setitem(sys.modules, "documented", module)
    for kind, text in _blocks(path):
        if kind == "python":
            first = re.match(r"# (\w+\.py)\n", text)
            if first:
                (tmp_path / first[1]).write_text(text, encoding="utf-8")
            exec(compile(text, str(path), "exec"), module.__dict__)
        else:
            _run_console(text)


def _run_console(text: str) -> None:
    """Lines after "$ " are run; the lines below them are what must be printed, in which "..." stands for anything."""
    for block in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = block.partition("\n")
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        pattern = ".*".join(re.escape(part) for part in expected.strip().split("..."))
        assert re.search(pattern, done.stdout, re.DOTALL), f"{command}\n{done.stdout}"


def test_every_link_between_documents_leads_somewhere() -> None:
    for path in FILES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{path.name} links to {target}"

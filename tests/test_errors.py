"""Every error code has a page, every page a code, and the pages say something."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from dsopt.errors import CaptureError, DsoptError

ROOT = Path(__file__).parent.parent / "dsopt"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "explanations").glob("*.md"))}
USED = {code for path in ROOT.rglob("*.py") for code in re.findall(r'"(DS\d{4})"', path.read_text(encoding="utf-8"))}


def test_every_code_in_the_source_has_a_page() -> None:
    assert sorted(USED - set(PAGES)) == []


def test_every_page_is_of_a_code_in_the_source() -> None:
    assert sorted(set(PAGES) - USED) == []


@pytest.mark.parametrize("code", sorted(PAGES))
def test_a_page_has_a_title_and_says_what_to_do(code: str) -> None:
    title, _, body = PAGES[code].partition("\n")
    assert title.startswith("# ")
    assert len(body.split()) >= 25


def test_a_message_says_what_where_why_and_what_to_do() -> None:
    error = CaptureError("DS0101", "it broke", where="a\nb", why="because", fix="mend it")
    assert str(error) == "DS0101: it broke\n  where: a\n    b\n  why: because\n  do: mend it"
    assert error.exit_code == 3


def test_errors_cross_processes() -> None:
    error = pickle.loads(pickle.dumps(CaptureError("DS0101", "it broke", fix="mend it")))
    assert isinstance(error, CaptureError)
    assert isinstance(error, DsoptError)
    assert (error.code, error.what, error.fix) == ("DS0101", "it broke", "mend it")

"""dsopt explain: the page of an error code."""

from __future__ import annotations

import re
from importlib.resources import files

import click

from dsopt.cli.options import speaking
from dsopt.cli.output import Output, table
from dsopt.errors import UsageError

_CODE = re.compile(r"DS\d{4}")


@click.command(short_help="Explain an error code.")
@click.argument("code", required=False)
@speaking
def command(console: Output, code: str | None) -> None:
    """Explain CODE, such as DS0302: what it means, why it happens, what to do. Without CODE, list all."""
    if code is None:
        titles = [(known, title(known)) for known in codes()]
        document = {"codes": [{"code": known, "title": text} for known, text in titles]}
        console.result(document, table(["code", "about"], titles))
        return
    wanted = _normal(code)
    if wanted not in codes():
        near = (
            sorted(codes(), key=lambda known: abs(int(known[2:]) - int(wanted[2:])))[:3]
            if _CODE.fullmatch(wanted)
            else []
        )
        hint = (
            "near ones: " + ", ".join(f"{known} ({title(known)})" for known in near)
            if near
            else "dsopt explain lists all"
        )
        raise UsageError("DS0922", f"there is no error code {code!r}", fix=hint)
    text = page(wanted)
    console.result({"code": wanted, "title": title(wanted), "text": text}, text)


def codes() -> list[str]:
    """Return all codes that have a page, sorted."""
    folder = files("dsopt") / "explanations"
    return sorted(
        each.name[:-3] for each in folder.iterdir() if each.name.endswith(".md") and _CODE.fullmatch(each.name[:-3])
    )


def page(code: str) -> str:
    """Return a page's text."""
    return (files("dsopt") / "explanations" / f"{code}.md").read_text(encoding="utf-8")


def title(code: str) -> str:
    """Return the first line of a page without its mark."""
    return page(code).partition("\n")[0].lstrip("# ").strip()


def _normal(code: str) -> str:
    digits = re.sub(r"(?i)^ds", "", code.strip())
    return f"DS{int(digits):04d}" if digits.isdecimal() and len(digits) <= 4 else code.strip().upper()

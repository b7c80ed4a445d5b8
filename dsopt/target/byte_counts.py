"""Bytes and counts as people write them: 64K, 1.5M, 262144."""

from __future__ import annotations

import re

from dsopt.errors import UsageError

_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_COUNTS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_NUMBER = re.compile(r"(\d{1,12})(?:\.(\d{1,6}))?\s*([KMG]?)(I?B)?", re.IGNORECASE)


def parse_bytes(text: str, what: str) -> int:
    """Read "64K", "64 KiB", "1.5M" or "65536"; K is 1,024. what: who asks, for the message. Raises UsageError."""
    return _read(text, what, _BYTES, "as in 64K, 1.5M or 65536; K is 1,024 bytes", may_be_bytes=True)


def parse_count(text: str, what: str) -> int:
    """Read "5M", "250K" or "1200000"; K is 1,000. what: who asks, for the message. Raises UsageError."""
    return _read(text, what, _COUNTS, "as in 5M, 250K or 1200000; K is 1,000", may_be_bytes=False)


def _read(text: str, what: str, units: dict[str, int], example: str, may_be_bytes: bool) -> int:
    match = _NUMBER.fullmatch(text.strip())
    if match is not None and (may_be_bytes or not match[4]):
        unit, fraction = units[match[3].upper()], match[2] or ""
        scaled, rest = divmod(int(match[1] + fraction) * unit, int("1" + "0" * len(fraction)))
        if scaled > 0 and rest == 0:
            return scaled
    raise UsageError("DS0913", f"{what} is {text[:40]!r}", fix=f"give a whole number above 0, {example}")


def format_bytes(count: int) -> str:
    """Return "64K" for 65,536: the shortest text that `parse_bytes` reads back."""
    for unit in ("G", "M", "K"):
        if count and count % _BYTES[unit] == 0:
            return f"{count // _BYTES[unit]}{unit}"
    return str(count)

"""Inputs for a program as files and arrays: `--data` and `--inputs`, split into runs. NumPy only; nothing is unpickled.

An .npz holds one array per input, under the input's flat name. Beside an input's own shape, an array may have a leading axis of
samples, or a longer first axis that is cut into runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy.typing as npt

from dsopt.errors import InputError, ReadError
from dsopt.npy import MAGIC, parse_npy
from dsopt.zip_limits import LIMITS, open_zip

Array = npt.NDArray[Any]
Feed = dict[str, Array]

_LIMITS = replace(LIMITS, expansion=1100)
"""An .npz may be packed: arrays of zeros shrink as far as the format can, which is a thousandth."""

_MOST_AXES = 6
"""Of arrays whose axes are tried in every order."""


def read_npz(path: str | Path) -> dict[str, Array]:
    """Read the arrays of an .npz, or of an .npy under the name "". Raises ReadError; pickled arrays are refused."""
    path = Path(path)
    try:
        with path.open("rb") as stream:
            is_npy = stream.read(len(MAGIC)) == MAGIC
        if is_npy:
            return {"": parse_npy(path.read_bytes())}
        with open_zip(path, limits=_LIMITS) as archive:
            members = {name.removesuffix(".npy"): archive.read_into_buffer(name) for name in archive.names}
            return {archive.top + name: parse_npy(content) for name, content in members.items()}
    except FileNotFoundError as problem:
        raise ReadError("DS0910", f"there is no file {path}") from problem
    except (OSError, ValueError, MemoryError, ReadError) as problem:
        raise ReadError(
            "DS0911",
            f"{path} is no .npz file of plain arrays",
            why=problem.what if isinstance(problem, ReadError) else str(problem)[:200],
            fix="write it with numpy.savez(path, x=...)",
        ) from problem


def split_feeds(
    arrays: Mapping[str, Array], inputs: Sequence[Mapping[str, Any]], limit: int | None = None
) -> list[Feed]:
    """Cut arrays into runs. inputs: [{"name", "shape", "dtype"}] as in a manifest. Arrays under other names (labels) are ignored.

    Raises InputError naming every input that is missing or does not fit, and when inputs give different numbers of runs.
    """
    problems: list[str] = []
    hints: list[str] = []
    runs: dict[str, list[Array]] = {}
    if set(arrays) == {""} and len(inputs) == 1:
        arrays = {str(inputs[0]["name"]): arrays[""]}
    for spec in inputs:
        name, shape = str(spec["name"]), list(spec["shape"])
        if name not in arrays:
            problems.append(f"{name}: missing")
            near = get_close_matches(name, arrays, n=1)
            what = f"{near[0]}, if that is what it is," if near else "the array"
            hints.append(f"write {what} under the name of the input: numpy.savez(path, {name}=...)")
            continue
        array = arrays[name]
        if str(array.dtype) != spec["dtype"]:
            problems.append(f"{name}: is {array.dtype}, must be {spec['dtype']}")
            hints.append(f"cast {name}: .astype({spec['dtype']!r})")
            continue
        cut = list(_cut(array, shape))
        if cut:
            runs[name] = cut
        else:
            problems.append(f"{name}: has shape {list(array.shape)}, must be {shape}")
            hints.append(_reshaping(name, array, shape))
    counts = {name: len(cut) for name, cut in runs.items()}
    if not problems and len(set(counts.values())) > 1:
        problems.append(f"different numbers of runs: {counts}")
    if problems:
        raise InputError(
            "DS0912",
            "the data does not fit the program",
            where="\n".join(problems),
            fix="\n".join([*dict.fromkeys(hints), f"the data has: {_listed(arrays)}"]),
        )
    count = next(iter(counts.values()), 1)
    count = count if limit is None else min(count, limit)
    return [{name: cut[number] for name, cut in runs.items()} for number in range(count)]


def _listed(arrays: Mapping[str, Array]) -> str:
    return (
        ", ".join(f"{name or 'one array'} {array.dtype}{list(array.shape)}" for name, array in arrays.items())
        or "nothing"
    )


def _reshaping(name: str, array: Array, shape: list[int | str]) -> str:
    """Say how an array would fit: with its axes in another order, or cut into samples."""
    if 2 <= array.ndim <= _MOST_AXES:
        for axes in permutations(range(array.ndim)):
            if next(_cut(array.transpose(axes), shape), None) is not None:
                return f"put the axes of {name} into the order of the input: .transpose{axes}"
    return f"give {name} the shape of the input, {shape}, or [samples, {', '.join(map(str, shape))}]"


def _cut(array: Array, shape: list[int | str]) -> Iterator[Array]:
    if _fits(array.shape, shape):
        yield array
    elif _fits(array.shape[1:], shape):
        yield from array
    elif (
        shape
        and isinstance(shape[0], int)
        and shape[0] > 0
        and _fits(array.shape[1:], shape[1:])
        and len(array) % shape[0] == 0
    ):
        for start in range(0, len(array), shape[0]):
            yield array[start : start + shape[0]]


def _fits(found: tuple[int, ...], wanted: Sequence[int | str]) -> bool:
    return len(found) == len(wanted) and all(
        isinstance(size, str) or size == given for size, given in zip(wanted, found, strict=True)
    )

"""From a call in the user's own form (positional, keyword, nested) to arrays by flat name that fit the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsopt.dims import Size, dim_names, evaluate, solve
from dsopt.nesting import Tree, flatten, leaves
from dsopt.runtime.arrays import Array, as_array


@dataclass(frozen=True)
class TensorSpec:
    """An input or output by its flat name. A size that varies is an expression over dim names, such as "2*batch"."""

    name: str
    shape: tuple[Size, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class DimRange:
    """The sizes that a varying dim may take: min to max, without an upper bound if max is None."""

    min: int
    max: int | None

    def __str__(self) -> str:
        return f"at least {self.min}" if self.max is None else f"{self.min} to {self.max}"


class CallBinder:
    """Bind calls to the flat names of the inputs. plain_names: of the positional inputs, where no argument is nested."""

    def __init__(self, input_tree: Tree, argument_names: Sequence[str]) -> None:
        positional, keywords = input_tree["tuple"][0]["tuple"], input_tree["tuple"][1]["dict"]
        has_names = len(argument_names) >= len(positional)
        names = argument_names if has_names else [f"x{number}" for number in range(len(positional))]
        self._positional = list(zip(names, positional, strict=False))
        self._arguments: dict[str, Tree] = {**dict(self._positional), **dict(keywords)}
        self._leaves = frozenset(leaves(input_tree))
        is_flat = all(isinstance(tree, str) for tree in self._arguments.values())
        self.plain_names: tuple[str, ...] = tuple(tree for _, tree in self._positional) if is_flat else ()

    def bind(self, inputs: Sequence[Any], named: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
        """Return {flat name: value} of a call. An argument may also be given by the flat names in it, as **{"opts.k": k}."""
        given: dict[str, Any] = {}
        if len(inputs) > len(self._positional):
            names = ", ".join(name for name, _ in self._positional) or "none"
            problems.append(f"{len(inputs)} positional inputs were given, {len(self._positional)} are taken ({names})")
        for (name, _), value in zip(self._positional, inputs, strict=False):
            given[name] = value
        flat: dict[str, Any] = {}
        for name, value in named.items():
            if name in given:
                problems.append(f"{name}: given twice, by position and by name")
            elif name in self._arguments:
                given[name] = value
            elif name in self._leaves:
                flat[name] = value
            else:
                problems.append(f"{name}: there is no such input; known: {', '.join(self._known()) or 'none'}")
        for name, value in given.items():
            found = flatten(self._arguments[name], value, _mismatch(name, problems), name)
            problems.extend(f"{leaf}: given twice" for leaf in sorted(set(found) & set(flat)))
            flat |= found
        return flat

    def _known(self) -> list[str]:
        return sorted({*self._arguments, *self._leaves})


def _mismatch(argument: str, problems: list[str]) -> Any:
    def note(path: str, tree: Tree, value: Any) -> None:
        kind, children = next(iter(tree.items()))
        if kind == "const":
            wanted = f"was fixed to {children!r} when the model was captured"
        elif kind == "dict":
            wanted = "must be a dict with the keys " + ", ".join(str(key) for key, _ in children)
        else:
            wanted = f"must be a {kind} of {len(children)}"
        found = f"a dict with the keys {', '.join(map(str, value))}" if isinstance(value, Mapping) else ""
        found = found or (f"a {type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else "")
        problems.append(f"{path or argument}: is {found or 'a ' + type(value).__name__}, {wanted}")

    return note


def check_feeds(
    values: Mapping[str, Any], specs: Sequence[TensorSpec], dims: Mapping[str, DimRange], problems: list[str]
) -> dict[str, Array]:
    """Return {flat name: array} after noting every missing input and every dtype, rank and size that differs."""
    arrays: dict[str, Array] = {}
    for spec in specs:
        if spec.name not in values:
            problems.append(f"{spec.name}: missing; it is {spec.dtype}{_shape(spec.shape)}")
            continue
        try:
            array = as_array(values[spec.name], spec.dtype)
        except ValueError as error:
            problems.append(f"{spec.name}: {error}")
            continue
        arrays[spec.name] = array
        if array.dtype != np.dtype(spec.dtype):
            problems.append(
                f"{spec.name}: is {array.dtype}, must be {spec.dtype}; convert it with .astype(np.{_name(spec.dtype)})"
            )
        if array.ndim != len(spec.shape):
            problems.append(f"{spec.name}: has the shape {list(array.shape)}, must be {_shape(spec.shape)}")
    fitting = [spec for spec in specs if spec.name in arrays and arrays[spec.name].ndim == len(spec.shape)]
    _check_sizes(arrays, fitting, dims, problems)
    return arrays


def _check_sizes(
    arrays: Mapping[str, Array], specs: Sequence[TensorSpec], dims: Mapping[str, DimRange], problems: list[str]
) -> None:
    places = [
        (spec.name, axis, wanted, arrays[spec.name].shape[axis])
        for spec in specs
        for axis, wanted in enumerate(spec.shape)
    ]
    known, origin = _read_dims(places)
    for name, axis, wanted, found in places:
        if isinstance(wanted, int):
            if wanted != found:
                problems.append(f"{name}: axis {axis} is {found}, must be {wanted}")
            continue
        if not dim_names(wanted) <= set(known):
            continue
        reasons = ", ".join(f"{dim} is {known[dim]} ({origin[dim]})" for dim in sorted(dim_names(wanted)))
        try:
            needed = evaluate(wanted, known)
        except ValueError:
            problems.append(f"{name}: axis {axis} is {found}, and no size fits {wanted}, because {reasons}")
            continue
        if found != needed:
            problems.append(f"{name}: axis {axis} is {found}, must be {wanted} = {needed}, because {reasons}")
    for dim, value in sorted(known.items()):
        allowed = dims.get(dim)
        if allowed and not (allowed.min <= value and (allowed.max is None or value <= allowed.max)):
            problems.append(f"{dim} is {value} ({origin[dim]}), must be {allowed}")


def _read_dims(places: Sequence[tuple[str, int, Size, int]]) -> tuple[dict[str, int], dict[str, str]]:
    """Return {dim: size} and {dim: where it was read}; sizes that are a dim's own name are read before sums and products."""
    known: dict[str, int] = {}
    origin: dict[str, str] = {}
    varying = [(name, axis, size, found) for name, axis, size, found in places if isinstance(size, str)]
    for name, axis, size, found in sorted(varying, key=lambda place: not str(place[2]).isidentifier()):
        for dim, value in solve(size, found, known).items():
            known[dim], origin[dim] = value, f"axis {axis} of {name}"
    return known, origin


def _shape(shape: Sequence[Size]) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"


def _name(dtype: str) -> str:
    return "bool_" if dtype == "bool" else dtype

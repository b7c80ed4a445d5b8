"""The image of a program whose layers are each written in the way that is measured to be best within the budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dsopt.backends.mcu.choice import Limits, Rest, choose, totals
from dsopt.backends.mcu.emitter import Built, Emitter, Placed
from dsopt.backends.mcu.measure import Measurement
from dsopt.backends.mcu.trial import Trial, Tried, try_ways
from dsopt.target import McuTarget

_MOST_BUILDS = 3
"""Images until one meets the budgets. The first shows what the program takes beside its layers with several ways."""

BY_MEASURE = "measured instructions and bytes of each layer"
_BY_COUNT = "count of instructions: "


def build_chosen(emitter: Emitter, placed: Placed) -> Built:
    """Build a program with the ways to write its layers that are best on its core. Raises ToolchainError without a compiler.

    placed: with the usual ways, whose arena is not exceeded, but by code that is made for speed and fits.
    The manifest gets "kernel_choice": what the choice was made by. Rows of layers get "candidates": what each way takes.
    """
    target = emitter.target
    emitter.options.progress(0, 3, "trying kernels")
    trial = try_ways(placed, target, emitter.options)
    if not trial.tried:
        return _with_choice(emitter.build(placed), f"{_BY_COUNT}{trial.why_not}" if trial.why_not else "", {})
    rest, may_grow = trial.rest, emitter.options.optimize == "speed"
    places, chosen = _placed(emitter, placed, trial, rest, may_grow)
    built = emitter.build(chosen)
    for _ in range(_MOST_BUILDS - 1):
        is_larger = built.measured.ram_bytes > target.ram_bytes
        if not is_larger and not _is_over(target, built.measured):
            break
        rest, may_grow = _corrected(rest, trial, places, built.measured), may_grow and not is_larger
        found, chosen = _placed(emitter, placed, trial, rest, may_grow)
        if found == places:
            break
        places, built = found, emitter.build(chosen)
    if any(places) and built.measured.ram_bytes > target.ram_bytes:
        usual = emitter.build(placed)
        if usual.measured.ram_bytes <= target.ram_bytes:
            return _with_choice(usual, f"{_BY_COUNT}what was measured to be best takes more stack than there is", {})
    return _with_choice(built, BY_MEASURE, _candidates(trial, places, chosen))


def _is_over(target: McuTarget, measured: Measurement) -> bool:
    need = (measured.instructions or 0) if target.instructions is not None else 0
    return measured.flash_bytes > target.flash_bytes or need > (target.instructions or 0)


def _corrected(rest: Rest, trial: Trial, places: Sequence[int], measured: Measurement) -> Rest:
    """Return what a program takes beside layers with several ways, now that an image of it was measured."""
    summed = totals([tried.options for tried in trial.tried], places, rest)
    return replace(
        rest,
        instructions=rest.instructions + (measured.instructions or 0) - summed.instructions,
        flash_bytes=rest.flash_bytes + measured.flash_bytes - summed.flash_bytes,
    )


def _placed(
    emitter: Emitter, usual: Placed, trial: Trial, rest: Rest, may_grow: bool
) -> tuple[list[int], Placed]:  # fmt: skip
    """Return the place of the best option of each layer of a trial, and the program that is written so.

    Ways that make the arena larger are left out, unless it `may_grow` and fits; at first, those of layers that run where it is largest.
    """
    limits = Limits(emitter.target.flash_bytes, emitter.target.instructions)
    allowed = [list(range(len(tried.options))) for tried in trial.tried]
    while True:
        layers = [[tried.options[n] for n in numbers] for tried, numbers in zip(trial.tried, allowed, strict=True)]
        found = choose(layers, emitter.options.optimize, limits, rest)
        places = [numbers[n] for numbers, n in zip(allowed, found, strict=True)]
        ways = {layer: t.ways[n] for t, n in zip(trial.tried, places, strict=True) for layer in t.layers}
        placed = emitter.place(usual.program, usual.reorder, ways)
        if placed.least_bytes <= usual.least_bytes or not any(places):
            return places, placed
        if may_grow and placed.least_bytes <= emitter.target.ram_bytes:
            return places, placed
        taken = [number for number, place in enumerate(places) if place]
        larger = [number for number in taken if _is_largest(placed, trial.tried[number], usual)] or taken
        for number in larger:
            allowed[number].remove(places[number])


def _is_largest(placed: Placed, tried: Tried, usual: Placed) -> bool:
    """Return whether more is alive while a layer runs than the usual arena has room for."""
    names = {name for layer in tried.layers for name in placed.layers[layer]}
    room = usual.placement.plan.arena_bytes
    return any(row["function"] in names and row["live_bytes"] > room for row in placed.rows)


def _candidates(trial: Trial, places: Sequence[int], placed: Placed) -> dict[str, list[dict[str, Any]]]:
    """Return what each way takes, by the last function of a layer. bytes: of code and weights, of which layers may share some."""
    found: dict[str, list[dict[str, Any]]] = {}
    for tried, place in zip(trial.tried, places, strict=True):
        entries = [
            {
                "kernel": text,
                "instructions": option.instructions // len(tried.layers),
                "bytes": size,
                "chosen": number == place,
            }
            for number, (text, option, size) in enumerate(zip(tried.texts, tried.options, tried.bytes, strict=True))
        ]
        found |= {placed.layers[layer][-1]: entries for layer in tried.layers}
    return found


def _with_choice(built: Built, by: str, candidates: Mapping[str, list[dict[str, Any]]]) -> Built:
    if not by:
        return built
    rows = [
        {**row, "candidates": candidates[row["function"]]} if row["function"] in candidates else row
        for row in built.rows
    ]
    manifest = {**built.artifact.manifest, "layers": rows, "kernel_choice": by}
    return replace(built, rows=rows, artifact=replace(built.artifact, manifest=manifest))

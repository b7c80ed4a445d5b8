"""What long runs came to: seeds, the accuracy of each, and how they were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks import results_store
from benchmarks.distill.nets import Scale
from benchmarks.distill.stages import TEACHING, Recipe
from benchmarks.harness import Row


@dataclass(frozen=True)
class Kept:
    """Some seeds. accuracies: percent by stage, in the order of the seeds that have it.  path: where they are kept."""

    seeds: tuple[int, ...] = ()
    accuracies: Mapping[str, Sequence[float]] = field(default_factory=dict)
    path: Path | None = None

    def with_seed(self, seed: int, accuracies: Mapping[str, float]) -> Kept:
        """Add one."""
        names = [*accuracies, *(name for name in self.accuracies if name not in accuracies)]
        joined = {
            name: [*self.accuracies.get(name, ()), *([accuracies[name]] if name in accuracies else [])]
            for name in names
        }
        return replace(self, seeds=(*self.seeds, seed), accuracies=joined)


def kept_run(scale: Scale, recipe: Recipe) -> Kept:
    """Return the newest run if it was trained in the same way, else none."""
    try:
        document = results_store.newest("distill")
    except FileNotFoundError:
        return Kept()
    if {name: document[name] for name in ("scale", "recipe", "teaching")} != _way(scale, recipe):
        return Kept()
    return Kept(tuple(document["seeds"]), document["accuracies"], results_store.newest_path("distill"))


def keep(run: Kept, rows: Sequence[Row], scale: Scale, recipe: Recipe) -> Kept:
    """Write a run in place of the one that it goes on from."""
    path = results_store.keep(
        "distill",
        {
            "seeds": list(run.seeds), **_way(scale, recipe),
            "accuracies": {name: list(each) for name, each in run.accuracies.items()}, "rows": list(rows),
        },
    )  # fmt: skip
    if run.path is not None and run.path != path:
        run.path.unlink(missing_ok=True)
    return replace(run, path=path)


def _way(scale: Scale, recipe: Recipe) -> dict[str, object]:
    return {"scale": asdict(scale), "recipe": asdict(recipe), "teaching": TEACHING}

"""What the prune pass does to whole architectures: how much goes, and whether what is left computes the same.

model               of models/, torchvision or timm, with random weights in float64
parameters, parameters_removed, multiply_adds_removed: before pruning; shares from 0 to 1
masked_difference   of the pruned program from the original with all removed channels set to zero (benchmarks/prune/masked.py)
analysis_seconds, seconds: CPU time of axis inference and groups; of the whole pass with its verification
peer_parameters_removed, peer_seconds, peer_failure: the same of Torch-Pruning, where --packages has it (benchmarks/prune/peer.py)

A second table has the CPU seconds that inference and groups take for deep networks, ResNet-152 and an encoder of 24 layers; a third
how much faster the cpu artifact of a ResNet-50 is without 60 % of its parameters. Models that do not get that far are listed as
failures, each with the stage and the cause.

--all takes every classifier of torchvision, one model of each family (module) of timm, and small networks of 33 architectures of
transformers (which has dependencies of its own). Install them away from the environment, and name the folder:

    pip install --no-deps --target DIR torchvision timm huggingface_hub safetensors pyyaml pillow torch-pruning
    python -m benchmarks.prune --packages DIR --all --json

--assets DIR (with data/cifar10_train_jpeg.npz and cifar10_test_jpeg.npz; needs Pillow) trains two networks on real data
instead, prunes and rounds them (benchmarks/prune/images.py). This takes about 3.5 hours on one core; what matters most
is done first, --hours ends it early, and --work goes on from what is done. A run keeps its JSON in benchmarks/results/,
with machine, versions and seeds; a later call adds what the newest lacks; --report shows the newest.

    python -m benchmarks.prune --assets DIR --work DIR --plot docs/pruning
    python -m benchmarks.prune --report
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import dsopt
from benchmarks.harness import Row, machine, parser, progress, report
from benchmarks.prune.candidates import Candidate, Failed, candidates
from benchmarks.prune.image_data import BATCH
from benchmarks.prune.images import QUICK, Plan, image_rows
from benchmarks.prune.masked import masked_difference, randomized
from benchmarks.prune.peer import has_peer, peer_columns
from benchmarks.prune.plot import write_frontiers
from benchmarks.prune.speed import speed
from benchmarks.results_store import keep, newest, newest_path, origin
from dsopt.frontend.export import export_module
from dsopt.ir import Program, example_inputs
from dsopt.ir.multiply_adds import multiply_adds
from dsopt.passes.base import PassManager, parse_pipeline
from dsopt.passes.prune.channels import Channels
from dsopt.passes.prune.inference import AxisInference
from models.bert import bert
from models.resnet import resnet152


def main(arguments: list[str] | None = None) -> None:
    """Print one row a model, and the failures."""
    options = parser(__doc__)
    options.add_argument("--all", action="store_true", help="all that --packages has, as said above")
    options.add_argument("--ratio", type=float, default=0.5, help="share of the parameters that is to go, 0.5")
    options.add_argument("--options", default="", help='further options of the pass, as "scope=local,align=16"')
    options.add_argument(
        "--models",
        default="",
        help="only these, separated by commas: NAME, torchvision/NAME, timm/NAME or transformers/NAME",
    )
    options.add_argument("--packages", type=Path, metavar="DIR", help="folder with torchvision and timm")
    options.add_argument(
        "--largest", type=float, default=100, help="million parameters above which a model is left out, 100"
    )
    options.add_argument("--seeds", type=int, default=5, help="trainings on real data of each network, 5")
    options.add_argument("--work", type=Path, metavar="DIR", help="keep trained programs there, and go on from them")
    options.add_argument("--hours", type=float, help="begin no training on real data after so many; all, if not given")
    options.add_argument("--plot", type=Path, metavar="DIR", help="draw accuracy against parameters into this folder")
    options.add_argument("--report", action="store_true", help="show the newest run on real data that was kept")
    chosen = options.parse_args(arguments)
    if chosen.seeds < 1:
        options.error(f"--seeds is {chosen.seeds} and must be at least 1")
    if chosen.report or chosen.assets is not None:
        try:
            document = newest("prune") if chosen.report else train(chosen)
        except FileNotFoundError as problem:
            options.error(str(problem))
        if chosen.plot is not None:
            write_frontiers(document["rows"], chosen.plot)
        report("prune", document["rows"], as_json=chosen.json, runs=[origin(document)])
        return
    if chosen.packages is not None:
        sys.path.insert(0, str(chosen.packages))
    rows, failures = [], list[Row]()
    for candidate in candidates(chosen):
        progress(candidate.name)
        try:
            rows.append(measure(candidate, chosen))
        except Failed as failure:
            failures.append({"model": candidate.name, "cause": str(failure)})
    is_whole = not chosen.models and not chosen.quick
    deep = [analysed("resnet152", resnet152()), analysed("encoder24", encoder())] if is_whole else []
    faster = [speed()] if is_whole else []
    report("prune", rows, as_json=chosen.json, analysis=deep, speed=faster, failures=failures)


def train(chosen: argparse.Namespace) -> dict[str, Any]:
    """Train on real data what the newest run of the same plan lacks, and return the run; one that was not quick is kept."""
    plan = QUICK if chosen.quick else replace(Plan(), seeds=chosen.seeds)
    path, known = (None, []) if chosen.quick else earlier(plan)
    rows, trainings = image_rows(chosen.assets, plan, chosen.work, chosen.hours, known)
    seeds = sorted({each["seed"] for each in trainings})
    document = {"seeds": seeds, "plan": described(plan), "trainings": trainings, "rows": rows}
    if not chosen.quick:
        written = keep("prune", document)
        progress(f"kept as {written}")
        if path is not None and path != written:
            path.unlink()
    return {**document, "machine": machine()}


def described(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON has it."""
    found: dict[str, Any] = json.loads(json.dumps({**asdict(plan), "batch": BATCH}))
    return found


def earlier(plan: Plan) -> tuple[Path | None, list[Row]]:
    """Return the newest run and its trainings, if it trained as the plan does; how many seeds and networks it had does not matter."""
    try:
        document = newest("prune")
    except FileNotFoundError:
        return None, []
    ways = [
        {name: each for name, each in given.items() if name not in ("seeds", "frontier_seeds", "networks")}
        for given in (document["plan"], described(plan))
    ]
    return (newest_path("prune"), document["trainings"]) if ways[0] == ways[1] else (None, [])


def encoder() -> dsopt.ModelSpec:
    """Return a BERT of 24 layers, 768 wide."""
    return bert(layers=24, hidden=768, heads=12)


def analysed(name: str, spec: dsopt.ModelSpec) -> Row:
    """Return what inference and groups of a deep network take."""
    progress(name)
    program = dsopt.capture(spec)
    start = time.process_time()
    groups = Channels(AxisInference(program)).groups
    return {
        "network": name,
        "nodes": len(program.graph.nodes),
        "groups": len(groups),
        "cpu_seconds": time.process_time() - start,
    }


def measure(candidate: Candidate, chosen: argparse.Namespace) -> Row:
    """Capture, prune and judge a model, and let Torch-Pruning try. Raises Failed."""
    side, program = _captured(candidate, chosen.largest)
    start = time.process_time()
    Channels(AxisInference(program))
    analysed = time.process_time() - start
    pipeline = f"prune{{ratio={chosen.ratio}{',' if chosen.options else ''}{chosen.options}}}"
    with _stage("prune"):
        result, _ = PassManager(parse_pipeline(pipeline)).run(program)
    seconds = time.process_time() - start - analysed
    with _stage("judge"):
        difference = masked_difference(program, result, example_inputs(program, seed=1))
    before, after = parameters(program), parameters(result)
    products = [sum(multiply_adds(node) for node in each.graph.nodes) for each in (program, result)]
    return {
        "model": candidate.name, "parameters": before, "parameters_removed": 1 - after / before,
        "multiply_adds_removed": 1 - products[1] / products[0], "masked_difference": difference,
        "analysis_seconds": analysed, "seconds": seconds,
        **(peer_columns(candidate.name, side) if has_peer() else {}),
    }  # fmt: skip


def _captured(candidate: Candidate, largest: float) -> tuple[int, Program]:
    """Capture a model on the smallest images that it takes."""
    for side in candidate.sides:
        with _stage("build"):
            spec = candidate.build(side)
        count = sum(parameter.numel() for parameter in spec.model.parameters())
        if count > largest * 1e6:
            raise Failed(f"build: {count:,} parameters are more than --largest {largest:g} million")
        try:
            with _stage("export"):
                keywords = {name: _double(value) for name, value in (spec.kwargs or {}).items()}
                return side, export_module(randomized(spec.model), tuple(map(_double, spec.args)), keywords)
        except Failed:
            if side == candidate.sides[-1]:
                raise
    raise AssertionError("a candidate has a side")


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


class _stage:  # noqa: N801  read as a word: with _stage("prune")
    """Turn whatever goes wrong in a stage of a stranger's model into a Failed with its cause."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.quiet = warnings.catch_warnings()

    def __enter__(self) -> None:
        self.quiet.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: object) -> None:
        self.quiet.__exit__(kind, problem, trace)  # type: ignore[arg-type]
        if isinstance(problem, Exception) and not isinstance(problem, Failed):
            lines = str(problem).splitlines()
            raise Failed(f"{self.name}: {type(problem).__name__}: {' '.join(lines[:3])[:400]}") from problem


def parameters(program: Program) -> int:
    """Return the number of parameters."""
    names = {spec.name for spec in program.signature.weights if spec.kind == "parameter"}
    return sum(value.numel() for name, value in program.weights.items() if name in names)


if __name__ == "__main__":
    main()

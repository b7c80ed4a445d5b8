"""qat: fine-tune a program with quantisation in it, and return the quantised program.

For a loop of your own, the same in parts:

    prepared, _ = PassManager(parse_pipeline("canonicalize,fuse-attention,quantize-prepare{weights=4}")).run(program, context)
    module = prepared.module()            # trains like any module; the scales are parameters
    ...
    trained = prepared.with_weights(module)
    quantised, _ = PassManager(parse_pipeline("fold-batch-norm,quantize-convert")).run(trained)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsopt.errors import UsageError
from dsopt.ir import Program
from dsopt.ir.trainable import ProgramModule
from dsopt.passes.base import PassContext, PassManager, PassRecord, parse_pipeline
from dsopt.train.checkpoint import digest
from dsopt.train.data import call, mixed_seed, named_inputs, seeded, split_batch, to_device
from dsopt.train.loop import Epoch, Loop, LoopOptions, Loss, Part
from dsopt.train.observers import Observers
from dsopt.train.optimizers import OptimizerFactory, make_optimizer, parameter_groups
from dsopt.train.processes import Processes
from dsopt.train.progress import Progress, progress_bar

_FAKE = torch.ops.dsopt.fake_quantize.default
_BEFORE = "canonicalize,fuse-attention"
_AFTER = "fold-batch-norm,quantize-convert,remove-dead-code"


@dataclass(frozen=True)
class QatResult:
    """program: quantised, to be compiled.  prepared: the trained program before it was converted, which can be trained on.

    history: of the epochs.  records: what the passes did.
    """

    program: Program
    prepared: Program
    history: tuple[Epoch, ...]
    records: tuple[PassRecord, ...]


def qat(
    program: Program,
    loader: Iterable[Any],
    loss: Loss,
    *,
    epochs: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    optimizer: OptimizerFactory | None = None,
    quantize: str = "",
    calibration_batches: int = 8,
    observe: float = 0.1,
    freeze_batch_norm: float = 1.0,
    reestimate_batches: int = 32,
    teacher: Program | nn.Module | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_steps: int = 0,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> QatResult:
    """Train a program with its weights and activations rounded (Jacob et al. 2018), learning the steps too (Esser et al. 2020).

    program: float, with its dropout and batch norms, as captured; or one that quantize-prepare has been run on.  loader: gives
    (inputs, target) and can be iterated again for each epoch; inputs are a tensor, a tuple or {argument: tensor}.  loss(outputs,
    target), or with a teacher loss(outputs, target, teacher's outputs).  optimizer: makes one from parameter groups; else AdamW with
    `learning_rate` over a warm-up and a cosine.  quantize: options of quantize-prepare, such as "weights=4,keep=head".
    observe: share of the steps in which the grids of activations follow moving averages; then they are frozen, and learned.
    freeze_batch_norm: share of the steps after which statistics stay; until then batch norm trains as the user wrote it.
    reestimate_batches: for the statistics after training; 0 keeps the running ones.  Then the norms are folded.
    validate(module): a score after each epoch, of which the best is kept; the mean over all processes.  checkpoint: a file to go on
    from after a stop, written after each epoch and every `checkpoint_steps`.  teacher: is put in eval mode.
    The same seed gives the same program. Under torchrun each process takes its share of the batches.

    Raises UsageError for data that do not fit, CheckError if the loss is no number.
    """
    where = torch.device(device)
    processes = Processes.join(where)
    _check_shares(observe=observe, freeze_batch_norm=freeze_batch_norm)
    prepared, records = _prepared(program, loader, quantize, calibration_batches, seed, processes)
    module = prepared.module().to(where)
    observers = Observers(prepared, module, processes)
    guide = (
        None if teacher is None else (teacher.module() if isinstance(teacher, Program) else teacher).to(where).eval()
    )
    made = make_optimizer(_groups(prepared, module, weight_decay), learning_rate, optimizer)
    options = LoopOptions(
        epochs,
        seed,
        None if checkpoint is None else Path(checkpoint),
        checkpoint_steps,
        f"qat{{{quantize}}} of weights {digest(module)} by {type(made).__name__}, seed {seed}, {epochs} epochs, "
        f"rate {learning_rate:g}, decay {weight_decay:g}, observe {observe:g}, freeze_batch_norm {freeze_batch_norm:g}",
        device=where,
    )

    def before_step(done: int, total: int) -> None:
        module.watch = observers.watch if done < observe * total else None
        if done >= freeze_batch_norm * total:
            module.freeze_batch_norm()

    def after_step(done: int, total: int) -> None:
        if module.watch is not None:
            observers.apply()

    def step_loss(trained: nn.Module, batch: Any) -> Tensor:
        inputs, target = split_batch(batch)
        outputs = call(trained, inputs)
        if guide is None:
            return loss(outputs, target)
        with torch.no_grad():
            wanted = call(guide, inputs)
        return loss(outputs, target, wanted)

    parts: dict[str, Part] = {"observers": observers}
    loop = Loop(module, loader, step_loss, made, options, processes, before_step, after_step, validate, parts)
    with progress_bar(progress is None and processes.is_first) as bar:
        loop.run(progress or bar)
    module.watch = None
    if loop.best is not None:
        module.load_state_dict(loop.best[1])
    if reestimate_batches and freeze_batch_norm >= 1:
        with seeded(mixed_seed(seed, epochs), loader):
            module.reestimate_batch_norm(_calls(loader, reestimate_batches, where))
        processes.align(module)
    module.eval()
    trained = prepared.with_weights(module.cpu())
    quantised, more = PassManager(parse_pipeline(_AFTER)).run(trained)
    return QatResult(quantised, trained, tuple(loop.history), (*records, *more))


def _check_shares(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise UsageError("DS0364", f"{name} is {value} and must be a share of the steps, 0 to 1")


# ---- the program ----


def _prepared(
    program: Program, loader: Iterable[Any], options: str, batches: int, seed: int, processes: Processes
) -> tuple[Program, tuple[PassRecord, ...]]:
    if any(node.target is _FAKE for node in program.graph.nodes):
        if options:
            raise UsageError(
                "DS0365",
                "the program is prepared already, so options of quantize-prepare come too late",
                fix="leave `quantize` out",
            )
        return program, ()
    pipeline = parse_pipeline(f"{_BEFORE},quantize-prepare{{{options}}}")
    with seeded(mixed_seed(seed, -1), loader):
        found = [to_device(split_batch(batch)[0], torch.device("cpu")) for batch in islice(loader, max(batches, 1))]
    if not found:
        raise UsageError("DS0366", "the loader gives no batch", fix="let it give (inputs, target)")
    # the program itself must be the same in all processes: grids that are no parameters are written into it
    calibration = processes.of_first([named_inputs(program, inputs) for inputs in found])
    return PassManager(pipeline).run(program, PassContext(calibration=calibration, seed=seed))


def _groups(prepared: Program, module: ProgramModule, weight_decay: float) -> list[dict[str, Any]]:
    scales = {str(prepared.weight_name(node.args[1])) for node in prepared.graph.nodes if node.target is _FAKE}
    return parameter_groups(module.weights_by_name(), weight_decay, scales)


# ---- data ----


def _calls(loader: Iterable[Any], count: int, device: torch.device) -> Iterator[Callable[[ProgramModule], object]]:
    for batch in islice(loader, count):
        inputs = to_device(split_batch(batch)[0], device)
        yield partial(_call_on, inputs)


def _call_on(inputs: Any, module: ProgramModule) -> Any:
    return call(module, inputs)

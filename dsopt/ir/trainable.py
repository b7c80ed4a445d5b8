"""A program as a module that runs and trains, on weights of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from dsopt.errors import UsageError
from dsopt.ir.interpret import evaluate
from dsopt.nesting import Tree, flatten, unflatten

if TYPE_CHECKING:
    from dsopt.ir.program import Program

_TRAINING_ARGUMENT = {
    torch.ops.aten.batch_norm.default: 5,
    torch.ops.aten.dropout.default: 2,
    torch.ops.aten.dropout_.default: 2,
    torch.ops.aten.feature_dropout.default: 2,
    torch.ops.aten.alpha_dropout.default: 2,
    torch.ops.aten.instance_norm.default: 5,
    torch.ops.aten.rrelu.default: 3,
}
"""Operators that behave differently in training -> position of the flag."""

_BATCH_NORM = torch.ops.aten.batch_norm.default


class ProgramModule(nn.Module):
    """Run a program with what the user's model took and gave; `train()` and `eval()` switch dropout and batch normalisation.

    Parameters and buffers are copies, registered under names with "." replaced by "/" (`weights_by_name` gives them under their
    own). States such as KV caches live in buffers and are updated by each call; `reset()` puts their first values back.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._program = program.clone()
        self._is_norm_frozen = False
        self.watch: Callable[[fx.Node, Any], None] | None = None
        """Is shown each node with its value in every call; for observers."""
        for spec in program.signature.weights:
            value = program.weights[spec.name].detach().clone()
            if spec.kind == "parameter" and value.is_floating_point():
                self.register_parameter(_attribute(spec.name), nn.Parameter(value))
            else:
                self.register_buffer(_attribute(spec.name), value)
        for state in program.signature.states:
            self.register_buffer(_attribute(state.name), program.weights[state.name].detach().clone())
        self.train(False)

    def train(self, mode: bool = True) -> ProgramModule:
        """Switch dropout and batch normalisation to training (or, with mode=False, to inference) behaviour."""
        super().train(mode)
        for node in self._program.graph.nodes:
            position = _TRAINING_ARGUMENT.get(node.target)
            if position is not None and len(node.args) > position:
                is_frozen = self._is_norm_frozen and node.target is _BATCH_NORM
                _set(node, position, mode and not is_frozen)
        return self

    def freeze_batch_norm(self) -> None:
        """Keep the running statistics of batch normalisation from now on, in training too."""
        self._is_norm_frozen = True
        self.train(self.training)

    def reestimate_batch_norm(self, calls: Iterable[Callable[[ProgramModule], object]]) -> int:
        """Replace the running statistics by their plain averages over calls of the module with dropout off; returns their number.

        Without batch normalisation nothing is called, and 0 is returned.

        Training moves weights after the statistics were taken, and rounding makes that matter (Nagel et al. 2022, "Overcoming
        oscillations in quantization-aware training", section 3.3).
        """
        norms = [node for node in self._program.graph.nodes if node.target is _BATCH_NORM and node.args[3] is not None]
        if not norms:
            return 0
        was_training, momenta = self.training, [node.args[6] for node in norms]
        self.train(False)
        for node in norms:
            _set(node, 5, True)
        count = 0
        try:
            with torch.no_grad():
                for count, call in enumerate(calls, start=1):
                    for node in norms:
                        _set(node, 6, 1.0 / count)  # the running average becomes the mean of all batches so far
                    call(self)
        finally:
            for node, momentum in zip(norms, momenta, strict=True):
                _set(node, 6, momentum)
            self.train(was_training)
        return count

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Take and return what the user's model did."""
        program, signature = self._program, self._program.signature
        flat = flatten_call(signature.input_tree, signature.argument_names, args, kwargs)
        tensors = dict(self.named_parameters(recurse=False)) | dict(self.named_buffers(recurse=False))
        names = [*(spec.name for spec in signature.weights), *(state.name for state in signature.states)]
        stored = zip(program.placeholders, names, strict=False)
        bound: dict[fx.Node, Any] = {node: tensors[_attribute(name)] for node, name in stored}
        bound |= {node: flat[spec.name] for node, spec in zip(program.inputs, signature.inputs, strict=True)}
        # the gradient needs the states as they were, and the buffers take the next ones below
        bound |= {state.placeholder: bound[state.placeholder].clone() for state in program.states}
        results = evaluate(program.graph, bound, self.watch)
        for state, value in zip(signature.states, results, strict=False):
            tensors[_attribute(state.name)].copy_(value.detach())
        values = {
            spec.name: value for spec, value in zip(signature.outputs, results[len(signature.states) :], strict=True)
        }
        return unflatten(signature.output_tree, values)

    def reset(self) -> None:
        """Put the first values of all states back."""
        buffers = dict(self.named_buffers(recurse=False))
        for state in self._program.signature.states:
            buffers[_attribute(state.name)].copy_(self._program.weights[state.name])

    def weights_by_name(self) -> dict[str, Tensor]:
        """Return parameters and buffers under their names in the user's module."""
        tensors = dict(self.named_parameters(recurse=False)) | dict(self.named_buffers(recurse=False))
        return {spec.name: tensors[_attribute(spec.name)] for spec in self._program.signature.weights}


def learned_weights(program: Program, module: nn.Module) -> dict[str, Tensor]:
    """Return the program's weights with the values that a ProgramModule holds. Raises UsageError for any other module."""
    if not isinstance(module, ProgramModule):
        raise UsageError("DS0203", f"with_weights takes what Program.module() made, got a {type(module).__name__}")
    learned = {name: value.detach().clone() for name, value in module.weights_by_name().items()}
    if set(learned) != {spec.name for spec in program.signature.weights}:
        raise UsageError(
            "DS0203",
            "this module was made from another program",
            fix="use the module that this program's module() returned",
        )
    return {**program.weights, **learned}


def flatten_call(tree: Tree, names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return {flat name: tensor} of a call with the user's nested arguments. Raises TypeError naming the arguments that differ."""
    positional, keywords = tree["tuple"][0]["tuple"], dict(tree["tuple"][1]["dict"])
    given = list(args)
    rest = dict(kwargs)
    for name in names[len(given) : len(positional)]:
        if name in rest:
            given.append(rest.pop(name))
    wrong: list[str] = []

    def mismatch(path: str, wanted: Tree, value: Any) -> None:
        wrong.append(f"{path or 'arguments'}: expected {wanted}, got {type(value).__name__}")

    for key, child in keywords.items():
        if isinstance(child, dict) and "const" in child and key not in rest:
            rest[key] = child["const"]
    for child in positional[len(given) :]:
        if isinstance(child, dict) and "const" in child:
            given.append(child["const"])
    flat = flatten({"tuple": positional}, tuple(given), mismatch)
    flat |= flatten({"dict": [[key, child] for key, child in keywords.items()]}, rest, mismatch)
    if wrong:
        raise TypeError("; ".join(wrong))
    return flat


def _set(node: fx.Node, position: int, value: Any) -> None:
    arguments = list(node.args)
    arguments[position] = value
    node.args = tuple(arguments)


def _attribute(name: str) -> str:
    return name.replace(".", "/")

"""A loaded artifact: checks what it is given against the manifest, keeps the state, and returns what the model returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any

import numpy as np

from dsopt.artifact import Artifact, load_artifact
from dsopt.errors import ArtifactError, InputError, ToolchainError, UsageError
from dsopt.nesting import unflatten
from dsopt.npy import parse_npy
from dsopt.runtime.arguments import CallBinder, DimRange, TensorSpec, check_feeds
from dsopt.runtime.arrays import Array
from dsopt.runtime.executor import BatchExecutor, Executor, Profile, ProfilingExecutor, TracingExecutor

EXECUTORS: dict[str, str] = {
    "cpu": "dsopt.runtime.onnx",
    "cuda": "dsopt.runtime.cuda",
    "mcu": "dsopt.runtime.simulated",
}
"""Target kind -> module with `open_executor`, imported when an artifact of that kind is opened."""


_Form = tuple[str, np.dtype[Any], tuple[int, ...], tuple[int, ...]]
"""Flat name, dtype, shape and strides of an input."""


def load(source: str | Path | Artifact, *, threads: int | None = None) -> Session:
    """Open an artifact for running. threads: of the CPU, None for as many as there are cores.

    A cpu artifact may hold native kernels, which are code: loading it runs that code. With the environment variable DSOPT_NATIVE=0 its
    `model.onnx` is run instead, with the same results, more slowly. Open artifacts of those whom you do not trust in this way.
    Raises ArtifactError if it is damaged, ToolchainError if what runs it is missing here.
    """
    return Session(source, threads=threads)


class Session:
    """A loaded artifact, which may be called from several threads; calls run one after another.

    inputs, outputs: their flat names, shapes and dtypes.  dims: the ranges of the sizes that vary.
    """

    def __init__(self, source: str | Path | Artifact, *, threads: int | None = None) -> None:
        self.artifact = source if isinstance(source, Artifact) else load_artifact(source)
        self.artifact.check()
        manifest = self.artifact.manifest
        self.inputs = _specs(manifest["inputs"])
        self.outputs = _specs(manifest["outputs"])
        self.dims = {name: DimRange(entry["min"], entry["max"]) for name, entry in manifest.get("dims", {}).items()}
        self._output_tree = manifest["output_tree"]
        self._binder = CallBinder(manifest["input_tree"], manifest.get("argument_names", ()))
        self._state_names = {state["input"]: state["output"] for state in manifest.get("states", ())}
        self._first_states = {
            state["input"]: _first_value(self.artifact, state) for state in manifest.get("states", ())
        }
        self._states = dict(self._first_states)
        self._lock = RLock()
        self._last: tuple[tuple[str, ...], tuple[_Form, ...]] | None = None
        self._executor: Executor | None = _open_executor(self.artifact, threads)

    def run(self, *inputs: Any, **named: Any) -> Any:
        """Run the model as it was called when captured: by position, by name, nested in tuples, lists and dicts.

        Values are NumPy arrays or anything with DLPack or __array__, such as torch tensors; nothing is cast. Returns what the
        model returned, with NumPy arrays in the place of tensors. Raises InputError naming everything that does not fit; the
        session and its state are then as before.
        """
        feeds = self._as_before(inputs, named)
        results = self._step(self._bind(inputs, named) if feeds is None else feeds)
        tree = self._output_tree
        return results[tree] if type(tree) is str else unflatten(tree, results)

    def run_flat(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Run on {flat input name: array} and return {flat output name: array}. Raises InputError."""
        known = self._as_before((), feeds)
        return self._step(self._bind((), feeds) if known is None else known)

    def run_many(self, calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Array]]:
        """Run on each {flat input name: array}, in order, and return the {flat output name: array} of each.

        An emulated core takes them all in one start, which is much faster than one call after the other. All are checked
        before the first is run. Raises InputError.
        """
        feeds = [self._bind((), call) for call in calls]
        with self._lock:
            executor = self._opened()
            if isinstance(executor, BatchExecutor) and not self._states:
                return executor.run_many(feeds)
            return [self._step(feed) for feed in feeds]

    def trace(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Return the result of each layer by node name, from the present state, which stays. Raises UsageError if it cannot."""
        checked = self._bind((), feeds)
        with self._lock:
            executor = self._opened()
            if not isinstance(executor, TracingExecutor):
                raise self._cannot("give the values between its layers")
            return executor.trace({**checked, **self._states})

    def profile(self, feeds: Mapping[str, Any]) -> Profile:
        """Run once from the present state, which stays, and return what each layer cost. Raises UsageError if it cannot."""
        checked = self._bind((), feeds)
        with self._lock:
            executor = self._opened()
            if not isinstance(executor, ProfilingExecutor):
                raise self._cannot("say what each layer costs")
            return executor.profile({**checked, **self._states})

    def reset(self) -> None:
        """Put the first values of all states back."""
        with self._lock:
            self._states = dict(self._first_states)

    def close(self) -> None:
        """Free what the session holds; closing twice is the same as once."""
        with self._lock:
            executor, self._executor = self._executor, None
            if executor is not None:
                executor.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        call = ", ".join(str(spec) for spec in self.inputs)
        return f"<Session on {self.artifact.target}: ({call}) -> {', '.join(str(spec) for spec in self.outputs)}>"

    def _bind(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Array]:
        """Return the inputs by flat name, checked. Raises InputError naming everything that does not fit."""
        problems: list[str] = []
        values = self._binder.bind(inputs, named, problems)
        feeds = check_feeds(values, self.inputs, self.dims, problems)
        if problems:
            wanted = ", ".join(str(spec) for spec in self.inputs) or "nothing"
            raise InputError(
                "DS0811", "the inputs do not fit the artifact", where="\n".join(problems), fix=f"it takes {wanted}"
            )
        self._remember(inputs, named, feeds)
        return feeds

    def _as_before(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Array] | None:
        """Return the inputs by flat name if dtypes, shapes and strides are those of the last call that fitted, else None.

        Checking anew takes as long as a small model runs. A microsecond counts here, which is why nothing is called.
        """
        if self._last is None:
            return None
        names, forms = self._last
        if len(inputs) + len(names) != len(forms) or tuple(named) != names:
            return None
        if named:
            inputs = (*inputs, *named.values())
        feeds = {}
        for value, (name, dtype, shape, strides) in zip(inputs, forms):  # noqa: B905 equal, and strict= takes 0.3 us
            # A subclass may be masked.
            if type(value) is not np.ndarray or value.shape != shape or value.strides != strides:
                return None
            if value.dtype is not dtype:
                return None
            feeds[name] = value
        return feeds

    def _remember(self, inputs: tuple[Any, ...], named: Mapping[str, Any], feeds: Mapping[str, Array]) -> None:
        """Keep the form of a call that fitted, if it is of plain arrays that need no conversion."""
        names, values = (*self._binder.plain_names[: len(inputs)], *named), (*inputs, *named.values())
        if set(names) != set(feeds) or len(names) != len(values):
            return
        for value in values:
            if type(value) is not np.ndarray or not value.flags.c_contiguous or not value.dtype.isnative:
                return
        forms = tuple(
            (name, value.dtype, value.shape, value.strides) for name, value in zip(names, values, strict=True)
        )
        self._last = tuple(named), forms

    def _step(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run once and keep the next states. An error, Ctrl-C among them, leaves the states as they were."""
        with self._lock:
            executor = self._executor or self._opened()
            if not self._states:
                return executor.run(feeds)
            results = executor.run({**feeds, **self._states})
            outputs = {spec.name: results[spec.name] for spec in self.outputs}
            states = {name: results[following] for name, following in self._state_names.items()}
            # The caller may write into what is returned, which must not change the state.
            for name, value in states.items():
                if any(np.may_share_memory(value, output) for output in outputs.values()):
                    states[name] = value.copy()
            self._states = states
        return outputs

    def _opened(self) -> Executor:
        if self._executor is None:
            raise UsageError("DS0812", "this session is closed", fix="open the artifact again with dsopt.runtime.load")
        return self._executor

    def _cannot(self, what: str) -> UsageError:
        return UsageError("DS0817", f"what runs {self.artifact.target} artifacts here cannot {what}")


def _specs(entries: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(entry["name"], tuple(entry["shape"]), entry["dtype"]) for entry in entries)


def _open_executor(artifact: Artifact, threads: int | None) -> Executor:
    kind = artifact.target.partition(":")[0]
    for spec in (*artifact.manifest["inputs"], *artifact.manifest["outputs"], *artifact.manifest.get("states", ())):
        if spec["dtype"] == "bfloat16":
            raise ArtifactError(
                "DS0813",
                f"{spec['name']!r} is bfloat16, which NumPy does not have",
                fix="Convert it inside of the model.",
            )
    if kind not in EXECUTORS:
        raise ArtifactError(
            "DS0813",
            f"the target {artifact.target!r} is not known here",
            fix="known kinds: " + ", ".join(sorted(EXECUTORS)),
        )
    if threads is not None and kind != "cpu":
        raise UsageError(
            "DS0818", f"threads were given, and {artifact.target} artifacts do not run on threads of the CPU"
        )
    if threads is not None and threads < 1:
        raise UsageError("DS0818", f"{threads} threads were asked for", fix="give 1 or more")
    try:
        module = import_module(EXECUTORS[kind])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "dsopt":
            raise
        raise ToolchainError(
            "DS0814",
            f"the package {error.name!r} is missing, and {kind} artifacts need it",
            fix="dsopt doctor says how to get it",
        ) from error
    executor: Executor = module.open_executor(artifact, threads=threads) if threads else module.open_executor(artifact)
    return executor


def _first_value(artifact: Artifact, state: Mapping[str, Any]) -> Array:
    """Read the .npy file of a state and compare it with the manifest."""
    wanted = tuple(state["shape"]), np.dtype(state["dtype"])
    try:
        array = parse_npy(artifact.files[state["file"]])
    except ValueError as error:
        raise ArtifactError(
            "DS0815", f"the first value of state {state['name']!r} is no .npy file of numbers", why=str(error)[:200]
        ) from error
    if (array.shape, array.dtype.newbyteorder("=")) != wanted:
        raise ArtifactError(
            "DS0815", f"the first value of state {state['name']!r} is {array.dtype}{list(array.shape)}, "
            f"must be {state['dtype']}{state['shape']}",
        )  # fmt: skip
    return np.array(array, dtype=wanted[1], order="C")

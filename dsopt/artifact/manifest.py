"""What a manifest must hold: a small explicit schema, checked when an artifact is written and again when it is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dsopt.dims import dim_names
from dsopt.errors import ArtifactError
from dsopt.nesting import leaves

SCHEMA = 1
KIND = "dsopt artifact"
MANIFEST = "manifest.json"

SUFFIX = ".dsopt"
"""The ending of a path that is written as one file."""

ROOT = "artifact/"
"""The folder inside a .dsopt file: fixed, so that the file's own name is not among its bytes."""

MAX_MANIFEST_BYTES = 64 << 20
MAX_FILES = 10_000
MAX_FILE_BYTES = 1 << 42
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
DTYPES = frozenset(["bool", *_INTEGERS, "float16", "bfloat16", "float32", "float64"])

_MAX_RANK = 64
_MAX_SIZE = 1 << 48
_MAX_DEPTH = 16
_MAX_TREE_DEPTH = 100
_NAME_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@=-]{0,200}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Refuse = Callable[[str], ArtifactError]


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest as JSON: keys sorted, one form for one content. Raises TypeError or ValueError for what is no JSON."""
    return (json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def describe_files(manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the manifest with its kind, schema, and the length and SHA-256 of every file."""
    described = {}
    for name in sorted(files):
        content = files[name]
        described[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {"schema": SCHEMA, **manifest, "kind": KIND, "files": described}


def read_manifest(content: bytes, label: str) -> dict[str, Any]:
    """Read and check the manifest of a stored artifact. Raises ArtifactError."""
    try:
        manifest = json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            "DS0802", f"{label} is truncated or altered: its manifest is no JSON", why=str(error)[:200], fix=_AGAIN
        ) from error
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND or type(manifest.get("schema")) is not int:
        raise ArtifactError("DS0802", f"{label} is no artifact of dsopt", fix="Give what dsopt compile wrote with -o.")
    if manifest["schema"] > SCHEMA:
        raise ArtifactError(
            "DS0803",
            f"{label} was written by a newer dsopt: it has schema {manifest['schema']}, and {SCHEMA} is known here",
            fix="Upgrade dsopt, or compile the model again with this one.",
        )
    try:
        _check(
            manifest,
            lambda what: ArtifactError("DS0804", f"the manifest of {label} contradicts itself: {what}", fix=_AGAIN),
        )
    except RecursionError as error:
        raise ArtifactError("DS0805", f"the manifest of {label} is nested too deep") from error
    return manifest


def check_manifest(manifest: Mapping[str, Any], files: Iterable[str]) -> None:
    """Check the manifest of an artifact in memory against the schema and the names of its files. Raises ArtifactError."""

    def refuse(what: str) -> ArtifactError:
        return ArtifactError("DS0804", f"the manifest contradicts itself: {what}")

    names = set(files)
    described = manifest.get("files")
    if described is not None and set(described) != names:
        raise refuse(
            f"it describes {sorted(set(described) ^ names)[:5]} and the artifact does not hold them, or the reverse"
        )
    _check(
        {"schema": SCHEMA, **manifest, "files": described if described is not None else dict.fromkeys(names)}, refuse
    )


_AGAIN = "Copy the artifact again, or compile the model again."


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _check(manifest: Mapping[str, Any], refuse: Refuse) -> None:
    if manifest["schema"] != SCHEMA:
        raise refuse(f"its schema is {manifest['schema']!r}")
    if not isinstance(manifest.get("target"), str) or not 0 < len(manifest["target"]) <= 200:
        raise refuse(f"its target is {manifest.get('target')!r}")
    _check_files(manifest.get("files"), refuse)
    dims = _check_dims(manifest.get("dims", {}), refuse)
    inputs = _check_tensors(manifest.get("inputs"), "inputs", refuse, dims)
    outputs = _check_tensors(manifest.get("outputs"), "outputs", refuse, None)
    _check_states(manifest, refuse, inputs, outputs)
    _check_tree(manifest.get("input_tree"), "input_tree", inputs, refuse)
    _check_tree(manifest.get("output_tree"), "output_tree", outputs, refuse)
    _check_call(manifest, refuse)
    for key in ("passes", "layers"):
        entries = manifest.get(key, [])
        if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in entries):
            raise refuse(f"{key!r} is no list of records")
    if not isinstance(manifest.get("memory", {}), Mapping):
        raise refuse("'memory' is no record")


def _check_files(files: Any, refuse: Refuse) -> None:
    if not isinstance(files, Mapping) or len(files) > MAX_FILES:
        raise refuse(f"'files' does not describe at most {MAX_FILES:,} files")
    folded: set[str] = set()
    for name, entry in files.items():
        if problem := name_problem(name):
            raise refuse(f"it has a file named {str(name)[:80]!r}, which {problem}")
        if name.casefold() in folded:
            raise refuse(f"it has two files named {name!r} but for upper and lower case")
        folded.add(name.casefold())
        if entry is None:
            continue
        is_described = isinstance(entry, Mapping) and _is_size(entry.get("bytes"), MAX_FILE_BYTES)
        if not is_described or not isinstance(entry.get("sha256"), str) or not _SHA256.fullmatch(entry["sha256"]):
            raise refuse(f"the length or hash of {name!r} is missing")
    if nested := sorted(name for name in files if any(parent in files for parent in _parents(name))):
        raise refuse(f"{nested[0]!r} lies in what is itself a file")


def name_problem(name: object) -> str:
    """Return why a file must not have this name, "" if it may: plain parts joined by "/", none of them hidden or special."""
    if not isinstance(name, str) or not name:
        return "is no name"
    parts = name.split("/")
    if len(parts) > _MAX_DEPTH:
        return f"is nested more than {_MAX_DEPTH} deep"
    if not all(_NAME_PART.fullmatch(part) for part in parts):
        return "leaves the artifact or holds characters that some system cannot store"
    return "is the manifest's own" if name.casefold() == MANIFEST else ""


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _check_dims(dims: Any, refuse: Refuse) -> frozenset[str]:
    if not isinstance(dims, Mapping):
        raise refuse("'dims' is no record")
    for name, entry in dims.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w{0,255}", name):
            raise refuse(f"{str(name)[:80]!r} is no name of a dim")
        low, high = (entry.get("min"), entry.get("max")) if isinstance(entry, Mapping) else (None, None)
        if not _is_size(low) or not (high is None or (_is_size(high) and low <= high)):
            raise refuse(f"dim {name!r} has the range {low!r} to {high!r}")
    return frozenset(dims)


def _check_tensors(entries: Any, key: str, refuse: Refuse, dims: frozenset[str] | None) -> list[str]:
    """Check inputs or outputs and return their names. dims: the names that sizes may use; None lets an output's size be any text."""
    if not isinstance(entries, (list, tuple)):
        raise refuse(f"{key!r} is no list")
    names: list[str] = []
    for entry in entries:
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not 0 < len(name) <= 1000 or not name.isprintable():
            raise refuse(f"one of its {key} has the name {str(name)[:80]!r}")
        names.append(name)
        if not isinstance(entry.get("dtype"), str) or entry["dtype"] not in DTYPES:
            raise refuse(f"{name!r} has the dtype {str(entry.get('dtype'))[:80]!r}")
        shape = entry.get("shape")
        if not isinstance(shape, (list, tuple)) or len(shape) > _MAX_RANK:
            raise refuse(f"{name!r} has the shape {str(shape)[:80]}")
        for size in shape:
            if problem := _size_problem(size, dims):
                raise refuse(f"{name!r} has the size {str(size)[:80]!r}, which {problem}")
    if len(set(names)) != len(names):
        raise refuse(f"two of its {key} have one name")
    return names


def _size_problem(size: Any, dims: frozenset[str] | None) -> str:
    if not isinstance(size, str):
        return "" if _is_size(size, _MAX_SIZE) else "is no size"
    if dims is None:
        return "" if size.isprintable() and len(size) <= 10_000 else "is no expression"
    try:
        unknown = dim_names(size) - dims
    except ValueError as error:
        return f"cannot be read: {error}"
    return f"uses the dim {min(unknown)!r} that is not described" if unknown else ""


def _check_states(manifest: Mapping[str, Any], refuse: Refuse, inputs: list[str], outputs: list[str]) -> None:
    states = manifest.get("states", [])
    _check_tensors(states, "states", refuse, frozenset())
    taken_inputs, taken_outputs = set(inputs), set(outputs)
    for state in states:
        for key, taken in (("input", taken_inputs), ("output", taken_outputs)):
            if not isinstance(state.get(key), str) or state[key] in taken:
                raise refuse(f"state {state['name']!r} has the {key} {str(state.get(key))[:80]!r}")
            taken.add(state[key])
        if state.get("file") not in manifest["files"]:
            raise refuse(f"the first value of state {state['name']!r} is not among its files")


def _check_tree(tree: Any, key: str, names: list[str], refuse: Refuse) -> None:
    level, depth = [tree], 0
    while level:
        if depth > _MAX_TREE_DEPTH:
            raise refuse(f"{key!r} is nested more than {_MAX_TREE_DEPTH} deep")
        level = [child for node in level for child in _children(node)]
        depth += 1
    try:
        found = list(leaves(tree))
    except (ValueError, TypeError) as error:
        raise refuse(f"{key!r} is no tree of names: {str(error)[:200]}") from error
    if sorted(found) != sorted(names):
        raise refuse(f"{key!r} names {str(found)[:200]}, and not {str(names)[:200]}")


def _children(node: Any) -> list[Any]:
    if isinstance(node, Mapping):
        return list(node.values())
    return list(node) if isinstance(node, (list, tuple)) else []


def _check_call(manifest: Mapping[str, Any], refuse: Refuse) -> None:
    """Check that the input tree is a call: a tuple of positional arguments and a dict of keywords, with names for the former."""
    tree, names = manifest["input_tree"], manifest.get("argument_names", [])
    parts = tree.get("tuple") if isinstance(tree, Mapping) else None
    is_call = (
        isinstance(parts, (list, tuple))
        and len(parts) == 2
        and isinstance(parts[0], Mapping)
        and isinstance(parts[0].get("tuple"), (list, tuple))
        and isinstance(parts[1], Mapping)
        and isinstance(parts[1].get("dict"), (list, tuple))
    )
    if not is_call:
        raise refuse("'input_tree' is no call of positional and keyword arguments")
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise refuse("'argument_names' is no list of names")


def _is_size(value: Any, largest: int = _MAX_SIZE) -> bool:
    return type(value) is int and 0 <= value <= largest

"""Read an exported program (.pt2) from a stranger without running any code in it.

torch.export.load executes pickled example inputs, and hands strings of the file to exec, eval and import. Here the archive
is read member by member: pickles are dropped, tensors come from raw bytes, every string is checked, and only then does
torch rebuild the program.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsopt.errors import DsoptError, ReadError
from dsopt.frontend.archive_json import checked_program, parse_json
from dsopt.frontend.payloads import load_tensors, read_payloads, tensors_by_name
from dsopt.frontend.pickles import name_list
from dsopt.ir.torch_private import archive_dtype, rebuild_exported_program
from dsopt.zip_limits import LIMITS, BoundedZip, open_zip

_AGAIN = "Export the model again with torch.export.export and torch.export.save."
_OLD_PROGRAM = "serialized_exported_program.json"


def read_pt2(path: Path) -> torch.export.ExportedProgram:
    """Return the exported program in an archive of torch.export.save; it carries no example inputs and no guards.

    Named tuples and other classes among its inputs and outputs become dicts, and every tensor is on the CPU.
    Raises ReadError DS0140 to DS0150: unreadable, damaged, too large, refused, or no exported program.
    """
    with open_zip(path) as archive:
        program, state, constants = _read_old(archive) if _OLD_PROGRAM in archive else _read_new(archive, path)
    _check_calling_convention(program)
    _check_weights(program, state, constants)
    try:
        return rebuild_exported_program(program, state, constants)
    except DsoptError:
        raise
    except Exception as error:  # a consistent schema around an inconsistent graph fails anywhere in torch
        reason = _reason(error)
        raise ReadError("DS0144", f"the program in {path} contradicts itself", why=reason, fix=_AGAIN) from error


def _read_new(archive: BoundedZip, path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    models = [name for name in archive.names if name.startswith("models/") and name.endswith(".json")]
    if len(models) != 1:
        raise _no_single_program(archive, path, models)
    if "byteorder" in archive and archive.read("byteorder", 64) != b"little":
        raise ReadError("DS0144", f"{path} was written on a big-endian machine", fix=_AGAIN)
    name = models[0][len("models/") : -len(".json")]
    program = checked_program(parse_json(archive.read(models[0], LIMITS.json_bytes), models[0]))
    folders = ("data/weights/", "weights"), ("data/constants/", "constants")
    state, constants = (
        read_payloads(archive, folder, f"{folder}{name}_{kind}_config.json", f"{folder}{name}.pt")
        for folder, kind in folders
    )
    return program, state, constants


def _read_old(archive: BoundedZip) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Read the layout of torch 2.7 and before: one JSON and three pickles, of which the example inputs are left alone."""
    program = checked_program(parse_json(archive.read(_OLD_PROGRAM, LIMITS.json_bytes), _OLD_PROGRAM))
    state, constants = (
        tensors_by_name(load_tensors(archive.read(name), name), name)
        for name in ("serialized_state_dict.pt", "serialized_constants.pt")
    )
    return program, state, constants


def _no_single_program(archive: BoundedZip, path: Path, models: list[str]) -> ReadError:
    if models:
        what = f"{path} holds {len(models)} programs ({name_list(models)}); exactly one is read"
        return ReadError("DS0150", what, fix="Save each with torch.export.save in a file of its own.")
    if any(name.startswith("data/aotinductor/") for name in archive.names):
        why = "It was compiled by AOTInductor: the graph is no longer in it."
        return ReadError("DS0150", f"{path} holds machine code and no exported program", why=why, fix=_AGAIN)
    return ReadError("DS0150", f"{path} holds no exported program", fix=_AGAIN)


def _check_calling_convention(program: dict[str, Any]) -> None:
    """Raise ReadError DS0144 unless the nesting of the inputs and outputs has as many leaves as the graph takes and gives."""
    module, entries = program["graph_module"], program["graph_module"]["module_call_graph"]
    signature = entries[0].get("signature") if entries and entries[0]["fqn"] == "" else None
    if signature is None:
        raise ReadError("DS0144", "the program does not say how its inputs and outputs are nested", fix=_AGAIN)
    specs = module["signature"]
    counts = {
        "inputs": ("in_spec", sum("user_input" in spec or "constant_input" in spec for spec in specs["input_specs"])),
        "outputs": ("out_spec", sum("user_output" in spec for spec in specs["output_specs"])),
    }
    for noun, (key, count) in counts.items():
        leaves = signature[key].count('"type": null')
        if leaves != count:
            raise ReadError("DS0144", f"the program has {count} {noun} and nests {leaves}", fix=_AGAIN)


def _check_weights(program: dict[str, Any], state: dict[str, Tensor], constants: dict[str, Tensor]) -> None:
    """Raise ReadError DS0147 unless every weight of the signature is there with the shape and dtype that the graph has.

    Parameters that an old file holds as plain tensors become parameters in `state`.
    """
    graph = program["graph_module"]["graph"]
    for spec in program["graph_module"]["signature"]["input_specs"]:
        kind, body = next(iter(spec.items()))
        key = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}.get(
            kind
        )
        if key is None:
            continue
        name = body[key]
        is_state = kind == "parameter" or (kind == "buffer" and body["persistent"])
        tensor = (state if is_state else constants).get(name)
        if tensor is None:
            raise ReadError("DS0147", f"the archive has no weight {name!r}, which the program reads", fix=_AGAIN)
        meta = graph["tensor_values"].get(body["arg"]["name"])
        wanted = [size.get("as_int") for size in meta["sizes"]] if meta is not None else None
        if meta is None or wanted != list(tensor.shape) or archive_dtype(meta["dtype"]) != tensor.dtype:
            what = f"weight {name!r} is {tensor.dtype} {list(tensor.shape)} and the program reads it as {wanted}"
            raise ReadError("DS0147", what, fix=_AGAIN)
        if kind == "parameter" and not isinstance(tensor, nn.Parameter):
            state[name] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point() or tensor.is_complex())


def _reason(error: BaseException) -> str:
    """Return the last line of the innermost error, which is torch's own; the rest is its traceback."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip()[:300] if lines else ''}"

"""Read a .pt file: an exported program in disguise, TorchScript, a pickled module, or weights alone.

A pickle is a program that rebuilds objects by calling what it names, so reading one runs its author's code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsopt.errors import CaptureError, ReadError
from dsopt.frontend.pickles import PickleScan, name_list, scan_pickle
from dsopt.frontend.pt2 import read_pt2
from dsopt.frontend.sniff import Kind, sniff
from dsopt.zip_limits import LIMITS, open_zip

_EXPORT = "program = torch.export.export(model.eval(), (example,)); torch.export.save(program, 'model.pt2')"


def read_pt(path: Path, trust_pickle: bool = False) -> torch.export.ExportedProgram | nn.Module:
    """Return the model in a .pt file, on the CPU: an exported program, or a pickled module in eval mode.

    trust_pickle: the caller knows who wrote the file and lets it run code.
    Raises CaptureError: DS0151 for TorchScript, DS0152 for a pickled module that is not trusted, DS0153 for weights without
    a model, DS0154 if the trusted file fails to load or holds no module. Raises ReadError if the file is damaged or no .pt.
    """
    kind = sniff(path)
    if kind in (Kind.PT2, Kind.COMPILED_PT2):  # the latter is answered with what it lacks
        return read_pt2(path)
    if kind is Kind.TORCHSCRIPT:
        raise CaptureError(
            "DS0151",
            f"{path} is TorchScript, which torch has given up and dsopt does not read",
            why="TorchScript keeps a program of its own kind; the model that it was scripted or traced from can be exported.",
            fix=f"In Python, with the original nn.Module:\n{_EXPORT}\nThen pass model.pt2.",
        )
    if kind in (Kind.PICKLED_TENSORS, Kind.SAFETENSORS):
        raise _weights_alone(path, kind)
    if kind is Kind.PICKLED_OBJECTS:
        if not trust_pickle:
            raise _untrusted(path, _scan(path))
        return _unpickle(path)
    raise ReadError("DS0143", f"{path} is {kind.value}, not what torch.save or torch.export.save writes")


def _scan(path: Path) -> PickleScan:
    with path.open("rb") as stream:
        if stream.read(2) != b"PK":
            stream.seek(0)
            return scan_pickle(stream.read(LIMITS.pickle_bytes))
    with open_zip(path) as archive:
        return scan_pickle(archive.read("data.pkl", LIMITS.pickle_bytes))


def _untrusted(path: Path, scan: PickleScan) -> CaptureError:
    cut = "" if scan.is_complete else " The list is not complete: the pickle could not be read to its end."
    return CaptureError(
        "DS0152",
        f"{path} is a pickle, and reading it would run code: it imports {name_list(scan.foreign, 12)}",
        why="A pickled module is rebuilt by calling what the file names, so whoever wrote the file decides what runs here."
        + cut,
        fix="If you know who wrote it, pass --trust-pickle (in Python: trust_pickle=True). Better, export the model where it\n"
        f"was made, which keeps the graph and no code:\n{_EXPORT}",
    )


def _weights_alone(path: Path, kind: Kind) -> CaptureError:
    call = "safetensors.torch.load_file" if kind is Kind.SAFETENSORS else "torch.load"
    return CaptureError(
        "DS0153",
        f"{path} holds weights and no model ({kind.value})",
        why="Names and tensors do not say what is computed with them; that is in the Python class of the model.",
        fix="Write a factory, and pass it as package.module:factory:\n"
        "def make() -> tuple[nn.Module, tuple[Tensor, ...]]:\n"
        f"    model = Net(); model.load_state_dict({call}({path.name!r}))\n"
        "    return model.eval(), (example,)",
    )


def _unpickle(path: Path) -> torch.export.ExportedProgram | nn.Module:
    try:
        value: Any = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # the file's own code may raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        raise CaptureError(
            "DS0154",
            f"{path} could not be unpickled: {type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}",
            why="A pickled module needs the very modules that its classes came from." if missing else "",
            fix=f"Put the folder of {missing!r} on PYTHONPATH." if missing else "",
        ) from error
    if isinstance(value, nn.Module):
        return value.eval()
    if isinstance(value, torch.export.ExportedProgram):
        return value
    found = (
        next((key for key, item in value.items() if isinstance(item, nn.Module)), None)
        if isinstance(value, dict)
        else None
    )
    raise CaptureError(
        "DS0154",
        f"{path} holds a {type(value).__module__}.{type(value).__qualname__}, not a module",
        fix=f"Its entry {found!r} is a module: save that one alone."
        if found is not None
        else "Save the nn.Module itself, or export it.",
    )

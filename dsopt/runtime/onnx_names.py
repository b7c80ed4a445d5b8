"""Which names a cpu artifact's manifest gives to inputs, outputs and layers, in the order of the model."""

from __future__ import annotations

from dsopt.artifact import Artifact
from dsopt.runtime.onnx_session import differs


def layer_names(artifact: Artifact) -> list[tuple[str, str]]:
    """Return tensor name and node name of each layer."""
    try:
        return [(str(layer["name"]), str(layer["node"])) for layer in artifact.manifest.get("layers", [])]
    except KeyError as problem:
        raise differs(f"a layer of the manifest has no {problem}") from problem


def input_names(artifact: Artifact) -> list[str]:
    """Return the inputs' names."""
    return [
        *(str(item["name"]) for item in artifact.manifest["inputs"]),
        *(str(item["input"]) for item in artifact.manifest.get("states", [])),
    ]


def result_names(artifact: Artifact) -> list[str]:
    """Return the outputs' names in the model's order; ONNX may know one by another name, because an input has its name."""
    return [
        *(str(item["name"]) for item in artifact.manifest["outputs"]),
        *(str(item["output"]) for item in artifact.manifest.get("states", [])),
    ]

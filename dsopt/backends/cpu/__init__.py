"""The cpu backend: a program as one ONNX model, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping

from dsopt.artifact import Artifact
from dsopt.backends.base import Blocker, EmitOptions, refuse, signature_manifest, state_files
from dsopt.backends.cpu.convert import convert
from dsopt.backends.cpu.layers import layer_records
from dsopt.backends.cpu.model import OPSET, model_files, placed_files
from dsopt.backends.cpu.native import has_functions, native_part
from dsopt.backends.cpu.pipeline import cpu_pipeline
from dsopt.backends.roofline import Machine, ram_bytes
from dsopt.ir import Program
from dsopt.passes.base import Pass
from dsopt.runtime.executor import Executor
from dsopt.runtime.onnx import open_executor, open_portable
from dsopt.runtime.segments import SegmentExecutor
from dsopt.target import Target

__all__ = ["CpuBackend"]

_MACHINE = Machine(products_per_second=24e9, bytes_per_second=10e9, dispatch_seconds=1e-6)
"""One core with AVX2 at half its peak, and its share of the memory's bandwidth."""


class CpuBackend:
    """Writes `model.onnx` by converters of its own, one for each operator."""

    needs_fixed_sizes = False

    def pipeline(self, target: Target) -> tuple[Pass, ...]:
        """Return the default passes."""
        return cpu_pipeline()

    def unsupported(self, program: Program, target: Target) -> tuple[Blocker, ...]:
        """Return all nodes without an ONNX form, found by converting the program."""
        return convert(program).blockers

    def emit(self, program: Program, target: Target, options: EmitOptions) -> Artifact:
        """Write the model, checked by onnx. Raises UnsupportedOpError naming all nodes that have no ONNX form."""
        options.progress(0, 2, "converting")
        converted = convert(program)
        refuse(converted.blockers, target)
        options.progress(1, 2, "writing model.onnx")
        manifest = {
            **signature_manifest(program),
            "target": target.name,
            "opset": OPSET,
            "layers": layer_records(program, converted),
        }
        if has_functions(converted):
            files, places = placed_files(converted, options.name)
            native, manifest["native"] = native_part(converted, options.name, places)
            files |= native
        else:
            files = model_files(converted, options.name)
        files |= state_files(program)
        options.progress(2, 2, "writing model.onnx")
        return Artifact(manifest, files)

    def lowering(self, target: Target) -> tuple[Pass, ...]:
        """Return no passes: ONNX Runtime makes integer kernels of quantize and dequantize itself."""
        return ()

    def cost(self, program: Program, target: Target, options: EmitOptions) -> Mapping[str, float]:
        """Estimate seconds by a roofline, and bytes of weights and of values alive together."""
        return {"seconds": _MACHINE.seconds(program), "ram_bytes": float(ram_bytes(program))}

    def judge_executor(self, artifact: Artifact) -> tuple[Executor | None, str]:
        """Open the model in ONNX Runtime."""
        return self.check_executor(artifact)

    def check_executor(self, artifact: Artifact) -> tuple[Executor | None, str]:
        """Open the model as it will be run: in ONNX Runtime, with its native kernels if it has some for this CPU."""
        executor = open_executor(artifact)
        return executor, "ONNX Runtime" + (" and native kernels" if isinstance(executor, SegmentExecutor) else "")

    def other_executors(self, artifact: Artifact) -> tuple[tuple[Executor, str], ...]:
        """Open the model without its native kernels, which is what other runtimes and other CPUs get."""
        if "steps" not in artifact.manifest.get("native", {}):
            return ()
        return ((open_portable(artifact), "ONNX Runtime alone"),)

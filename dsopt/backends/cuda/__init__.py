"""The cuda backend: a program as launches of kernels of its own, compiled ahead of time to machine code for each GPU generation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from dsopt.artifact import Artifact
from dsopt.backends.base import INTEGER_LOWERING, Blocker, EmitOptions, refuse, signature_manifest, state_files
from dsopt.backends.cuda.compiler import FLAGS, CudaCompiler, Image, find_compiler
from dsopt.backends.cuda.kernels import CompiledKernels, write_kernels
from dsopt.backends.cuda.limits import all_blockers
from dsopt.backends.cuda.pipeline import cuda_pipeline
from dsopt.backends.cuda.plan import (
    launches_manifest,
    layers_manifest,
    memory_manifest,
    plan_workspace,
    ports_manifest,
    weights_file,
)
from dsopt.backends.cuda.sparse import has_triton, register
from dsopt.backends.roofline import Machine, ram_bytes
from dsopt.backends.tir.lower import lower
from dsopt.errors import ToolchainError
from dsopt.ir import Program
from dsopt.passes.base import Pass, parse_pipeline
from dsopt.runtime.cuda import open_executor as open_gpu
from dsopt.runtime.cuda_executor import PlanExecutor
from dsopt.runtime.cuda_plan import LaunchPlan
from dsopt.runtime.executor import Executor
from dsopt.simulate.cuda_host import HostDevice, host_compiler
from dsopt.target import CudaTarget, Target

__all__ = ["CudaBackend"]

_MACHINE = Machine(products_per_second=9.75e12, bytes_per_second=1.5e12, dispatch_seconds=3e-6)
"""An A100: 19.5 TFLOP/s in float32 and 1,555 GB/s, by NVIDIA's data sheet, and the time of a launch."""


class CudaBackend:
    """Writes kernels.cu, its machine code for each architecture and PTX for later ones, weights.bin, and the launch plan."""

    needs_fixed_sizes = True

    def pipeline(self, target: Target) -> tuple[Pass, ...]:
        """Return the default passes."""
        return cuda_pipeline()

    def unsupported(self, program: Program, target: Target) -> tuple[Blocker, ...]:
        """Return inputs whose sizes vary, nodes without a loop form, and tensors too large for 32-bit indices."""
        return all_blockers(program)

    def emit(self, program: Program, target: Target, options: EmitOptions) -> Artifact:
        """Compile for every architecture of the target; needs no GPU.

        Raises UnsupportedOpError with all blockers, and ToolchainError where there is no CUDA compiler or none for an architecture.
        """
        assert isinstance(target, CudaTarget)
        refuse(self.unsupported(program, target), target)
        loops = lower(program)
        kernels = write_kernels(loops.kernels, options.progress)
        compiler = find_compiler()
        images = _compile(compiler, kernels.source, _code_archs(target), options)
        weights, weight_offsets = weights_file(loops)
        manifest = {
            **signature_manifest(program),
            "target": target.name,
            "layers": layers_manifest(program, loops),
            "memory": memory_manifest(loops, weight_offsets, len(weights), plan_workspace(loops)),
            "launches": launches_manifest(loops.kernels, kernels),
            "cuda": {
                "compiler": f"{compiler.name} {compiler.version}",
                "flags": list(FLAGS),
                "images": [{"arch": image.arch, "file": image.file} for image in images],
                "ports": ports_manifest(program, loops),
                "resources": _resources(kernels, images),
            },
        }
        files = {image.file: image.code for image in images}
        files |= {"kernels.cu": kernels.source.encode(), "weights.bin": weights, **state_files(program)}
        return Artifact(manifest, files)

    def lowering(self, target: Target) -> tuple[Pass, ...]:
        """Return the passes that turn a quantised program into one of integers."""
        return parse_pipeline(INTEGER_LOWERING)

    def cost(self, program: Program, target: Target, options: EmitOptions) -> Mapping[str, float]:
        """Estimate seconds by a roofline, and bytes of weights and of values alive together."""
        return {"seconds": _MACHINE.seconds(program), "ram_bytes": float(ram_bytes(program))}

    def judge_executor(self, artifact: Artifact) -> tuple[Executor | None, str]:
        """Open the artifact on the GPU of this machine; emulated on the host where there is none."""
        try:
            return open_gpu(artifact), "the GPU of this machine"
        except ToolchainError:
            return self.check_executor(artifact)

    def check_executor(self, artifact: Artifact) -> tuple[Executor | None, str]:
        """Run the same kernels and launch plan on the host: what is checked is all but the last step, source to machine code."""
        if host_compiler() is None:
            return None, "no host C++ compiler is here to emulate the kernels with"
        plan = LaunchPlan.read(artifact.manifest)
        device = HostDevice(artifact.files["kernels.cu"].decode(), plan.kernels)
        return PlanExecutor(
            plan, artifact.files["weights.bin"], device
        ), "the kernels' source, emulated on this computer (no GPU was used)"


def _code_archs(target: CudaTarget) -> tuple[str, ...]:
    """Return what to compile for: each architecture, and PTX of the newest for GPUs that come later."""
    newest = max(int(arch.removeprefix("sm_").rstrip("a")) for arch in target.archs)
    return (*dict.fromkeys(target.archs), f"compute_{newest}")


def _compile(compiler: CudaCompiler, source: str, archs: Sequence[str], options: EmitOptions) -> list[Image]:
    """Compile for all architectures, as many at once as there are cores; each build is a process."""
    images: list[Image] = []
    with ThreadPoolExecutor(max_workers=min(len(archs), os.cpu_count() or 1)) as pool:
        for number, image in enumerate(pool.map(lambda arch: compiler.compile(source, arch), archs), start=1):
            options.progress(number, len(archs), f"compiled for {image.arch}")
            images.append(image)
    return images


def _resources(kernels: CompiledKernels, images: Sequence[Image]) -> dict[str, Any]:
    """Return registers, stack and spills of each kernel for each architecture."""
    return {
        symbol: {image.arch: asdict(image.resources[symbol]) for image in images if symbol in image.resources}
        for symbol in sorted(set(kernels.symbols.values()))
    }


if has_triton():
    register()

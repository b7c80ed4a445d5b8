"""Runs cuda artifacts: the launch plan of the manifest on the GPU of this machine."""

from __future__ import annotations

from dsopt.artifact import Artifact
from dsopt.errors import ArtifactError
from dsopt.runtime.cuda_driver import DRIVER, CudaDevice, Image
from dsopt.runtime.cuda_executor import PlanExecutor
from dsopt.runtime.cuda_plan import LaunchPlan

WEIGHTS = "weights.bin"
"""The file that holds all weights, where the plan says."""


def open_executor(artifact: Artifact, driver: str = DRIVER) -> PlanExecutor:
    """Load code and weights onto the GPU. driver: the library to load it through.

    Raises ToolchainError where there is no GPU or none that the artifact has code for, BudgetError where its memory is too
    small, ArtifactError where the plan is damaged.
    """
    plan = LaunchPlan.read(artifact.manifest)
    device = CudaDevice(_images(artifact), plan.kernels, driver)
    return PlanExecutor(plan, artifact.view(WEIGHTS), device)


def _images(artifact: Artifact) -> list[Image]:
    try:
        return [
            Image(str(entry["arch"]), artifact.files[entry["file"]]) for entry in artifact.manifest["cuda"]["images"]
        ]
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            "DS0709", "the list of images of this artifact is damaged", why=str(error), fix="compile the model again"
        ) from error

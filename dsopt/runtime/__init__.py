"""Run artifacts. Imports nothing of the compiler: a server installs dsopt without torch."""

from dsopt.runtime.arguments import DimRange, TensorSpec
from dsopt.runtime.session import Session, load

__all__ = ["DimRange", "Session", "TensorSpec", "load"]

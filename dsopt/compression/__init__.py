"""Prune, distil, train with quantisation and compile, in one call that can be stopped and gone on with.

compress    run the stages, and measure after each
parse_stages    read stages as text
"""

from dsopt.compression.composition import compress
from dsopt.compression.report import Compressed, StageReport
from dsopt.compression.stages import STAGES, parse_stages

__all__ = ["STAGES", "Compressed", "StageReport", "compress", "parse_stages"]

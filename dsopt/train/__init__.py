"""Training of rewritten programs.

qat     fine-tune a program with quantisation in it
"""

from dsopt.train.quantized import QatResult, qat

__all__ = ["QatResult", "qat"]

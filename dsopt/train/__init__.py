"""Training of rewritten programs.

qat                fine-tune a program with quantisation in it
ChannelSparsity    a term for the loss that prepares channels for pruning
"""

from dsopt.train.quantized import QatResult, qat
from dsopt.train.sparsity import ChannelSparsity

__all__ = ["ChannelSparsity", "QatResult", "qat"]

"""Training of rewritten programs.

qat                fine-tune a program with quantisation in it
distill            train a program by a better one
student            make the program that is to learn of some layers of the other
ChannelSparsity    a term for the loss that prepares channels for pruning
"""

from dsopt.train.distillation import DistillResult, distill
from dsopt.train.quantized import QatResult, qat
from dsopt.train.sparsity import ChannelSparsity
from dsopt.train.students import student

__all__ = ["ChannelSparsity", "DistillResult", "QatResult", "distill", "qat", "student"]

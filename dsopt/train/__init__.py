"""Training of rewritten programs.

qat                fine-tune a program with quantisation in it
distill            train a program by a better one
taught_loss        labels and a teacher's logits as one loss, for qat
student            make the program that is to learn of some layers of the other
ChannelSparsity    a term for the loss that prepares channels for pruning
"""

from dsopt.train.distill_loss import taught_loss
from dsopt.train.distillation import DistillResult, distill
from dsopt.train.quantized import QatResult, qat
from dsopt.train.sparsity import ChannelSparsity
from dsopt.train.students import student

__all__ = ["ChannelSparsity", "DistillResult", "QatResult", "distill", "qat", "student", "taught_loss"]

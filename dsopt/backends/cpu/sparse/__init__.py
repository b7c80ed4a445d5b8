"""The CPU kernel of dsopt::sparse_attention: loop nests of TVM, compiled by LLVM to shared objects that need nothing to run.

    code       statements of a C function over raw pointers
    vectors    transposing, sums over lanes, exponential, logarithm
    form       what the code is specialised for: sizes of heads and the level of the CPU
    pool       the pyramid of a head
    score, best, search    which keys a tile picks, and which nodes cover the others
    rows, attend    what is attended to, in panels, and the softmax over it
    tiles      the functions that are called from outside
    link       objects to shared objects

The run-time side, which knows neither TVM nor torch, is `dsopt.runtime.sparse_kernel`.
"""

from dsopt.backends.cpu.sparse.link import build

__all__ = ["build"]

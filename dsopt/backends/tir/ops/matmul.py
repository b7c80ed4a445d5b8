"""Linear layers, matrix products and einsum: sums of products over named dims, one local sum per element of the result."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from dsopt.backends.tir.ops.activation import activate
from dsopt.backends.tir.ops.broadcast import elementwise
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, RefusedError, lowering
from dsopt.backends.tir.tvm_adapter import Expr, constant


def _linear(
    context: Context, x: Buffer, weight: Buffer, bias: Buffer | None, activation: str, params: Sequence[float]
) -> Buffer:
    if x.dtype != "float32":
        raise RefusedError(f"a linear layer of {x.dtype}", "convert the input to float32")
    K = x.shape[-1]
    N = 1 if len(weight.shape) == 1 else weight.shape[0]
    M = x.elements // K
    result = context.result()
    with context.kernel(multiply_adds=M * N * K) as k:
        a, w = k.read("x", x, (M, K)), k.read("weight", weight, (N, K))
        b = k.read("bias", bias, (N,)) if bias else None
        y = k.write("y", result, (M, N))
        with k.grid(m=M, n=N) as (m, n):
            total = k.local("total", b[n] if b is not None else 0.0, "float32")
            with k.loop("k", 0, K) as i:
                k.store(total, total[0] + a[m, i] * w[n, i])
            k.store(y, activate(total[0], activation, params), m, n)
    return result


@lowering("aten.linear.default")
def _aten_linear(context: Context, x: Buffer, weight: Buffer, bias: Buffer | None) -> Buffer:
    return _linear(context, x, weight, bias, "none", ())


@lowering("dsopt.linear_act.default")
def _linear_act(
    context: Context, x: Buffer, weight: Buffer, bias: Buffer | None, activation: str, params: list[float]
) -> Buffer:
    return _linear(context, x, weight, bias, activation, params)


def contract(
    context: Context,
    terms: Sequence[tuple[str, Buffer, Sequence[int]]],
    output: str,
    finish: Callable[[Expr, tuple[Expr, ...]], Expr] | None = None,
) -> Buffer:
    """Sum the product of terms over the letters that the output lacks: [("mk", A, shape), ("kn", B, shape)], "mn".

    A term's dim of size 1 is broadcast against the same letter of a larger size.
    """
    sizes: dict[str, int] = {}
    for letters, _, shape in terms:
        for letter, size in zip(letters, shape, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
    summed = sorted({letter for letters, _, _ in terms for letter in letters} - set(output))
    result = context.result()
    shape = tuple(sizes[letter] for letter in output) or (1,)
    zero: float | int = 0.0 if context.dtype == "float32" else 0
    work = math.prod(sizes.values()) if len(terms) > 1 else 0
    with context.kernel(multiply_adds=work) as k:
        reads = [
            k.read("ab"[n] if len(terms) == 2 else "x", term, tuple(view) or (1,))
            for n, (_, term, view) in enumerate(terms)
        ]
        y = k.write("y", result, shape)
        with k.grid(**({letter: sizes[letter] for letter in output} or {"once": 1})) as indices:
            where: dict[str, Expr] = dict(zip(output, indices, strict=False))
            total = k.local("total", zero, context.dtype)
            with ExitStack() as loops:
                where |= {letter: loops.enter_context(k.loop(letter, 0, sizes[letter])) for letter in summed}
                product: Expr = None
                for read, (letters, _, view) in zip(reads, terms, strict=True):
                    place = tuple(
                        where[letter] if size > 1 else 0 for letter, size in zip(letters, view, strict=True)
                    ) or (0,)
                    product = read[place] if product is None else product * read[place]
                k.store(total, total[0] + product)
            value = total[0] if finish is None else finish(total[0], tuple(indices))
            k.store(y, value, *(indices if output else (0,)))
    return result


@lowering("aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.mv.default", "aten.dot.default")
def _matmul(context: Context, a: Buffer, b: Buffer) -> Buffer:
    a_shape = a.shape if len(a.shape) > 1 else (1, *a.shape)
    b_shape = b.shape if len(b.shape) > 1 else (*b.shape, 1)
    rank = max(len(a_shape), len(b_shape)) - 2
    batch = string.ascii_letters[26 : 26 + rank]
    terms = [
        (batch[rank - (len(a_shape) - 2) :] + "mk", a, a_shape),
        (batch[rank - (len(b_shape) - 2) :] + "kn", b, b_shape),
    ]
    return contract(context, terms, batch + "mn")


@lowering("aten.addmm.default", "aten.baddbmm.default")
def _addmm(context: Context, bias: Buffer, a: Buffer, b: Buffer, beta: float, alpha: float) -> Buffer:
    rank = len(context.shape)
    padded = (1,) * (rank - len(bias.shape)) + bias.shape
    terms = [("bmk"[3 - rank :], a, a.shape), ("bkn"[3 - rank :], b, b.shape)]
    return _with_bias(context, terms, bias, padded, beta, alpha)


def _with_bias(
    context: Context, terms: Sequence[tuple[str, Buffer, Sequence[int]]], bias: Buffer, padded: tuple[int, ...], beta: float, alpha: float
) -> Buffer:  # fmt: skip
    """beta * bias + alpha * the product; the bias is broadcast over the result."""
    (left, a, _), (right, b, _) = terms
    *batch, M, N = context.shape
    K = a.shape[-1]
    result = context.result()
    with context.kernel(multiply_adds=math.prod(batch) * M * N * K) as k:
        x, w, c = k.read("a", a), k.read("b", b), k.read("bias", bias, padded)
        y = k.write("y", result)
        grid = {"batch": batch[0]} if batch else {}
        with k.grid(**grid, m=M, n=N) as index:
            total = k.local("total", 0.0, "float32")
            with k.loop("k", 0, K) as i:
                where = dict(zip("bmn"[3 - len(index) :], index, strict=True)) | {"k": i}
                k.store(total, total[0] + x[tuple(where[t] for t in left)] * w[tuple(where[t] for t in right)])
            place = tuple(at if size > 1 else 0 for at, size in zip(index, padded, strict=True))
            value = total[0] if alpha == 1 else total[0] * constant(alpha, "float32")
            k.store(y, value + (c[place] if beta == 1 else c[place] * constant(beta, "float32")), *index)
    return result


@lowering("aten.addmv.default")
def _addmv(context: Context, bias: Buffer, a: Buffer, b: Buffer, beta: float, alpha: float) -> Buffer:
    """The matrix product with a vector as a column of one."""
    M, K = a.shape

    def finish(total: Expr, index: tuple[Expr, ...]) -> Expr:
        return total if alpha == 1 else total * constant(alpha, "float32")

    product = contract(context, [("mk", a, (M, K)), ("k", b, (K,))], "m", finish)
    scale = constant(beta, "float32")
    return elementwise(context, [product, bias], lambda x, y: x + (y if beta == 1 else y * scale))


@lowering("aten.einsum.default")
def _einsum(context: Context, equation: str, operands: list[Buffer], path: list[int] | None) -> Buffer:
    inputs, output = _parse_einsum(equation.replace(" ", ""), [len(operand.shape) for operand in operands])
    terms = []
    for letters, operand in zip(inputs, operands, strict=True):
        if len(set(letters)) < len(letters):
            raise RefusedError(f"einsum {equation!r} takes a diagonal", "write it with torch.diagonal")
        terms.append((letters, operand, operand.shape))
    return contract(context, terms, output)


def _parse_einsum(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the letters of each operand and of the output, with "..." spelled out in letters of its own."""
    left, arrow, right = equation.partition("->")
    parts = left.split(",")
    free = [letter for letter in string.ascii_uppercase if letter not in equation]
    covered = [rank - len(part.replace("...", "")) for part, rank in zip(parts, ranks, strict=True)]
    dots = "".join(free[: max([count for part, count in zip(parts, covered, strict=True) if "..." in part], default=0)])
    inputs = [part.replace("...", dots[len(dots) - count :]) for part, count in zip(parts, covered, strict=True)]
    if arrow:
        return inputs, right.replace("...", dots)
    joined = "".join(parts).replace("...", "")
    return inputs, dots + "".join(sorted(letter for letter in set(joined) if joined.count(letter) == 1))

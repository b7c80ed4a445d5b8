"""Linear layers, matrix products and einsum: a dimension that is summed over is kept alike in both operands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from dsopt.passes.prune.axes import Expr, fixed
from dsopt.passes.prune.rules.base import Named, Result, Rule, Unknown, each, rank, result_sizes, tensor

if TYPE_CHECKING:
    from dsopt.passes.prune.inference import AxisInference


def _linear(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x, weight = tensor(named["input"] if "input" in named else named["x"]), tensor(named["weight"])
    if rank(weight) != 2:
        raise Unknown("its weight is no matrix")
    inference.tie(weight, 1, inference.dim(x, rank(x) - 1))
    inference.sums_over(inference.dim(x, rank(x) - 1), x, weight)
    out = inference.dim(weight, 0)
    if named["bias"] is not None:
        inference.tie(tensor(named["bias"]), 0, out)
    return (*inference.axes(x)[:-1], out)


def _product(inference: AxisInference, a: fx.Node, b: fx.Node, node: fx.Node) -> tuple[Expr, ...]:
    """(.., N, K) times (.., K, M), or a vector in the place of either."""
    inference.tie(b, max(rank(b) - 2, 0), inference.dim(a, rank(a) - 1))
    inference.sums_over(inference.dim(a, rank(a) - 1), a, b)
    rows = inference.axes(a)[-2:-1] if rank(a) > 1 else ()
    columns = inference.axes(b)[-1:] if rank(b) > 1 else ()
    sizes = result_sizes(node)
    batch = len(sizes) - len(rows) - len(columns)
    return (*_batch(inference, (a, b), sizes[:batch]), *rows, *columns)


def _batch(inference: AxisInference, nodes: tuple[fx.Node, ...], sizes: tuple[Any, ...]) -> tuple[Expr, ...]:
    """Align all dimensions but the last two by broadcasting."""
    result = []
    for index, size in enumerate(sizes):
        place = index - len(sizes)
        holders = [
            (each, rank(each) - 2 + place)
            for each in nodes
            if rank(each) - 2 + place >= 0 and inference.shape(each)[rank(each) - 2 + place] != 1
        ]
        expr = inference.dim(*holders[0]) if holders else fixed(size)
        for holder in holders:
            inference.tie(*holder, expr)
        result.append(expr)
    return tuple(result)


def _matmul(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    other = named.get("other", named.get("mat2", named.get("vec", named.get("tensor"))))
    return _product(inference, tensor(named["self"]), tensor(other), node)


def _addmm(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    first = tensor(named.get("mat1", named.get("batch1", named.get("mat"))))
    second = tensor(named.get("mat2", named.get("batch2", named.get("vec"))))
    axes = _product(inference, first, second, node)
    added = tensor(named["self"])
    for index in range(1, rank(added) + 1):
        if inference.shape(added)[-index] != 1:
            inference.tie(added, rank(added) - index, axes[-index])
    return axes


def _einsum(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """Dimensions under one letter are kept alike; those of "..." stand for themselves."""
    equation, operands = str(named["equation"]).replace(" ", ""), [tensor(each) for each in named["tensors"]]
    left, arrow, right = equation.partition("->")
    if "." in equation:
        raise Unknown("its equation has an ellipsis")
    letters: dict[str, Expr] = {}
    for labels, operand in zip(left.split(","), operands, strict=True):
        for index, letter in enumerate(labels):
            if inference.shape(operand)[index] == 1:
                letters.setdefault(letter, ())
            elif letters.get(letter):
                inference.tie(operand, index, letters[letter])
            else:
                letters[letter] = inference.dim(operand, index)
    if not arrow:
        right = "".join(sorted(letter for letter in letters if left.count(letter) == 1))
    for letter in sorted(set(letters) - set(right)):
        holders = [operand for labels, operand in zip(left.split(","), operands, strict=True) if letter in labels]
        inference.sums_over(letters[letter], *holders)
    return tuple(letters[letter] for letter in right)


def _outer(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    second = named["other"] if "other" in named else named["vec2"]
    return (inference.dim(tensor(named["self"]), 0), inference.dim(tensor(second), 0))


RULES: dict[str, Rule] = {
    **each("linear dsopt.linear_act", _linear),
    **each("outer ger", _outer),
    **each("matmul mm bmm mv dot", _matmul),
    **each("addmm baddbmm addmv", _addmm),
    "einsum": _einsum,
}

"""Which values are zero where channels are gone, if the weights of these channels are zero.

Where two results are multiplied and summed over a dimension, or one is summed, taking channels out changes the sum by what they give
when their weights are zero: nothing, unless something makes more of zero, as `elu(x) + 1` does in linear attention. A dimension that is
summed so is kept. Most often one operand is a weight, which is zero itself. Norms and means are taken over the channels that are left,
so that what they give counts as zero where channels are gone.

Element-wise operators are not listed: each is asked what it makes of zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from dsopt.passes.prune.rules.base import Named, each, packet_name, rank
from dsopt.passes.prune.rules.elementwise import is_pointwise

if TYPE_CHECKING:
    from dsopt.passes.prune.inference import AxisInference

_PROBES = (0.75, -1.25, 3.0)
"""What stands for an operand that is not zero."""

_MOST_PROBED = 4
"""Operands that need not be zero beyond which nothing is believed."""

_KINDS: dict[str, str] = {
    **each(
        "view reshape _unsafe_view flatten unflatten reshape_as view_as permute transpose swapdims swapaxes t mT mH adjoint numpy_T "
        "movedim moveaxis squeeze unsqueeze slice narrow split split_with_sizes chunk select unbind "
        "roll flip index_select index gather embedding embedding_bag _embedding_bag _embedding_bag_forward_only",
        "first",
    ),
    **each(
        "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d upsample_linear1d lp_pool1d "
        "_upsample_nearest_exact1d reflection_pad1d replication_pad1d max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d "
        "_adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d lp_pool2d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad2d replication_pad2d max_pool3d avg_pool3d adaptive_avg_pool3d "
        "adaptive_max_pool3d upsample_nearest3d upsample_trilinear3d reflection_pad3d replication_pad3d grid_sampler grid_sampler_2d "
        "pixel_shuffle pixel_unshuffle channel_shuffle unfold im2col col2im",
        "first",
    ),
    **each(
        "dropout feature_dropout alpha_dropout native_dropout clone contiguous to _to_copy type_as detach alias lift_fresh_copy float "
        "half double glu prelu sum mean nansum linalg_vector_norm norm frobenius_norm amax amin prod cumsum tril triu cosine_similarity",
        "first",
    ),
    **each("expand expand_as repeat tile repeat_interleave", "spread"),
    **each("cat concat concatenate stack _weight_norm _weight_norm_interface", "all"),
    **each("pad constant_pad_nd", "pad"),
    **each(
        "batch_norm instance_norm layer_norm rms_norm group_norm native_batch_norm _native_batch_norm_legit native_layer_norm "
        "_native_batch_norm_legit_no_training native_group_norm zeros zeros_like new_zeros",
        "zero",
    ),
    **each("linear dsopt.linear_act", "linear"),
    **each(
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution dsopt.conv_act", "convolution"
    ),
    **each("matmul mm bmm mv dot addmm baddbmm addmv", "matmul"),
    **each("outer ger", "outer"),
    "einsum": "einsum",
    **each("where masked_fill hardswish fill copy dsopt.add_act", "pointwise"),
    **each("scaled_dot_product_attention dsopt.sparse_attention", "value"),
    **each("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", "weights"),
    **each("ones_like full_like empty_like rand_like randn_like", "nothing"),
}  # fmt: skip


class Zeros:
    """The values of a program that are zero at all places of channels that are gone; it learns of them in the program's order."""

    def __init__(self, inference: AxisInference) -> None:
        self._inference = inference
        self._zero: set[fx.Node] = set()

    def __contains__(self, value: object) -> bool:
        """Tell whether a value is zero there."""
        return value in self._zero

    def add(self, node: fx.Node) -> None:
        """Say that a value is."""
        self._zero.add(node)

    def learn(self, node: fx.Node, named: Named) -> None:
        """Find out about a node whose dimensions are known."""
        kind = _KINDS.get(packet_name(node)) or ("pointwise" if is_pointwise(node) else "nothing")
        if kind == "zero" or (kind != "nothing" and getattr(self, f"_{kind}")(node, named)):
            self._zero.add(node)

    # ---- operators ----

    def _first(self, node: fx.Node, named: Named) -> bool:
        operands = self._inference.tensors(node)
        return bool(operands) and operands[0] in self

    def _all(self, node: fx.Node, named: Named) -> bool:
        return all(operand in self for operand in self._inference.tensors(node))

    def _spread(self, node: fx.Node, named: Named) -> bool:
        """Copies along a dimension may be channels of their own, which the operand does not have."""
        return self._first(node, named) and self._has_channels_of(node, self._inference.tensors(node)[0])

    def _pad(self, node: fx.Node, named: Named) -> bool:
        is_zero = named.get("mode", "constant") != "constant" or named.get("value") in (None, 0)
        return is_zero and self._first(node, named)

    def _value(self, node: fx.Node, named: Named) -> bool:
        """A head of queries that is gone may share its values with others."""
        return named["value"] in self and self._has_channels_of(node, named["value"])

    def _weights(self, node: fx.Node, named: Named) -> bool:
        """Without weights and from a state of zeros, a recurrent layer gives zeros."""
        return all(operand in self for operand in self._inference.tensors(node)[1:])

    def _linear(self, node: fx.Node, named: Named) -> bool:
        return self._layer(node, named, rank(node) - 1)

    def _convolution(self, node: fx.Node, named: Named) -> bool:
        return self._layer(node, named, rank(node) - rank(named["weight"]) + 1)

    def _layer(self, node: fx.Node, named: Named, place: int) -> bool:
        """Weight and bias decide over the output's channels, the operand over channels in any other dimension."""
        x, weight, bias = named.get("input", named.get("x")), named["weight"], named["bias"]
        if named.get("activation", "none") not in ("none", "relu"):
            return False
        by_weight = weight in self and (bias is None or bias in self)
        return all(by_weight if dim == place else x in self and bias is None for dim in self._channel_dims(node))

    def _matmul(self, node: fx.Node, named: Named) -> bool:
        """Each dimension comes from one operand or, as one of the batch, from both; what is added has it, too."""
        operands = [value for value in named.values() if isinstance(value, fx.Node) and self._inference.has_axes(value)]
        added, (a, b) = operands[:-2], operands[-2:]
        rows, columns, dims = int(rank(a) > 1), int(rank(b) > 1), rank(node)
        for dim in self._channel_dims(node):
            if columns and dim == dims - 1:
                zero = b in self
            elif rows and dim == dims - 1 - columns:
                zero = a in self
            else:
                back = dim - dims + rows + columns - 2  # of operands that are matrices, as both are in a batch
                zero = any(each in self and self._reaches(each, back) for each in (a, b))
            if not zero or any(each not in self or not self._reaches(each, dim - dims) for each in added):
                return False
        return True

    def _outer(self, node: fx.Node, named: Named) -> bool:
        operands = self._inference.tensors(node)
        return all(operands[min(dim, len(operands) - 1)] in self for dim in self._channel_dims(node))

    def _einsum(self, node: fx.Node, named: Named) -> bool:
        left, _, right = str(named["equation"]).replace(" ", "").partition("->")
        labels = list(zip(left.split(","), named["tensors"], strict=True))
        return bool(right) and all(
            any(right[dim] in letters and operand in self and self._size(operand, letters.index(right[dim])) != 1
                for letters, operand in labels)
            for dim in self._channel_dims(node)
        )  # fmt: skip

    def _pointwise(self, node: fx.Node, named: Named) -> bool:
        """For each dimension with channels, the operands that have it and are zero must be enough to make the result zero."""
        if not self._inference.has_axes(node):
            return False
        operands = self._inference.tensors(node)
        found: dict[frozenset[fx.Node], bool] = {}
        for dim in self._channel_dims(node):
            zeros = frozenset(each for each in operands if each in self and self._reaches(each, dim - rank(node)))
            if zeros not in found:
                found[zeros] = bool(zeros) and _makes_zero(
                    node, zeros, [each for each in operands if each not in zeros]
                )
            if not found[zeros]:
                return False
        return True

    # ---- dimensions ----

    def _channel_dims(self, node: fx.Node) -> list[int]:
        return [dim for dim, expr in enumerate(self._inference.axes(node)) if self._inference.holds_channels(expr)]

    def _has_channels_of(self, node: fx.Node, operand: fx.Node) -> bool:
        found, known = (
            {
                slot
                for dim in self._channel_dims(each)
                for slot in self._inference.slots_of(self._inference.dim(each, dim))
            }
            for each in (node, operand)
        )
        return found <= known

    def _reaches(self, operand: fx.Node, back: int) -> bool:
        """Tell whether an operand has the dimension that is at `back` of the result, and is not broadcast along it."""
        return rank(operand) >= -back and self._size(operand, back) != 1

    def _size(self, operand: fx.Node, dim: int) -> Any:
        return self._inference.shape(operand)[dim]


def _makes_zero(node: fx.Node, zeros: Iterable[fx.Node], others: Sequence[fx.Node]) -> bool:
    """Ask an element-wise operator whether it gives zero wherever these operands are zero, whatever the others are."""
    if len(others) > _MOST_PROBED:
        return False
    values: dict[fx.Node, Any] = dict.fromkeys(node.all_input_nodes, 2)  # sizes among them
    values |= {each: _scalar(each, 0.0) for each in zeros}
    try:
        for chosen in product(_PROBES, repeat=len(others)):
            values |= {other: _scalar(other, value) for other, value in zip(others, chosen, strict=True)}
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                result = node.target(*args, **kwargs)  # type: ignore[operator]
            if not isinstance(result, Tensor) or bool((result != 0).any()):
                return False
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return False
    return True


def _scalar(node: fx.Node, value: float) -> Tensor:
    dtype: torch.dtype = node.meta["val"].dtype
    if dtype == torch.bool:
        return torch.tensor(value > 0)
    return torch.tensor(value).to(dtype if dtype.is_floating_point else torch.int64)

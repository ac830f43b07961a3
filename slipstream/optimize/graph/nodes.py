# SPDX-License-Identifier: Apache-2.0
"""What a node of a captured graph is: its operation's name, its arguments by name, the tensor that it stood for.

A graph has torch's own functions and methods in it, as the script wrote them. Here they get one name each, and
arguments a name in whatever way they were passed.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from slipstream.optimize.graph.capturing.refusals import CaptureRefused

_PARAMETERS: dict[str, tuple[str, ...]] = {
    "linear": ("input", "weight", "bias"),
    "linear_rows": ("input", "weight", "bias", "rows"),
    "linear_transposed": ("input", "weight", "bias"),
    "linear_folded": ("input", "weight", "bias", "transposed"),
    **dict.fromkeys(
        ("lstm", "gru", "rnn_tanh", "rnn_relu"),
        ("input", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first"),
    ),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), ("tensors", "dim")),
    "embedding": ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    "embedding_bag": (
        "input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse", "per_sample_weights",
        "include_last_offset", "padding_idx",
    ),
    "chunk": ("input", "chunks", "dim"),
    "pow": ("input", "exponent"),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), ("input", "weight", "bias", "stride", "padding", "dilation", "groups")),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    ),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "instance_norm": (
        "input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps",
    ),
    "gelu": ("input", "approximate"),
    "softmax": ("input", "dim", "_stacklevel", "dtype"),
    "gather": ("input", "dim", "index", "sparse_grad"),
    "hardtanh": ("input", "min_val", "max_val", "inplace"),
    "scaled_dot_product_attention": (
        "query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa",
    ),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "adaptive_avg_pool2d": ("input", "output_size"),
    "mean": ("input", "dim", "keepdim"),
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
        ("input", "p", "training", "inplace"),
    ),
    "pad": ("input", "pad", "mode", "value"),
    "add": ("input", "other", "alpha"),
    **dict.fromkeys(("matmul", "bmm"), ("input", "other")),
    "mul": ("input", "other"),
    **dict.fromkeys(("grouped_mm", "_grouped_mm", "grouped_mm_fallback"), ("input", "weight", "offs", "bias", "out_dtype")),
    **dict.fromkeys(
        ("relu", "relu6", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "mish", "selu"), ("input", "inplace")
    ),
}  # fmt: skip
"""Operation → its parameters in order, as far as anything here asks for them."""

_NAMES = {operator.matmul: "matmul", operator.truediv: "div", operator.getitem: "getitem"}


def name_of(node: Any) -> str:
    """The operation's plain name, "linear" or "add"; empty for what is no operation (a placeholder, the output, a number)."""
    if not isinstance(node, fx.Node):
        return ""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    if isinstance(node.target, OpOverload):
        return node.target._opname
    known = _NAMES.get(node.target)  # type: ignore[arg-type]
    return known if known is not None else str(getattr(node.target, "__name__", node.target))


def arguments(node: Any) -> dict[str, Any] | None:
    """The arguments by name; None where the operation's parameters are not known here, or more were passed than known."""
    names = _PARAMETERS.get(name_of(node))
    if names is None or len(node.args) > len(names):
        return None
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def operands_of(node: Any) -> tuple[Any, Any] | None:
    """Both, of an operation that was given nothing else."""
    return (node.args[0], node.args[1]) if isinstance(node, fx.Node) and len(node.args) == 2 and not node.kwargs else None


def value(node: Any) -> Any:
    """What the node stood for in the capture: a fake tensor, a number, a tuple; None where unknown."""
    return node.meta.get("example_value") if isinstance(node, fx.Node) else None


def tensor(node: Any) -> torch.Tensor | None:
    """The fake tensor that a node stood for, if it was one."""
    found = value(node)
    return found if isinstance(found, torch.Tensor) else None


def sizes_of(node: fx.Node) -> tuple[int, ...]:
    """The sizes that a tensor had in the capture. Raises CaptureRefused where they depend on values."""
    value = tensor(node)
    assert value is not None
    return tuple(map(_length, value.shape))


def strides_of(made: torch.Tensor) -> tuple[int, ...]:
    """The strides that it had in the capture. Raises CaptureRefused where they depend on values."""
    return tuple(map(_length, made.stride()))


def _length(length: Any) -> int:
    known = length if isinstance(length, int) else length.node.hint
    if known is None:
        raise CaptureRefused("sizes in it depend on values")
    return int(known)


def is_float32(node: Any) -> bool:
    found = tensor(node)
    return found is not None and found.dtype == torch.float32


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that uses this one's value, exactly once; None where there are none or more."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    uses = [argument for argument in user.all_input_nodes if argument is node]
    mentions = sum(1 for argument in _flat((user.args, user.kwargs)) if argument is node)
    return user if uses and mentions == 1 and user.op != "output" else None


def _flat(values: Any) -> list[Any]:
    if isinstance(values, dict):
        values = tuple(values.values())
    if isinstance(values, (tuple, list)):
        return [leaf for part in values for leaf in _flat(part)]
    if isinstance(values, slice):
        return [values.start, values.stop, values.step]
    return [values]

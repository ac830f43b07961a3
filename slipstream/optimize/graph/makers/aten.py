# SPDX-License-Identifier: Apache-2.0
"""Operators of aten become the functions and methods of torch that a script writes for them, which the passes know by name.

Such graphs come from TorchScript and from exported programs. An operator that is not in the table stays what it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._ops import OpOverload

from slipstream.optimize.graph.nodes import tensor

Given = dict[str, Any]
Call = tuple[str, Any, tuple[Any, ...], dict[str, Any]]
"""Kind of node, target, arguments: of what stands for the operator."""


def speak_torch(graph: fx.Graph) -> None:
    """Rewrite in place."""
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            continue
        spoken = _spoken(node.target, _bound(node))
        if spoken is not None:
            node.op, node.target, node.args, node.kwargs = spoken


def _bound(node: fx.Node) -> Given:
    """All arguments by the names of the schema, with its defaults."""
    schema: Any = node.target._schema  # type: ignore[union-attr]
    given = {argument.name: argument.default_value for argument in schema.arguments}
    given |= dict(zip((argument.name for argument in schema.arguments), node.args, strict=False))
    return given | node.kwargs


def _spoken(target: OpOverload, given: Given) -> Call | None:
    if target.namespace != "aten":
        return None
    name = target._opname
    if name in _SPECIAL:
        return _SPECIAL[name](given)
    if name in _FUNCTIONS:
        function, names = _FUNCTIONS[name]
        if not given.keys() >= set(names) or (given.get("dtype") is not None and "dtype" not in names):
            return None  # another overload
        return "call_function", function, tuple(given[name] for name in names), {}
    if name.removesuffix("_") in _WITH_FLAG and name.endswith("_"):
        function, names = _FUNCTIONS[name.removesuffix("_")]
        return "call_function", function, tuple(given[name] for name in names), {"inplace": True}
    if name in _METHODS or (name.endswith("_") and not name.startswith("_")):
        return _method(target, name, given)
    return None


def _method(target: OpOverload, name: str, given: Given) -> Call | None:
    """As a method, without arguments that say what goes without saying."""
    args, kwargs = [], {}
    for argument in target._schema.arguments:
        if not argument.kwarg_only:
            args.append(given[argument.name])
        elif given[argument.name] != argument.default_value:
            kwargs[argument.name] = given[argument.name]
    while len(args) > 1 and args[-1] is None:
        args.pop()
    return "call_method", name, tuple(args), kwargs


def _sum(function: Any) -> Callable[[Given], Call]:
    def spoken(given: Given) -> Call:
        factor = {} if given["alpha"] == 1 else {"alpha": given["alpha"]}
        return "call_function", function, (given["self"], given["other"]), factor

    return spoken


def _quotient(given: Given) -> Call | None:
    mode = given.get("rounding_mode")
    return None if mode is not None else ("call_function", torch.div, (given["self"], given["other"]), {})


def _convolution(given: Given) -> Call | None:
    """aten's one function for all of them."""
    weight = tensor(given["weight"])
    if weight is None or not 3 <= weight.dim() <= 5:
        return None
    rank = weight.dim() - 2
    names = ["input", "weight", "bias", "stride", "padding"]
    if given["transposed"]:
        target = getattr(F, f"conv_transpose{rank}d")
        names += ["output_padding", "groups", "dilation"]
    else:
        target = getattr(F, f"conv{rank}d")
        names += ["dilation", "groups"]
    return "call_function", target, tuple(given[name] for name in names), {}


def _slice(given: Given) -> Call | None:
    x = tensor(given["self"])
    if x is None:
        return None
    before = (slice(None),) * (given["dim"] % x.dim())
    step = None if given["step"] == 1 else given["step"]
    end = None if isinstance(given["end"], int) and given["end"] == torch.iinfo(torch.int64).max else given["end"]
    start = None if isinstance(given["start"], int) and given["start"] == 0 else given["start"]
    return "call_function", operator.getitem, (given["self"], (*before, slice(start, end, step))), {}


def _cast(given: Given) -> Call | None:
    """To a dtype, on the CPU; ``other`` may have another dtype by the time this runs, so that its own is not asked."""
    if given.get("layout") is not None or given.get("memory_format") not in (None, torch.preserve_format):
        return None
    kwargs = {"copy": True} if given.get("copy") else {}
    wanted = given.get("dtype")
    if "other" in given:
        wanted = None if tensor(given["other"]) is None else tensor(given["other"]).dtype  # type: ignore[union-attr]
    if wanted is None:
        wanted = None if tensor(given["self"]) is None else tensor(given["self"]).dtype  # type: ignore[union-attr]
    return None if wanted is None else ("call_method", "to", (given["self"], wanted), kwargs)


def _attention(given: Given) -> Call:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    function = torch._C._nn.scaled_dot_product_attention  # the one in functional may be one of ours
    keywords = {"scale": given["scale"], "enable_gqa": given["enable_gqa"]}
    return "call_function", function, tuple(given[name] for name in names), keywords


def _gelu(given: Given) -> Call:
    return "call_function", F.gelu, (given["self"],), {"approximate": given["approximate"]}


def _contiguous(given: Given) -> Call:
    kwargs = {} if given["memory_format"] == torch.contiguous_format else {"memory_format": given["memory_format"]}
    return "call_method", "contiguous", (given["self"],), kwargs


_SPECIAL: dict[str, Callable[[Given], Call | None]] = {
    "add": _sum(torch.add),
    "sub": _sum(torch.sub),
    "div": _quotient,
    "_convolution": _convolution,
    "convolution": _convolution,
    "_convolution_mode": lambda given: _convolution(given | {"transposed": False}),
    "slice": _slice,
    "to": _cast,
    "_to_copy": lambda given: _cast(given | {"copy": True}),
    "scaled_dot_product_attention": _attention,
    "gelu": _gelu,
    "contiguous": _contiguous,
    "sym_size": lambda given: ("call_method", "size", (given["self"], given["dim"]), {}),
}

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_POOL = ("self", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
_FUNCTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "linear": (F.linear, ("input", "weight", "bias")),
    "batch_norm": (
        F.batch_norm, ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    ),
    "layer_norm": (F.layer_norm, ("input", "normalized_shape", "weight", "bias", "eps")),
    "rms_norm": (F.rms_norm, ("input", "normalized_shape", "weight", "eps")),
    "group_norm": (F.group_norm, ("input", "num_groups", "weight", "bias", "eps")),
    "embedding": (torch.embedding, ("weight", "indices", "padding_idx", "scale_grad_by_freq", "sparse")),
    "dropout": (F.dropout, ("input", "p", "train")),
    "alpha_dropout": (F.alpha_dropout, ("input", "p", "train")),
    "mul": (torch.mul, ("self", "other")),
    "pow": (torch.pow, ("self", "exponent")),
    "matmul": (torch.matmul, ("self", "other")),
    "bmm": (torch.bmm, ("self", "mat2")),
    "cat": (torch.cat, ("tensors", "dim")),
    "stack": (torch.stack, ("tensors", "dim")),
    "softmax": (torch.softmax, ("self", "dim", "dtype")),
    "mean": (torch.mean, ("self", "dim", "keepdim")),
    "pad": (F.pad, ("self", "pad", "mode", "value")),
    "hardtanh": (F.hardtanh, ("self", "min_val", "max_val")),
    "leaky_relu": (F.leaky_relu, ("self", "negative_slope")),
    "max_pool2d": (torch.max_pool2d, _POOL),
    "adaptive_avg_pool2d": (F.adaptive_avg_pool2d, ("self", "output_size")),
    **{name: (getattr(torch, name), ("self",)) for name in ("relu", "sigmoid", "tanh", "erf", "rsqrt", "exp")},
    **{name: (getattr(F, name), ("self",)) for name in ("silu", "relu6", "hardswish", "hardsigmoid", "mish", "selu")},
    **{f"conv{rank}d": (getattr(F, f"conv{rank}d"), _CONVOLUTION) for rank in (1, 2, 3)},
    **{
        name: (getattr(F, name), _TRANSPOSED)
        for name in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
    },
}  # fmt: skip
"""Operator → the function that a script writes, and what it takes, by the operator's own names."""

_WITH_FLAG = frozenset({"silu", "relu6", "hardswish", "hardsigmoid", "mish", "selu", "hardtanh", "leaky_relu", "dropout"})
"""Functions whose in-place form is a flag."""

_METHODS = frozenset(
    {
        "view", "reshape", "transpose", "permute", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "expand_as",
        "select", "narrow", "split", "chunk", "unbind", "t", "type_as", "detach", "clone", "repeat", "masked_fill", "size",
    }
)  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""Answers for a ScriptModule: by its own TorchScript graph at first, by ours once that is proven and faster."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

from slipstream.optimize import gates, packs
from slipstream.optimize.graph.capturing.arguments import Locals
from slipstream.optimize.graph.capturing.capture import Capture
from slipstream.optimize.graph.capturing.refusals import CaptureRefused
from slipstream.optimize.graph.root import RootCall
from slipstream.optimize.graph.schedule import Schedule
from slipstream.optimize.graph.torchscript.walk import Attribute, Walked, walk
from slipstream.optimize.known_graphs import Known

_GAINS = {torch.float32: (0.1, 0.2), torch.bfloat16: (0.5, 0.5)}
"""Share of a call that a graph saves over TorchScript: without convolutions, and with nothing but them. Measured: BERT-base
1 × 128 and ResNet-50, frozen."""

_CONVOLUTIONS = frozenset({"aten::_convolution", "aten::convolution", "aten::conv1d", "aten::conv2d", "aten::conv3d"})
_WEIGHTY = frozenset({"aten::linear", "aten::addmm", "aten::lstm", "aten::gru"}) | _CONVOLUTIONS


class Signature:
    """How a call's arguments become the inputs of a TorchScript graph."""

    def __init__(self, method: Any) -> None:
        self.method = method
        self.arguments = [(given.name, given.has_default_value(), given.default_value) for given in method.schema.arguments[1:]]

    def bind(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Locals:
        """Raises TypeError for arguments that do not fit."""
        if len(args) > len(self.arguments) or module.forward is not self.method:
            raise TypeError("these are not the arguments of this method")
        rest = self.arguments[len(args) :]
        given = [*args, *(kwargs.get(name, default) for name, _, default in rest)]
        known = sum(name in kwargs for name, _, _ in rest)
        if known != len(kwargs) or not all(name in kwargs or has_default for name, has_default, _ in rest):
            raise TypeError("these are not the arguments of this method")
        return {"arguments": given}


class ScriptCall(RootCall):
    """In a ScriptModule's own call slot."""

    def _signature(self, module: nn.Module) -> Any:
        method = module.forward
        return Signature(method) if isinstance(method, torch._C.ScriptMethod) else None

    def _schedule(self, module: nn.Module) -> Schedule:
        kinds = [] if self.arguments is None else [node.kind() for node in _nodes(self.arguments.method.inlined_graph)]
        weighty = sum(kind in _WEIGHTY for kind in kinds)
        convolutions = sum(kind in _CONVOLUTIONS for kind in kinds)
        least, most = _GAINS[self.options.dtype]
        return Schedule(weighty, least + (most - least) * convolutions / max(1, weighty), self.options.early)

    def _known(self) -> Known:
        return Known(self.options, _fingerprint)

    def _stands_aside(self, module: nn.Module) -> bool:
        """A frozen module cannot be in training, and does not say so."""
        return bool(getattr(module, "training", False)) or torch.is_grad_enabled() or gates.has_hooks(module)

    def _captured(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, dynamic: bool) -> Capture:
        if dynamic:
            with contextlib.suppress(CaptureRefused):  # sizes that vary are more than each of them
                return capture_script(module, self.arguments, args, kwargs, dynamic=True)
        return capture_script(module, self.arguments, args, kwargs, dynamic=False)


def _fingerprint(module: nn.Module) -> str:
    """Equal for modules of one graph: its operators and the types of its tensors, with the shapes of parameters."""
    digest = hashlib.sha256(repr([tuple(weight.shape) for weight in module.state_dict().values()]).encode())
    method: Any = module.forward
    for node in _nodes(method.inlined_graph):
        types = [str(value.type()) for value in node.outputs() if value.type().kind() == "TensorType"]
        digest.update(repr((node.kind(), types)).encode())
    return digest.hexdigest()[:16]


def _nodes(block: Any) -> list[Any]:
    found = []
    for node in block.nodes():
        found.append(node)
        for inner in node.blocks():
            found += _nodes(inner)
    return found


def capture_script(
    module: nn.Module, signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any], *, dynamic: bool
) -> Capture:
    """A ScriptModule's forward as a graph for calls like this one; with ``dynamic`` for other sizes too.

    Raises CaptureRefused for what cannot be walked through: branches on values, effects, operators that are not torch's.
    """
    arguments = signature.bind(module, args, kwargs)["arguments"]
    leaves, structure = pytree.tree_flatten(arguments)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if not all(gates.tensor_is_plain(tensor) for tensor in tensors):
        raise CaptureRefused("an argument is no plain CPU tensor")
    if _names_a_class(signature.method.schema.returns[0].type):
        raise CaptureRefused("its result is of a class of its own")
    environment = ShapeEnv(assume_static_by_default=False) if dynamic else None
    mode = FakeTensorMode(shape_env=environment, static_shapes=not dynamic)
    fakes = {id(tensor): _stand_in(mode, tensor, number, dynamic) for number, tensor in enumerate(tensors)}
    holder: Any = module._c
    try:
        walked = walk(signature.method.inlined_graph, holder, arguments, mode, fakes)
    except CaptureRefused:
        raise
    except Exception as error:  # noqa: BLE001 - whatever an operator has to say about tensors without values
        raise CaptureRefused(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from None
    sizes = None if environment is None else _sizes(environment, [fakes[id(tensor)] for tensor in tensors])
    guard = _Guard(leaves, structure, walked, dynamic)
    weights = [given.read() if isinstance(given, Attribute) else given for given in walked.weights]
    return Capture(
        walked.graph,
        [*tensors, *weights],
        frozenset(range(len(tensors), len(tensors) + len(weights))),
        lambda values: guard.holds(values["arguments"], sizes),
        lambda run: _wrapped(walked, signature, run),
        _original(signature, walked, leaves, structure),
    )


def _stand_in(mode: FakeTensorMode, tensor: torch.Tensor, number: int, dynamic: bool) -> torch.Tensor:
    if not dynamic:
        return mode.from_tensor(tensor, static_shapes=True)
    from torch._dynamo.source import LocalSource

    if not tensor.is_contiguous():
        raise CaptureRefused("sizes vary, and an argument is not contiguous")
    context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DUCK] * tensor.dim())
    return mode.from_tensor(tensor, source=LocalSource(f"t{number}"), symbolic_context=context)


def _sizes(environment: ShapeEnv, fakes: list[Any]) -> Callable[[list[torch.Tensor]], bool] | None:
    """Whether a call's tensors have sizes that the graph holds for."""
    conditions = environment.produce_guards_expression(fakes)
    if conditions is None:
        return None
    return lambda given: bool(environment.evaluate_guards_expression(conditions, given))


def _names_a_class(kind: Any) -> bool:
    """Whether a type has one of the script's own in it, such as a named tuple."""
    return any(word not in _TYPES for word in _words(kind.annotation_str))


_TYPES = frozenset({"Tensor", "Tuple", "List", "Dict", "Optional", "int", "float", "bool", "str", "NoneType"})


def _words(text: str) -> list[str]:
    for sign in "[],":
        text = text.replace(sign, " ")
    return text.split()


class _Guard:
    """Whether a call is like the one that was captured."""

    def __init__(self, leaves: list[Any], structure: Any, walked: Walked, dynamic: bool) -> None:
        self.structure = structure
        self.dynamic = dynamic
        self.likeness = [self._like(leaf) for leaf in leaves]
        self.settings = walked.settings
        self.weights = [_Weight(given) for given in walked.weights if isinstance(given, Attribute)]
        self.state = _state()

    def _like(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return type(leaf), leaf
        if not gates.tensor_is_plain(leaf):
            return None
        if self.dynamic:
            return leaf.dtype, leaf.dim(), leaf.is_contiguous(), leaf.is_conj(), leaf.is_neg()
        return leaf.dtype, leaf.shape, leaf.stride(), leaf.is_conj(), leaf.is_neg()

    def holds(self, arguments: list[Any], sizes: Callable[[list[torch.Tensor]], bool] | None) -> bool:
        leaves, structure = pytree.tree_flatten(arguments)
        if structure != self.structure or self.state != _state():
            return False
        if [self._like(leaf) for leaf in leaves] != self.likeness:
            return False
        if any(attribute.read() != value for attribute, value in self.settings):
            return False
        if not all(weight.holds() for weight in self.weights):
            return False
        return sizes is None or sizes([leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])


def _state() -> Any:
    autocast = torch.get_autocast_dtype("cpu") if gates.in_autocast() else None
    return autocast, torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()


class _Weight:
    """A parameter or buffer that must keep its form.

    Loaded modules have plain tensors for parameters, whose ``data`` nobody watches (see `packs`): ``module.to(dtype)`` and back
    may put other values at the very same address. The weak reference keeps the storage's number from being given away.
    """

    def __init__(self, attribute: Attribute) -> None:
        self.attribute = attribute
        tensor = attribute.read()
        self.form = tensor.dtype, tensor.shape, tensor.layout
        self.storage = StorageWeakRef(tensor.untyped_storage())

    def holds(self) -> bool:
        tensor = self.attribute.read()
        if not isinstance(tensor, torch.Tensor) or (tensor.dtype, tensor.shape, tensor.layout) != self.form:
            return False
        storage = tensor.untyped_storage()
        if storage._cdata != self.storage.cdata:
            packs.spoil(tensor)
            self.storage = StorageWeakRef(storage)
        return True


def _wrapped(walked: Walked, signature: Signature, run: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the graph's inputs as one with forward's arguments and result."""
    weights = walked.weights
    changing = any(isinstance(given, Attribute) for given in weights)

    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        leaves = pytree.tree_leaves(signature.bind(module, args, kwargs)["arguments"])
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        given = [weight.read() if isinstance(weight, Attribute) else weight for weight in weights] if changing else weights
        results = run(*tensors, *given)
        found = [results[place] if isinstance(place, int) else place[0] for place in walked.results]
        return pytree.tree_unflatten(found, walked.structure)

    return forward


def _original(signature: Signature, walked: Walked, leaves: list[Any], structure: Any) -> Callable[..., Any]:
    """TorchScript's own answer, as a function of the graph's inputs: what a walk made of it is not taken on trust."""
    kept = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    places = [number for number, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def reference(*inputs: Any) -> tuple[Any, ...]:
        given = list(kept)
        for place, tensor in zip(places, inputs, strict=False):
            given[place] = tensor
        results, made = pytree.tree_flatten(signature.method(*pytree.tree_unflatten(given, structure)))
        if made != walked.structure:
            return ()
        found = dict(zip((str(place) for place in walked.results), results, strict=True))
        return tuple(found[str(number)] for number in range(walked.tensors))

    return reference

# SPDX-License-Identifier: Apache-2.0
"""A TorchScript graph as a graph of torch.fx: its nodes are gone through once, on tensors without values.

Numbers, lists and flags are computed on the way, so that branches and loops which only they decide come out straight.
What depends on a tensor's values, writes into an attribute, or calls anything but torch's own operators is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from slipstream.optimize.graph.capturing.refusals import CaptureRefused
from slipstream.optimize.graph.torchscript.numbers import DTYPES, ENUMERATIONS, OPERATIONS

LONGEST_LOOP = 256
"""Rounds that are written out."""

SCALED = frozenset({"add", "sub", "mul", "div", "pow"})
"""Operators that take a number where a trace has put it into a tensor."""

OF_LISTS = frozenset(
    {"append", "list", "len", "copy", "slice", "keys", "values", "format", "__is__", "__isnot__", "__getitem__"}
)
"""What only moves references, whatever they refer to."""

_VALUES = frozenset({"Int", "Float", "Bool", "IntImplicit", "FloatImplicit", "ScalarImplicit", "item", "is_nonzero", "nonzero"})
_SIZES = frozenset({"size", "dim", "numel", "len"})
_OPEN = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)
_LAYOUT = frozenset({"stride", "is_contiguous", "storage_offset", "data_ptr"})


@dataclass(frozen=True)
class Attribute:
    """Something that a graph reads of its module: ``holder.getattr(name)``, or an item of that list."""

    holder: Any
    name: str
    item: int | None = None

    def read(self) -> Any:
        value = self.holder.getattr(self.name)
        return value if self.item is None else value[self.item]


@dataclass
class Walked:
    """A graph of the tensors among the arguments, in order, then of ``weights``; its results are the tensors of ``results``.

    A weight is an `Attribute`, or a constant of the graph. ``settings`` are the other attributes that were read, and what
    they were. In ``results`` each tensor is its number among the graph's own, which are ``tensors`` in all; other leaves are
    wrapped in a tuple.
    """

    graph: fx.GraphModule
    weights: list[Attribute | torch.Tensor] = field(default_factory=list)
    settings: list[tuple[Attribute, Any]] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    structure: Any = None
    tensors: int = 0


class _Object:
    """A module within, as far as graphs know it."""

    def __init__(self, holder: Any, path: tuple[str, ...]) -> None:
        self.holder = holder
        self.path = path


def walk(graph: Any, holder: Any, arguments: list[Any], mode: FakeTensorMode, fakes: dict[int, torch.Tensor]) -> Walked:
    """``graph`` is inlined, ``holder`` the ScriptModule behind it, ``arguments`` what its inputs are after that.

    ``fakes`` has, by their id, the stand-ins of the tensors among the arguments. Raises CaptureRefused.
    """
    walker = _Walker(holder, mode)
    inputs = list(graph.inputs())
    walker.values[inputs[0].unique()] = _Object(holder, ())
    for value, argument in zip(inputs[1:], arguments, strict=True):
        walker.values[value.unique()] = pytree.tree_map_only(
            torch.Tensor, lambda tensor: walker.argument(fakes[id(tensor)]), argument
        )
    if walker.last is None:
        raise CaptureRefused("it takes no tensor")
    walker.block(graph)
    results = [walker.values[value.unique()] for value in graph.outputs()]
    return walker.finish(results[0] if len(results) == 1 else tuple(results))


def foreign_kind(graph: Any) -> str | None:
    """The kind of a node that every call comes to and no walk gets past, such as one that writes into an attribute."""
    kinds = (node.kind() for node in graph.nodes())
    return next((kind for kind in kinds if kind not in _HANDLERS and not kind.startswith("aten::")), None)


class _Walker:
    def __init__(self, holder: Any, mode: FakeTensorMode) -> None:
        self.graph = fx.Graph()
        self.mode = mode
        self.values: dict[int, Any] = {}
        self.last: fx.Node | None = None
        self.arguments = 0
        self.weights: list[Attribute | torch.Tensor] = []
        self.settings: list[tuple[Attribute, Any]] = []
        self._known: dict[Any, fx.Node] = {}

    # the fx graph

    def placeholder(self, name: str, stand_in: torch.Tensor) -> fx.Node:
        if self.last is None:
            node = self.graph.placeholder(name)
        else:
            with self.graph.inserting_after(self.last):
                node = self.graph.placeholder(name)
        self.last = node
        node.meta["example_value"] = stand_in
        return node

    def argument(self, stand_in: torch.Tensor) -> fx.Node:
        self.arguments += 1
        return self.placeholder(f"argument_{self.arguments}", stand_in)

    def weight(self, key: Any, source: Attribute | torch.Tensor, tensor: torch.Tensor) -> fx.Node:
        """The placeholder for a parameter, buffer or constant; one for each tensor."""
        if key not in self._known:
            if tensor.layout is not torch.strided or not tensor.is_cpu or tensor.is_quantized:
                raise CaptureRefused(f"it holds a tensor of another kind: {tensor.layout}, {tensor.dtype}")
            self.weights.append(source)
            stand_in = self.mode.from_tensor(tensor, static_shapes=True)
            self._known[key] = self.placeholder(f"weight_{len(self.weights)}", stand_in)
        return self._known[key]

    def emit(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """A node, or what comes out where that is no tensor and depends on none. Lists of results come out as lists."""
        kwargs = kwargs or {}
        examples = fx.node.map_aggregate((args, kwargs), self._example)
        with self.mode:
            positional, keywords = examples  # type: ignore[misc]
            if kind == "call_method":
                made = getattr(positional[0], target)(*positional[1:], **keywords)
            else:
                made = target(*positional, **keywords)
        if not any(isinstance(leaf, _OPEN) for leaf in pytree.tree_leaves(made)):
            return made
        node = self.graph.create_node(kind, target, args, kwargs)
        node.meta["example_value"] = made
        if isinstance(made, (list, tuple)):
            return [self.emit("call_function", operator.getitem, (node, number)) for number in range(len(made))]
        return node

    def finish(self, result: Any) -> Walked:
        leaves, structure = pytree.tree_flatten(result)
        tensors = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
        if not tensors or any(isinstance(leaf, (_Object, torch.Tensor)) for leaf in leaves):
            raise CaptureRefused("its result is not made of tensors alone")
        order = {node: number for number, node in enumerate(dict.fromkeys(tensors))}
        self.graph.output(tuple(order))
        self.graph.eliminate_dead_code()
        self.graph.lint()
        results = [order[leaf] if isinstance(leaf, fx.Node) else (leaf,) for leaf in leaves]
        made = fx.GraphModule(torch.nn.Module(), self.graph)
        return Walked(made, self.weights, self.settings, results, structure, len(order))

    # the nodes of TorchScript

    def block(self, block: Any) -> None:
        for node in block.nodes():
            handler = _HANDLERS.get(node.kind())
            if handler is not None:
                handler(self, node)
            elif node.kind().startswith("aten::"):
                self._operator(node)
            else:
                raise CaptureRefused(f"{node.kind()} is in it")

    def _inputs(self, node: Any) -> list[Any]:
        return [self.values[value.unique()] for value in node.inputs()]

    def _give(self, node: Any, *results: Any) -> None:
        for value, result in zip(node.outputs(), results, strict=True):
            self.values[value.unique()] = result

    @staticmethod
    def _example(value: Any) -> Any:
        return value.meta["example_value"] if isinstance(value, fx.Node) else value

    def _constant(self, node: Any) -> None:
        value = node.output()
        if str(value.type()).startswith(("Function", "__torch__")):
            return self._give(node, None)  # calls of functions and classes are inlined, or nodes that are refused
        made = None if value.type().kind() == "NoneType" else value.toIValue()
        self._give(node, pytree.tree_map_only(torch.Tensor, self._constant_tensor, made))

    def _constant_tensor(self, tensor: torch.Tensor) -> Any:
        if tensor.layout is torch.strided and tensor.dim() == 0:
            return tensor  # perhaps a number: see `_operator`
        return self.weight(id(tensor), tensor, tensor)

    def _attribute(self, node: Any) -> None:
        owner: _Object = self._inputs(node)[0]
        name = node.s("name")
        attribute, path = Attribute(owner.holder, name), (*owner.path, name)
        value = attribute.read()
        if isinstance(value, torch.Tensor):
            self._give(node, self.weight(path, attribute, value))
        elif isinstance(value, list) and value and all(isinstance(part, torch.Tensor) for part in value):
            parts = [Attribute(owner.holder, name, number) for number in range(len(value))]
            self._give(node, [self.weight((*path, part.item), part, part.read()) for part in parts])
        elif isinstance(value, torch._C.ScriptModule):
            self._give(node, _Object(value, path))
        elif all(isinstance(leaf, (bool, int, float, str, type(None), torch.device)) for leaf in pytree.tree_leaves(value)):
            self.settings.append((attribute, value))
            self._give(node, value)
        else:
            raise CaptureRefused(f"it reads an attribute of another kind: {name}")

    def _if(self, node: Any) -> None:
        condition = self._example(self._inputs(node)[0])
        if isinstance(condition, torch.Tensor):
            raise CaptureRefused("a branch depends on a tensor's value")
        taken = list(node.blocks())[0 if condition else 1]
        self.block(taken)
        self._give(node, *(self.values[value.unique()] for value in taken.outputs()))

    def _loop(self, node: Any) -> None:
        most, going, *carried = self._inputs(node)
        (body,) = node.blocks()
        round_, *inside = list(body.inputs())
        rounds = 0
        while rounds < self._number(most) and self._number(going):
            if rounds >= LONGEST_LOOP:
                raise CaptureRefused("a loop in it is long")
            self.values[round_.unique()] = rounds
            for value, given in zip(inside, carried, strict=True):
                self.values[value.unique()] = given
            self.block(body)
            going, *carried = (self.values[value.unique()] for value in body.outputs())
            rounds += 1
        self._give(node, *carried)

    def _number(self, value: Any) -> Any:
        found = self._example(value)
        if isinstance(found, torch.Tensor):
            raise CaptureRefused("a loop depends on a tensor's value")
        return found

    def _dictionary(self, node: Any) -> None:
        inputs = self._inputs(node)
        self._give(node, dict(zip(inputs[::2], inputs[1::2], strict=True)))

    def _unpack(self, node: Any) -> None:
        self._give(node, *self._inputs(node)[0])

    def _number_as_tensor(self, node: Any) -> None:
        (number,) = self._inputs(node)
        self._give(node, number if isinstance(number, fx.Node) else torch.tensor(number))

    def _compute(self, node: Any) -> None:
        self._give(node, self._computed(node.kind().partition("::")[2], self._inputs(node)))

    def _computed(self, name: str, inputs: list[Any]) -> Any:
        """Of numbers, lists and flags. Numbers that a trace has put into tensors come out of them."""
        function = OPERATIONS.get(name)
        if function is None:
            raise CaptureRefused(f"{name} is in it")
        given = [value.item() if isinstance(value, torch.Tensor) else value for value in inputs]
        if name in ("add", "sub") and given[2:] == [1]:
            given.pop()  # the factor of the tensors' operator
        if name in OF_LISTS or not any(isinstance(leaf, fx.Node) for leaf in pytree.tree_leaves(given)):
            return function(*given)
        if not all(isinstance(value, (fx.Node, int, float)) for value in given):
            raise CaptureRefused(f"{name} of sizes that vary is in it")
        if name in ("Int", "IntImplicit", "ScalarImplicit"):
            return given[0]
        return self.emit("call_function", function, tuple(given))

    def _operator(self, node: Any) -> None:
        schema = torch._C.parse_schema(node.schema())
        name = schema.name.partition("::")[2]
        inputs = self._inputs(node)
        of_tensors = any(isinstance(self._example(value), torch.Tensor) for value in inputs if isinstance(value, fx.Node))
        if name in _LAYOUT:
            raise CaptureRefused(f"it asks for memory layout: {name}")
        if name in _SIZES and of_tensors:
            self._give(node, self._size(name, inputs))
        elif name in OPERATIONS and (not of_tensors or name in ("append", "__is__", "__isnot__")):
            self._give(node, self._computed(name, inputs))
        elif name in _VALUES:
            raise CaptureRefused("it depends on a tensor's value")
        else:
            made = self._tensors(name, schema, inputs)
            self._give(node, *([made] if node.outputsSize() == 1 else made))

    def _size(self, name: str, inputs: list[Any]) -> Any:
        shape = self._example(inputs[0]).shape
        if name in ("dim", "len"):
            return len(shape) if name == "dim" else self.emit("call_method", "size", (inputs[0], 0))
        if name == "numel":
            return self.emit("call_method", "numel", (inputs[0],))
        if len(inputs) == 2:
            return self.emit("call_method", "size", (inputs[0], inputs[1]))
        return [self.emit("call_method", "size", (inputs[0], axis)) for axis in range(len(shape))]

    def _tensors(self, name: str, schema: Any, inputs: list[Any]) -> Any:
        """One of torch's operators on tensors."""
        if name == "to" and schema.overload_name.startswith("prim_"):
            return self._cast(schema, inputs)
        packet = getattr(torch.ops.aten, name, None)
        overload = getattr(packet, schema.overload_name or "default", None)
        if overload is None:
            raise CaptureRefused(f"{schema.name} is in it")
        inputs = [self._meaning(argument, value) for argument, value in zip(schema.arguments, inputs, strict=True)]
        if name in SCALED and len(inputs) > 1:
            made = self._with_number(name, inputs)
            if made is not None:
                return made
        inputs = [fx.node.map_aggregate(value, self._settled) for value in inputs]
        count = sum(not argument.kwarg_only for argument in schema.arguments)
        keywords = {
            argument.name: value
            for argument, value in zip(schema.arguments[count:], inputs[count:], strict=True)
            if not argument.has_default_value() or value != argument.default_value
        }
        return self.emit("call_function", overload, tuple(inputs[:count]), keywords)

    def _settled(self, value: Any) -> Any:
        """A tensor of one number that stays one becomes a constant of the graph."""
        return self.weight(id(value), value, value) if isinstance(value, torch.Tensor) else value

    def _with_number(self, name: str, inputs: list[Any]) -> Any:
        """The same with the number itself, where a trace has made a tensor of it, and that gives the same dtype."""
        first, second, *others = inputs
        if others and others != [1]:
            return None
        held = [isinstance(value, torch.Tensor) and value.dtype in (torch.float64, torch.int64) for value in (first, second)]
        beside = self._example(first if held[1] else second)
        if sum(held) != 1 or not isinstance(beside, torch.Tensor) or beside.dim() == 0 or not beside.is_floating_point():
            return None
        pair = tuple(value.item() if isinstance(value, torch.Tensor) else value for value in (first, second))
        return self.emit("call_function", getattr(torch, name), pair)

    def _cast(self, schema: Any, inputs: list[Any]) -> Any:
        """TorchScript's own forms of ``to``."""
        pairs = zip(schema.arguments, inputs, strict=True)
        given = {argument.name: self._meaning(argument, value) for argument, value in pairs}
        device = given.get("device")
        if device is not None and torch.device(device).type != "cpu":
            raise CaptureRefused("it moves tensors to another device")
        dtype = given.get("dtype")
        x = given["self"]
        wanted = self._example(x).dtype if dtype is None else dtype
        return self.emit("call_method", "to", (x, wanted), {"copy": True} if given.get("copy") else {})

    def _meaning(self, argument: Any, value: Any) -> Any:
        """What a number stands for: a dtype, or a tensor of it."""
        kind = str(argument.real_type)
        if kind == "Tensor" and isinstance(self._example(value), (int, float, torch.SymInt)):
            if isinstance(value, fx.Node):
                raise CaptureRefused("sizes that vary are made tensors of")
            return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
        for name, choices in ENUMERATIONS.items():
            if name in kind and isinstance(value, int):
                if value >= len(choices):
                    raise CaptureRefused(f"it has a {name} of number {value}")
                return choices[value]
        return value


_HANDLERS: dict[str, Callable[[_Walker, Any], None]] = {
    "prim::Constant": _Walker._constant,
    "prim::GetAttr": _Walker._attribute,
    "prim::If": _Walker._if,
    "prim::Loop": _Walker._loop,
    "prim::ListConstruct": lambda walker, node: walker._give(node, list(walker._inputs(node))),
    "prim::TupleConstruct": lambda walker, node: walker._give(node, tuple(walker._inputs(node))),
    "prim::DictConstruct": _Walker._dictionary,
    "prim::ListUnpack": _Walker._unpack,
    "prim::TupleUnpack": _Walker._unpack,
    "prim::TupleIndex": lambda walker, node: walker._give(node, operator.getitem(*walker._inputs(node))),
    "prim::NumToTensor": _Walker._number_as_tensor,
    "prim::unchecked_cast": lambda walker, node: walker._give(node, walker._inputs(node)[0]),
    "prim::Uninitialized": lambda walker, node: walker._give(node, None),
    "prim::dtype": lambda walker, node: walker._give(node, DTYPES.index(walker._example(walker._inputs(node)[0]).dtype)),
    "prim::device": lambda walker, node: walker._give(node, torch.device("cpu")),
    "prim::is_cuda": lambda walker, node: walker._give(node, False),
    "prim::min": _Walker._compute,
    "prim::max": _Walker._compute,
}

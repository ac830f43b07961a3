# SPDX-License-Identifier: Apache-2.0
"""A module's forward as one graph, with the guards that say for which calls it holds. Nothing of it is executed.

Dynamo reads the bytecode of the method on fake tensors (`torch._dynamo.convert_frame.fullgraph_capture`, which export and
ahead-of-time compilation use); no code cache and no frame hook is touched: a script's own `torch.compile` does not notice.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

Locals = dict[str, Any]

_NAMED = inspect.Parameter.POSITIONAL_OR_KEYWORD

SETTINGS = {
    "skip_nnmodule_hook_guards": False, "specialize_float": True, "side_effect_replay_policy": "silent",
    "record_runtime_overhead": False, "use_graph_deduplication": False, "track_nodes_for_deduplication": False,
}  # fmt: skip
"""Dynamo's settings in a capture, as far as this version has them. Side effects are replayed; no text is written about each."""

IDLE_HOOKS = ("._backward_hooks", "._backward_pre_hooks", "_hooks_with_kwargs")
"""How the names of those dictionaries of a module end that say nothing about a call without gradients: hooks of the backward
pass, and which of the forward hooks, whose own dictionaries are looked at, take keyword arguments."""


class CaptureRefused(Exception):
    """The forward is not one graph; the text says why, in one line."""


@dataclass(frozen=True)
class Capture:
    """``graph`` computes what ``forward`` would, wherever ``holds(locals)`` says yes.

    ``inputs`` are the tensors that were captured with, in the order of the graph's placeholders; ``own`` are the numbers of
    those that are the model's parameters and buffers. ``wrap`` makes, of a function with the graph's inputs and outputs,
    one with forward's arguments and result. ``original``, a function of the graph's inputs, is what answers are compared
    with; by default the graph itself.
    """

    graph: fx.GraphModule
    inputs: list[Any]
    own: frozenset[int]
    holds: Callable[[Locals], bool]
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
    original: Callable[..., Any] | None = None


def function_of(module: nn.Module) -> types.FunctionType | None:
    """The plain function behind ``module.forward``, where it is an ordinary method."""
    method = module.forward
    function = getattr(method, "__func__", None)
    if not isinstance(function, types.FunctionType) or getattr(method, "__self__", None) is not module:
        return None
    return function


class Arguments:
    """How a call's arguments become the local variables that guards speak of."""

    def __init__(self, function: types.FunctionType) -> None:
        self.signature = inspect.signature(function, follow_wrapped=False)  # its own, not that of a function it wraps
        self.cells = tuple(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        parameters = self.signature.parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        self.is_simple = kinds <= {_NAMED, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
        self.names = tuple(parameter.name for parameter in parameters if parameter.kind is _NAMED)
        self.rest = tuple(parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.VAR_KEYWORD)
        self.defaults = {p.name: p.default for p in parameters if p.default is not p.empty} | {name: {} for name in self.rest}
        self.every = frozenset(self.signature.parameters)

    def bind(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Locals:
        """Raises TypeError for arguments that do not fit."""
        values = self._bind_simply((module, *args), kwargs) if self.is_simple else None
        if values is None:
            bound = self.signature.bind(module, *args, **kwargs)
            bound.apply_defaults()
            values = bound.arguments
        return {**{name: cell.cell_contents for name, cell in self.cells}, **values}

    def _bind_simply(self, given: tuple[Any, ...], kwargs: dict[str, Any]) -> Locals | None:
        """What takes inspect's binding ten times as long; None for calls that it has to judge."""
        taken = self.names[: len(given)]
        if len(taken) < len(given) or any(name in kwargs for name in taken + self.rest):
            return None
        values = {**self.defaults, **dict(zip(taken, given, strict=True)), **kwargs}
        return values if values.keys() == self.every else None


def capture(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, dynamic: bool) -> Capture:
    """``module.forward`` as a graph for calls like this one; with ``dynamic`` for other sizes too.

    Guards hold for the grad mode, autocast state and thread count of the calling thread. Raises CaptureRefused.
    """
    from torch._dynamo import convert_frame
    from torch._dynamo import utils as dynamo
    from torch._dynamo.eval_frame import set_enable_dynamic

    function = function_of(module)
    if function is None:
        raise CaptureRefused("forward is not a method of its class")
    recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
    try:
        with (
            convert_frame.compile_lock,
            _in_silence(dynamo),
            torch._dynamo.config.patch(allow_rnn=recurrent, **_known_settings()),
            dynamo.get_metrics_context(),
            dynamo.dynamo_timed("fullgraph_capture"),
            set_enable_dynamic(dynamic),
        ):
            captured = convert_frame.fullgraph_capture(module.forward, args, kwargs)
            if captured.backend_input is None:
                raise CaptureRefused("there is no tensor operation in it")
            guards = captured.graph_capture_output.build_guards(function.__code__)
    except CaptureRefused:
        raise
    except Exception as error:  # noqa: BLE001 - dynamo raises whatever it met
        raise CaptureRefused(f"{type(error).__name__}: {_first_line(error)}") from None
    backend = captured.backend_input

    def wrap(run: Callable[..., Any]) -> Callable[..., Any]:
        output = captured.graph_capture_output
        return output.get_runtime_env().forward_callable(backend.backend_id, run, extra_globals=dict(output.f_globals))

    weights = {id(weight) for weight in (*module.parameters(), *module.buffers())}
    inputs = list(backend.example_inputs)
    own = frozenset(number for number, given in enumerate(inputs) if id(given) in weights)
    return Capture(backend.graph_module, inputs, own, guards.guard_manager.check, wrap)


@contextlib.contextmanager
def _in_silence(dynamo: Any) -> Iterator[None]:
    """Dynamo tells a script's author what it cannot capture, and from where each operation and each guard comes, and gets ready
    for what is done to a graph later. Here nobody asked: with the 380 modules that it imports for that, it is a quarter of a
    first capture's time (ResNet-50 and BERT-base: 0.35 and 0.4 s). Guards that no answer depends on take time at every call."""
    logger = logging.getLogger("torch._dynamo")
    level = logger.level
    found = [(owner, name, vars(owner)[name], ours) for owner, name, ours in _instead(dynamo) if name in vars(owner)]
    logger.setLevel(logging.ERROR)
    for owner, name, _, ours in found:
        setattr(owner, name, ours)
    try:
        yield
    finally:
        logger.setLevel(level)
        for owner, name, theirs, _ in found:
            setattr(owner, name, theirs)


def _instead(dynamo: Any) -> list[tuple[Any, str, Any]]:
    """Whose attribute of which name is what during a capture."""
    from torch._dynamo import graph_region_tracker, guards, output_graph, symbolic_convert
    from torch.fx.experimental import symbolic_shapes

    builder, manager = guards.GuardBuilder, torch._C._dynamo.guards.GuardManager
    return [
        (dynamo, "warn_once", _nothing),
        (guards, "get_verbose_code_parts", _bare),
        (guards, "profile_guard_manager", _no_time),
        (manager, "add_dimension_marking_guard", _nothing),  # marks are for the script's own torch.compile
        (builder, "EMPTY_NN_MODULE_HOOKS_DICT", _unless_idle(builder.EMPTY_NN_MODULE_HOOKS_DICT)),
        (symbolic_convert, "get_funcname", _nothing),  # tokenizes every file, to log names
        (symbolic_convert.InstructionTranslator, "_throw_if_in_functorch", _nothing),  # loads all backends to look one up
        (symbolic_convert.InstructionTranslatorBase, "is_co_filename_from_nn_modules", _yes),  # such operations keep no stack
        (symbolic_shapes, "uninteresting_files", frozenset),  # what stacks leave out: imports all it may name
        (output_graph.OutputGraph, "get_replayed_side_effect_source_refs", _none_listed),  # for export's metadata
        (graph_region_tracker, "InputPickler", _nothing),  # finds regions that occur twice, which is off
    ]


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _yes(*_: Any) -> bool:
    return True


def _no_time(*_: Any) -> float:
    return 0.0


def _none_listed(*_: Any, **__: Any) -> list[str]:
    return []


def _bare(code_parts: str | list[str], *_: Any, **__: Any) -> list[str]:
    """Guards' texts without the lines of source that they come from."""
    return code_parts if isinstance(code_parts, list) else [code_parts]


def _unless_idle(guard_empty: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """Dynamo's guard of a dictionary of hooks, but for those that do nothing."""

    @functools.wraps(guard_empty)
    def guard_unless_idle(builder: Any, guard: Any) -> None:
        if not guard.name.endswith(IDLE_HOOKS):
            guard_empty(builder, guard)

    return guard_unless_idle


def _known_settings() -> dict[str, Any]:
    return {name: value for name, value in SETTINGS.items() if hasattr(torch._dynamo.config, name)}


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")

# SPDX-License-Identifier: Apache-2.0
"""Dynamo without what it does for messages and for compilers of graphs, which nobody asked for here."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from slipstream.optimize.graph import background

SETTINGS = {
    "skip_nnmodule_hook_guards": False, "specialize_float": True, "side_effect_replay_policy": "silent",
    "record_runtime_overhead": False, "use_graph_deduplication": False, "track_nodes_for_deduplication": False,
    "rewrite_assert_with_torch_assert": False,
}  # fmt: skip
"""Dynamo's settings in a capture, as far as this version has them. Side effects are replayed; no text is written about each.
What an ``assert`` on a value decides is a branch: torch's own would raise another kind of error."""

IGNORED = "ignore_logging_functions"

IDLE_HOOKS = ("._backward_hooks", "._backward_pre_hooks", "_hooks_with_kwargs")
"""How the names of those dictionaries of a module end that say nothing about a call without gradients: hooks of the backward
pass, and which of the forward hooks, whose own dictionaries are looked at, take keyword arguments."""


@contextlib.contextmanager
def quietly(besides: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Dynamo tells a script's author what it cannot capture, and from where each operation and each guard comes, and gets ready
    for what is done to a graph later. Here nobody asked: with the 380 modules that it imports for that, it is a quarter of a
    first capture's time (ResNet-50 and BERT-base: 0.35 and 0.4 s). Guards that no answer depends on take time at every call."""
    logger = logging.getLogger("torch._dynamo")
    level = logger.level
    found = [(owner, name, vars(owner)[name], ours) for owner, name, ours in [*instead(), *besides] if name in vars(owner)]
    about_guards, not_here = logging.getLogger("torch._guards"), _NotOf(threading.get_ident())

    def restore() -> None:
        logger.setLevel(level)
        about_guards.removeFilter(not_here)
        for owner, name, theirs, _ in found:
            setattr(owner, name, theirs)

    try:
        with background.amended_in_child(restore):
            logger.setLevel(logging.ERROR)
            about_guards.addFilter(not_here)
            for owner, name, _, ours in found:
                setattr(owner, name, ours)
            yield
    finally:
        restore()


class _NotOf(logging.Filter):
    """Leaves out what a thread logs: guards that cannot be made, with their tracebacks, which is one more way to be refused."""

    def __init__(self, thread: int) -> None:
        super().__init__()
        self.thread = thread

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self.thread


def instead() -> list[tuple[Any, str, Any]]:
    """Whose attribute of which name is what during a capture."""
    from torch._dynamo import graph_region_tracker, guards, output_graph, symbolic_convert
    from torch._dynamo import utils as dynamo
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


def known_settings(ignored: set[Any]) -> dict[str, Any]:
    """``ignored`` are functions that are handed over, beside those that the script has dynamo ignore."""
    config = torch._dynamo.config
    settings = SETTINGS | {IGNORED: getattr(config, IGNORED, set()) | ignored}
    return {name: value for name, value in settings.items() if hasattr(config, name)}

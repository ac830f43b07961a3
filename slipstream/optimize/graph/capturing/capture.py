# SPDX-License-Identifier: Apache-2.0
"""A module's forward as one graph, with the guards that say for which calls it holds. Nothing of it is executed.

Dynamo reads the bytecode of the method on fake tensors (`torch._dynamo.convert_frame.fullgraph_capture`, which export and
ahead-of-time compilation use); no code cache and no frame hook is touched: a script's own `torch.compile` does not notice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from slipstream.optimize.graph import background
from slipstream.optimize.graph.capturing import deviations, shapes, undisturbed
from slipstream.optimize.graph.capturing.alive import Alive
from slipstream.optimize.graph.capturing.arguments import Locals, function_of
from slipstream.optimize.graph.capturing.branches import Branches, Outcomes
from slipstream.optimize.graph.capturing.installed import Installed
from slipstream.optimize.graph.capturing.patience import Patience
from slipstream.optimize.graph.capturing.quiet import known_settings, quietly
from slipstream.optimize.graph.capturing.recipes import Recipes
from slipstream.optimize.graph.capturing.refusals import BranchOnValue, CaptureRefused, CaptureTakesLong
from slipstream.optimize.graph.capturing.seen import Seen
from slipstream.optimize.graph.capturing.standing import Standing
from slipstream.optimize.graph.capturing.unheard import Unheard


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


def capture(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, dynamic: bool, outcomes: Outcomes | None = None
) -> Capture:
    """``module.forward`` as a graph for calls like this one; with ``dynamic`` for other sizes too.

    Guards hold for the grad mode, autocast state and thread count of the calling thread. Where tensors' values decide what is
    done, ``outcomes`` of such a call say what; the graph raises OtherBranch where they would be others. Raises CaptureRefused.
    """
    from torch._dynamo import convert_frame
    from torch._dynamo import utils as dynamo
    from torch._dynamo.eval_frame import set_enable_dynamic

    function = function_of(module)
    if function is None:
        raise CaptureRefused("forward is not a method of its class")
    recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
    unheard, branches, patience, installed, alive = Unheard(), Branches(outcomes), Patience(module), Installed(), Alive()
    seen, standing = Seen(), Standing(function)
    parts = (unheard, branches, deviations, undisturbed, patience, shapes, Recipes(), seen, standing, installed, alive)
    try:
        with (
            convert_frame.compile_lock,
            background.amended_in_child(convert_frame.compile_lock._at_fork_reinit),  # type: ignore[attr-defined]
            quietly([change for part in parts for change in part.instead()]),
            branches.taken(),
            torch._dynamo.config.patch(allow_rnn=recurrent, **known_settings(unheard.functions)),
            dynamo.get_metrics_context(),
            dynamo.dynamo_timed("fullgraph_capture"),
            set_enable_dynamic(dynamic),
        ):
            captured = convert_frame.fullgraph_capture(module.forward, args, kwargs)
            if captured.backend_input is None:
                raise CaptureRefused("there is no tensor operation in it")
            guards = captured.graph_capture_output.build_guards(function.__code__)
            standing.keep(seen.classes | {type(module)}, captured.backend_input.graph_module.graph)
    except CaptureRefused:
        raise
    except Exception as error:  # noqa: BLE001 - dynamo raises whatever it met
        if patience.over:
            raise CaptureTakesLong(patience.why()) from None
        if branches.met and outcomes is None:
            raise BranchOnValue("tensors' values decide what it does, and its next call is to show how") from None
        raise CaptureRefused(f"{type(error).__name__}: {_first_line(error)}") from None
    backend, output = captured.backend_input, captured.graph_capture_output
    installed.forget(backend.backend_id)

    def wrap(run: Callable[..., Any]) -> Callable[..., Any]:
        return installed.function(output, backend.backend_id, run)

    weights = {id(weight) for weight in (*module.parameters(), *module.buffers())}
    inputs = list(backend.example_inputs)
    own = frozenset(number for number, given in enumerate(inputs) if id(given) in weights)
    holds = installed.kept_by(_holding(guards.guard_manager.check, alive, standing, unheard))
    return Capture(backend.graph_module, inputs, own, holds, wrap)


def _holding(guards: Callable[[Locals], bool], alive: Alive, standing: Standing, unheard: Unheard) -> Callable[[Locals], bool]:
    if unheard.is_empty():
        return lambda values: alive.all and guards(values) and standing.hold()
    return lambda values: alive.all and unheard.holds() and guards(values) and standing.hold()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")

# SPDX-License-Identifier: Apache-2.0
"""What earlier processes found about graphs of a model like this one: whether they were faster than the layers, and whether
the script went on for long enough that making one repaid.

A model is known by its architecture: classes, shapes and settings of its modules, in order, not their values. What is not in
there and matters to the speed (the number of heads, say) makes a wrong belief, which a race in this process corrects.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn

from slipstream.optimize import choices, guards
from slipstream.optimize.accounts import Account
from slipstream.optimize.options import Options, set_up

MARGIN = 1.0
"""A graph answers wherever it is the faster one."""


def fingerprint(model: nn.Module) -> str | None:
    """Equal for models of one architecture; None where weights have no shapes yet. Takes some 10 µs a module."""
    digest = hashlib.sha256()
    try:
        for module in model.modules():
            digest.update(repr(_description(module)).encode())
    except (RuntimeError, ValueError):
        return None
    return digest.hexdigest()[:16]


def _description(module: nn.Module) -> tuple[Any, ...]:
    kind = type(module)
    stock = kind.__module__.startswith("torch.nn.") and not module._modules  # others' extra_repr is the script's code
    own = (*module._parameters.values(), *module._buffers.values())
    shapes = [None if weight is None else (tuple(weight.shape), str(weight.dtype)) for weight in own]
    return kind.__module__, kind.__qualname__, module.extra_repr() if stock else len(module._modules), shapes


def script() -> str | None:
    """Equal for runs of one script, by its path; None where there is no file of it."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    return hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16] if path else None


class Repayment:
    """Of a capture, by all the calls that a process makes of a model: what a graph that was there from the first one on would
    have spared them, over what making it costs.

    ``cost_s`` and ``saved_s``, the latter of a call, are expected seconds until better ones are known. It is written down
    as soon as it is clear that the capture repays, else when the process ends.
    """

    def __init__(self, question: Hashable, cost_s: float, saved_s: float, graph: Account) -> None:
        self.cost_s = cost_s
        self.saved_s = saved_s
        self.others = 0
        """Calls that the graph did not answer."""
        self._question = question
        self._graph = graph
        self._is_kept = False

    def worth(self) -> float:
        return (self.others + self._graph.calls) * self.saved_s / self.cost_s

    def clear_at(self, saved_s: float) -> int:
        """From which call of the graph on it is clear, where each saves so much, which is more than nothing."""
        self.saved_s = saved_s
        return max(self._graph.calls, int(choices.CLEAR * MARGIN * self.cost_s / saved_s) - self.others) + 1

    def keep(self) -> None:
        """Write down whether it repaid; once."""
        memory, worth = guards.speed.memory, self.worth()
        if not self._is_kept and memory is not None and worth > 0:
            self._is_kept = True
            memory.keep(self._question, worth > MARGIN, worth, MARGIN, 1, self.cost_s)


class Known:
    """Of one model's graph, by its inputs' sizes. ``name`` tells models apart."""

    def __init__(self, options: Options, name: Callable[[nn.Module], str | None] = fingerprint) -> None:
        self.options = options
        self._name = name
        self._model: str | None = None
        self._verdicts: dict[Hashable, guards.Verdict | None] = {}

    def verdict(self, model: nn.Module, sizes: Hashable) -> guards.Verdict | None:
        """What may be believed; found out once for each of the sizes."""
        question = self._question(sizes)
        if question not in self._verdicts:
            self._verdicts[question] = self._recalled(model, question)
        return self._verdicts[question]

    def keep(self, sizes: Hashable, verdict: guards.Verdict, rounds: int, original_s: float) -> None:
        """A race of so many rounds each ended. ``original_s``: seconds of a call without the graph."""
        memory = guards.speed.memory
        if memory is not None and self._model is not None:
            with set_up.timed():
                question = self._for_later(self._question(sizes))
                memory.keep(question, verdict.fast, verdict.speedup_x, MARGIN, rounds, original_s)

    def repayment(self, cost_s: float, saved_s: float, graph: Account) -> tuple[Repayment | None, bool | None]:
        """To be told of this process's calls, and whether a capture repaid when the script last ran; after a `verdict`."""
        memory, name = guards.speed.memory, script()
        if memory is None or guards.speed.trusting or self._model is None or name is None:
            return None, None
        with set_up.timed():
            question = ("repaid", self._model, name, self.options.dtype, self.options.low_memory)
            choice = memory.recall(question)
        repayment = Repayment(question, cost_s, saved_s, graph)
        memory.at_exit(question, repayment.keep)
        return repayment, None if choice is None else choice.way == choices.OURS

    def _recalled(self, model: nn.Module, question: Hashable) -> guards.Verdict | None:
        memory = guards.speed.memory
        if memory is None or guards.speed.trusting:
            return None
        with set_up.timed():
            self._model = self._model or self._name(model)
            choice = None if self._model is None else memory.recall(self._for_later(question))
        return None if choice is None else guards.Verdict(choice.way == choices.OURS, choice.speedup_x, earlier=True)

    def _for_later(self, question: Hashable) -> Hashable:
        return "graph", self._model, question

    def _question(self, sizes: Hashable) -> Hashable:
        """What the speed depends on beside the model: dtypes, sizes, modes and threads."""
        options = self.options
        modes = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        return options.dtype, options.low_memory, sizes, modes, torch.get_num_threads()

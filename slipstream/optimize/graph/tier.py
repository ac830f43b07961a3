# SPDX-License-Identifier: Apache-2.0
"""Which modules get a graph: the outermost ones of a script's calls, met when one of their layers is.

Where such a model is no graph, as one that draws random numbers, loops until a value says so, or cuts images into windows, or
has hooks, which a graph of it would pass over, the models that it is made of may be.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from slipstream.decision import log
from slipstream.kernels import native
from slipstream.optimize import gates, names
from slipstream.optimize.graph.root import RootCall
from slipstream.optimize.options import Options, say_once

SLOT = "_compiled_call_impl"

_passed_over: list[str] = torch.jit._recursive.ignored_attributes
"""What torch.jit.script does not look at in a module. It lacks the call slot, and trips over what is put there."""

_answering: weakref.WeakSet[nn.Module] = weakref.WeakSet()


PieceOf = Callable[[nn.Module], Callable[..., Any] | None]

MOST_WAITED = 64
"""Calls after which a module is captured though another of its class, refused once, has not come to its second try."""

MOST_ASIDE = 32
"""Calls in inference of a module with hooks, or a forward of its own, after which its parts are tried in its place."""


def notice(root: nn.Module, name: str, options: Options, piece_of: PieceOf) -> None:
    """Let a `RootCall` answer for this module from its next call on; ``piece_of`` says what answered for one until now."""
    _Family(options, piece_of).notice(root, name)


@dataclass
class _Member:
    """A module of which a `RootCall` answers, and how often that ``waited`` for others, or ``aside`` for hooks."""

    kind: type[nn.Module]
    name: str
    waited: int = 0
    aside: int = 0


class _Family:
    """A model and the parts that it is made of. What one part is refused for, others of its class are not tried for."""

    def __init__(self, options: Options, piece_of: PieceOf) -> None:
        self.options = options
        self.piece_of = piece_of
        self.members: dict[RootCall, _Member] = {}
        self.hopeless: dict[type[nn.Module], bool] = {}
        """Classes of which there are no graphs, and whether there are none of their parts either."""

    def notice(self, module: nn.Module, name: str) -> None:
        if not self.options.graph or module in _answering:
            return
        if not module._modules or isinstance(module, torch.jit.ScriptModule):
            return
        if module.__dict__.get(SLOT) is not None or type(module).__call__ is not nn.Module.__call__:
            return  # compiled by the script itself, or called in a way of its own
        if not names.whole_is_wanted(module, name):
            return
        if not native.available():
            say_once("graph tier", f"it lowers to native kernels: {native.reason()}")
            return
        if self.options.decides_only:
            log.note(f"{name}.graph: whole model", False, "not captured: that takes a second call")
        try:
            self._let_answer(module, name)
        except Exception as error:  # noqa: BLE001 - a failure of ours: the layers have their pieces all the same
            log.note(f"{name}.graph: whole model", False, f"slipstream failed: {error!r}")

    def _let_answer(self, module: nn.Module, name: str) -> None:
        if type(module) in self.hopeless:
            if not self.hopeless[type(module)]:
                self._notice_parts(module, name)
            return
        for old in list(self.members):  # other threads may be adding to it
            if old.module() is None:
                self.members.pop(old, None)
        call = RootCall(module, name, self.options, self.piece_of(module), self)
        self.members[call] = _Member(type(module), name)
        module.__dict__[SLOT] = call
        if SLOT not in _passed_over:
            _passed_over.append(SLOT)
        _answering.add(module)

    def lets(self, call: RootCall) -> bool:
        """Whether this one may be captured: not while it is open whether another of its class is any graph, which that one's
        calls decide, if more of them come."""
        member = self.members[call]
        if call.ways or not _says_what_it_does(member.kind):
            return True
        others = [other for other in self._alike(member.kind) if other is not call]
        if any(other.ways for other in others) or not any(other.schedule.captures for other in others):
            return True
        member.waited += 1
        return member.waited > MOST_WAITED

    def refused(self, module: nn.Module, call: RootCall, is_of_parts: bool) -> None:
        """There will be no graph of this one, nor with ``is_of_parts`` of its parts."""
        member = self.members[call]
        if _says_what_it_does(member.kind):
            self.hopeless[member.kind] = is_of_parts
            for other in self._alike(member.kind):
                if other.schedule.captures == 0:
                    other.schedule.stop()
                    other.is_of_parts = is_of_parts
        if not is_of_parts:
            self._try_parts(module, member.name)

    def stood_aside(self, module: nn.Module, call: RootCall) -> None:
        """A call that a graph may not answer. What has hooks for so long will keep them; its graph may come all the same."""
        if module.training or torch.is_grad_enabled() or gates.module_is_plain(module):
            return
        member = self.members[call]
        member.aside += 1
        if member.aside == MOST_ASIDE:
            self._try_parts(module, member.name)

    def _try_parts(self, module: nn.Module, name: str) -> None:
        try:
            self._notice_parts(module, name)
        except Exception as error:  # noqa: BLE001 - a failure of ours: the layers have their pieces all the same
            log.note(f"{name}.graph: its parts", False, f"slipstream failed: {error!r}")

    def _alike(self, kind: type[nn.Module]) -> list[RootCall]:
        return [call for call, member in list(self.members.items()) if member.kind is kind]

    def _notice_parts(self, module: nn.Module, name: str) -> None:
        """The modules that it calls, those in lists and dictionaries among them."""
        for attribute, part in module.named_children():
            path = f"{name}.{attribute}"
            if isinstance(part, (nn.ModuleList, nn.ModuleDict)):
                self._notice_parts(part, path)
            else:
                self.notice(part, path)


def _says_what_it_does(kind: type[nn.Module]) -> bool:
    """Whether what one module of this class is, others are likely to be; a row of modules may be anything."""
    return kind.forward is not nn.Sequential.forward


def root_call(root: nn.Module) -> RootCall | None:
    """What answers for this module, if a `RootCall` does."""
    found = root.__dict__.get(SLOT)
    return found if isinstance(found, RootCall) else None


def let_go() -> None:
    """Undo every `notice`."""
    for root in list(_answering):
        if isinstance(root.__dict__.get(SLOT), RootCall):
            del root.__dict__[SLOT]
    if SLOT in _passed_over:
        _passed_over.remove(SLOT)
    _answering.clear()

# SPDX-License-Identifier: Apache-2.0
"""What each piece did for the script: calls served, seconds spent, bytes held. The report's figures; nothing is decided here.

Calls are always counted (an addition). Seconds are measured only where somebody will read them, and then on a
few calls that stand for the ones between. Threads that meet in one piece may lose a count.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import nn

from slipstream import env

NEVER = -1

EACH = 8
"""The first calls are all timed: many scripts make no more."""

EVERY = 17
"""Afterwards one in so many: a prime, because calls of a model come in periods of layers and steps."""


class Account:
    """Of one piece. ``tier`` is leaf, chain, graph or function; ``layer`` the class of the script's own module."""

    __slots__ = (
        "calls", "covered", "decided", "layer", "next_timed", "packed_bytes", "seconds", "tier", "weight_bytes",
    )  # fmt: skip

    def __init__(self, layer: str = "", tier: str = "leaf") -> None:
        self.layer = layer
        self.tier = tier
        self.calls = 0
        self.seconds = 0.0
        self.covered = 0
        self.next_timed = 1 if _state["timing"] else NEVER
        self.packed_bytes = 0
        self.weight_bytes = 0
        self.decided = False

    def as_dict(self) -> dict[str, object]:
        """``seconds`` is None where no call was timed."""
        scaled = self.seconds * self.calls / self.covered if self.covered else None
        return {
            "layer": self.layer,
            "tier": self.tier,
            "calls": self.calls,
            "seconds": None if scaled is None else round(scaled, 6),
            "packed_mb": round(self.packed_bytes / 1e6, 6),
            "weights_mb": round(self.weight_bytes / 1e6, 6),
        }


_state: dict[str, Any] = {"timing": False, "since": time.perf_counter()}
_book: dict[str, Account] = {}
_models: dict[str, dict[str, Any]] = {}


def install(settings: Any) -> None:
    """Begin. ``settings`` is autopatch's Settings; calls are timed for a report, or for somebody who looks on."""
    _state["timing"] = settings.verbose or env.read(env.REPORT_DIR) is not None
    _state["since"] = time.perf_counter()


def uninstall() -> None:
    """Forget everything."""
    _state["timing"] = False
    _book.clear()
    _models.clear()


def enter(what: str, account: Account) -> None:
    """Let the report find an account by its decision's ``what``."""
    account.decided = True
    _book[what] = account


def of_function(what: str, function: str) -> Account:
    """The one account of all sizes that a report has one line for."""
    account = _book.get(what) or Account(function, "function")
    enter(what, account)
    return account


def enter_model(label: str, root: nn.Module) -> None:
    """Note what a model consists of, for the report: layers by class, bytes of parameters."""
    if _state["timing"]:
        layers = Counter(type(module).__name__ for module in root.modules() if not module._modules)
        _models[label] = {
            "layers": dict(layers.most_common()),
            "parameters_mb": round(sum(parameter.nbytes for parameter in root.parameters()) / 1e6, 6),
        }


def timed(account: Account, run: Callable[..., Any], *arguments: Any) -> Any:
    """Run, and let the time stand for every call since the last one that was timed."""
    start = time.perf_counter()
    y = run(*arguments)
    account.seconds += (time.perf_counter() - start) * (account.calls - account.covered)
    account.covered = account.calls
    account.next_timed = account.calls + (1 if account.calls < EACH else EVERY)
    return y


def contents() -> dict[str, Any]:
    """For the process's report: accounts by their decision's ``what``, models, seconds since the engine came."""
    return {
        "accounts": {what: account.as_dict() for what, account in tuple(_book.items())},
        "models": dict(_models),
        "seconds": round(time.perf_counter() - _state["since"], 3),
        "peak_mb": round(_peak_mb(), 1),
    }


def _peak_mb() -> float:
    """Most memory that the process has had resident."""
    import resource

    scale = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale

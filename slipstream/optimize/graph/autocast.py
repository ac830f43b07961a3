# SPDX-License-Identifier: Apache-2.0
"""Autocast regions within a forward: a graph enters and leaves them by calls, and an error in between must not leave one open.

What is captured inside the script's own region is another graph: dynamo's guards tell the states apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.amp import autocast_mode

_enter: Callable[..., Any] = autocast_mode._enter_autocast
_exit: Callable[[Any], None] = autocast_mode._exit_autocast


class _Open(threading.local):
    """The regions that this thread is in by way of a graph, outermost first."""

    def __init__(self) -> None:
        self.regions: list[Any] = []


_open = _Open()


def enter_region(*arguments: Any) -> Any:
    """As the function that dynamo writes into graphs, and remembered."""
    region = _enter(*arguments)
    _open.regions.append(region)
    return region


def leave_region(region: Any) -> None:
    _open.regions.remove(region)
    _exit(region)


enter_region.__module__ = leave_region.__module__ = "slipstream"


def remember_regions(graph: fx.Graph) -> bool:
    """Let a graph use the two functions above, in place; returns whether it has any regions."""
    found = False
    for node in graph.nodes:
        if node.target is _enter:
            node.target, found = enter_region, True
        elif node.target is _exit:
            node.target = leave_region
    return found


@contextmanager
def left_on_error() -> Iterator[None]:
    """Leave the regions that were entered meanwhile, where an error kept the graph from doing so."""
    depth = len(_open.regions)
    try:
        yield
    except BaseException:
        while len(_open.regions) > depth:
            leave_region(_open.regions[-1])
        raise


@contextmanager
def as_in(state: tuple[bool, bool, torch.dtype, bool]) -> Iterator[None]:
    """Inference mode and autocast as in another thread, which `state_here` told there; gradients are not recorded."""
    inference, enabled, dtype, cache = state
    with (
        torch.inference_mode(inference),
        torch.no_grad(),
        torch.autocast("cpu", dtype, enabled=enabled, cache_enabled=cache),
    ):
        yield


def state_here() -> tuple[bool, bool, torch.dtype, bool]:
    """This thread's: whether it is in inference mode, in autocast, with which dtype, and whether casts are cached."""
    region = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()
    return torch.is_inference_mode_enabled(), *region

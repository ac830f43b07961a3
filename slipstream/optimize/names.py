# SPDX-License-Identifier: Apache-2.0
"""What to call a module in the report, and whether the user's patterns want it.

A leaf does not know where it hangs. At its first call the stack is walked up to the outermost module of those being
called that it is a part of, and the path is looked up there: "BertModel.encoder.layer.0.attention.self.query".
"""

from __future__ import annotations

import fnmatch
import functools
import re
import sys
import weakref
from collections import Counter
from types import FrameType

from torch import nn

from slipstream import env
from slipstream.optimize import accounts

_CALL = nn.Module._wrapped_call_impl.__code__

_paths: dict[int, tuple[weakref.ref[nn.Module], str, dict[int, str]]] = {}
_roots: Counter[str] = Counter()
_nameless: Counter[str] = Counter()


def of(module: nn.Module) -> str:
    """The module's path below the outermost module of this call, or its class and a number."""
    root = outermost(module)
    known = _paths.get(id(root))
    if known is None or known[0]() is not root or id(module) not in known[2]:
        known = _index(root, None if known is None or known[0]() is not root else known[1])
    path = known[2].get(id(module))
    if path is None:
        kind = type(module).__name__
        _nameless[kind] += 1
        return f"{kind}#{_nameless[kind]}"
    return f"{known[1]}.{path}" if path else known[1]


def are_wanted(name: str) -> bool:
    """Whether SLIPSTREAM_ONLY and SLIPSTREAM_SKIP let this name through."""
    both = name, name.partition(".")[2]
    only, skip = env.read(env.ONLY), env.read(env.SKIP)
    return (only is None or _matches(only, both)) and not (skip is not None and _matches(skip, both))


def whole_is_wanted(root: nn.Module, name: str) -> bool:
    """Whether a graph of this model may answer: it is called ``name``.graph, and contains what is to be skipped as well."""
    return are_wanted(f"{name}.graph") and not contains_skipped(root, name)


def contains_skipped(root: nn.Module, name: str) -> bool:
    """Whether something within is to be left to torch."""
    skip = env.read(env.SKIP)
    inside = [f"{name}.{path}" for path, _ in root.named_modules() if path] if skip is not None else []
    return any(_matches(skip or "", (whole, whole.partition(".")[2])) for whole in inside)


def _matches(patterns: str, names: tuple[str, ...]) -> bool:
    whole, compiled = _read_patterns(patterns)
    return any(name in whole or any(pattern.match(name) for pattern in compiled) for name in names)


@functools.lru_cache(4)
def _read_patterns(patterns: str) -> tuple[frozenset[str], tuple[re.Pattern[str], ...]]:
    """Names that stand for themselves, which a bisection gives by the thousand, and true patterns."""
    texts = [text.strip() for text in patterns.split(",") if text.strip()]
    whole = frozenset(text for text in texts if not set(text) & set("*?["))
    return whole, tuple(re.compile(fnmatch.translate(text)) for text in texts if text not in whole)


def outermost(module: nn.Module) -> nn.Module:
    """The outermost module that is being called on this thread, of those that ``module`` is a part of.

    Some call a model that they hold in a list or in an object of another kind: then it is the model. The outermost of all where
    none has this module, which is the result where none is being called.
    """
    calls = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CALL:
            calls.append(frame)
        frame = frame.f_back
    # Read from these frames only: their arguments live as long as the calls anyhow, others' might be kept by it.
    for call in reversed(calls):
        root: nn.Module = call.f_locals["self"]
        if _has_part(root, module):
            return root
    return calls[-1].f_locals["self"] if calls else module  # type: ignore[no-any-return]


def _has_part(root: nn.Module, module: nn.Module) -> bool:
    known = _paths.get(id(root))
    if known is not None and known[0]() is root and id(module) in known[2]:
        return True
    return any(part is module for part in root.modules())


def _index(root: nn.Module, label: str | None) -> tuple[weakref.ref[nn.Module], str, dict[int, str]]:
    kind = str(getattr(root, "original_name", "")) or type(root).__name__  # of what a ScriptModule was made from
    if label is None:
        _roots[kind] += 1
        label = kind if _roots[kind] == 1 else f"{kind}#{_roots[kind]}"
        weakref.finalize(root, _paths.pop, id(root), None).atexit = False
    entry = weakref.ref(root), label, {id(module): path for path, module in root.named_modules()}
    _paths[id(root)] = entry
    accounts.enter_model(label, root)
    return entry

# SPDX-License-Identifier: Apache-2.0
"""Messages of a forward that nobody would hear: a logger's below its level, warnings that are ignored or were shown before.

A graph has no place for them, and dynamo refuses a forward that logs or warns. What is not heard need not be said: the
capture holds for as long as nobody would hear it.
"""

from __future__ import annotations

import functools
import inspect
import logging
import warnings
from typing import Any

LEVELS = {
    "debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "warn": logging.WARNING,
    "error": logging.ERROR, "exception": logging.ERROR, "critical": logging.CRITICAL, "fatal": logging.CRITICAL,
}  # fmt: skip
"""Methods of a logger, and functions of `logging`, by what they log at."""


class Unheard:
    """What one capture leaves out."""

    def __init__(self) -> None:
        self._levels: dict[tuple[logging.Logger, int], bool] = {}
        self._filters: list[Any] | None = None

    def holds(self) -> bool:
        """Whether all that was left out would still not be heard, and each logger has the levels on that it had."""
        if self._filters is not None and warnings.filters != self._filters:
            return False
        return all(logger.isEnabledFor(level) is heard for (logger, level), heard in self._levels.items())

    def is_empty(self) -> bool:
        return not self._levels and self._filters is None

    @functools.cached_property
    def functions(self) -> set[Any]:
        """Functions whose calls dynamo is to hand over; of `logging`'s own, those that say nothing at the root's level."""
        if _kind("IgnoredFunctionVariable") is None:
            return set()  # a dynamo that would swallow all calls
        root = logging.getLogger()
        names = [name for name, level in LEVELS.items() if root.handlers and not root.isEnabledFor(level)]
        return {warnings.warn, *(getattr(logging, name) for name in names if hasattr(logging, name))}

    def instead(self) -> list[tuple[Any, str, Any]]:
        """Whose attribute of which name is what during the capture."""
        logger, ignored = _kind("LoggingLoggerVariable"), _kind("IgnoredFunctionVariable")
        log, ignore = getattr(logger, "call_method", None), getattr(ignored, "call_function", None)

        def call_method(variable: Any, tx: Any, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
            answer = self._of_logger(variable.value, name, args, kwargs)
            if answer is None:
                assert log is not None  # it stands in its place
                return log(variable, tx, name, args, kwargs)
            _is_the_same(variable)
            return _constant(answer[0])

        def call_function(variable: Any, tx: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
            if variable.value is warnings.warn:
                if _is_heard(tx, args, kwargs):
                    from torch._dynamo.exc import unimplemented

                    unimplemented(gb_type="a warning that is shown", context="", explanation="warnings.warn", hints=[])
                self._filters = list(warnings.filters)
            elif variable.value in self.functions:
                self._levels[logging.getLogger(), LEVELS[variable.value.__name__]] = False
            assert ignore is not None  # it stands in its place
            return ignore(variable, tx, args, kwargs)

        replaced = [(logger, "call_method", call_method), (ignored, "call_function", call_function)]
        return [(kind, name, ours) for kind, name, ours in replaced if kind is not None]

    def _of_logger(self, logger: logging.Logger, name: str, args: list[Any], kwargs: dict[str, Any]) -> tuple[Any] | None:
        """What the method returns, where it says nothing; None where it is heard, or not known here."""
        method = inspect.getattr_static(logger, name, None)
        if method is None or method is not getattr(logging.Logger, name, None):
            return None
        if isinstance(method, functools._lru_cache_wrapper):
            return _said_once(logger, name, args, kwargs)
        level = LEVELS.get(name)
        if level is None and name in ("log", "isEnabledFor") and args and args[0].is_python_constant():
            level = args[0].as_python_constant()
        if not isinstance(level, int):
            return None
        heard = logger.isEnabledFor(level)
        if heard and name != "isEnabledFor":
            return None
        self._levels[logger, level] = heard
        return (heard,) if name == "isEnabledFor" else (None,)


def _kind(name: str) -> Any:
    """One of dynamo's classes; None in a version that does not have it."""
    from torch._dynamo.variables import misc

    return getattr(misc, name, None)


def _said_once(logger: logging.Logger, name: str, args: list[Any], kwargs: dict[str, Any]) -> tuple[Any] | None:
    """transformers' `warning_once`: the calls before the capture have said it, and else it is said now."""
    if not all(value.is_python_constant() for value in (*args, *kwargs.values())):
        return None
    words = [value.as_python_constant() for value in args]
    return (getattr(logger, name)(*words, **{key: value.as_python_constant() for key, value in kwargs.items()}),)


def _is_the_same(variable: Any) -> None:
    """Guard that it is that very logger."""
    from torch._dynamo.guards import GuardBuilder, install_guard

    if variable.source is not None:
        install_guard(variable.source.make_guard(GuardBuilder.ID_MATCH))


def _constant(value: Any) -> Any:
    from torch._dynamo.variables import ConstantVariable

    return ConstantVariable.create(value)


def _is_heard(tx: Any, args: list[Any], kwargs: dict[str, Any]) -> bool:
    """Whether `warnings.warn` would show this, or raise it: as that function decides, its registry being of where it points.

    What is shown once for each place is not heard from the second time on. Filters that were changed and changed back make
    Python show it again; that is not followed.
    """
    given = dict(zip(("message", "category", "stacklevel", "source"), args, strict=False)) | kwargs
    if not all(value.is_python_constant() or hasattr(value, "value") for value in given.values()):
        return True
    known = {name: value.as_python_constant() if value.is_python_constant() else value.value for name, value in given.items()}
    text, category, stacklevel = known.pop("message", None), known.pop("category", None), known.pop("stacklevel", 1)
    frame = tx
    for _ in range(stacklevel - 1):
        frame = getattr(frame, "parent", None)
    category = category or UserWarning
    is_kind = isinstance(category, type) and issubclass(category, Warning)
    if known or frame is None or not isinstance(text, str) or not is_kind:
        return True
    registry, line = frame.f_globals.get("__warningregistry__") or {}, frame.lineno
    if registry.get((text, category, line)):
        return False
    action = _action(text, category, str(frame.f_globals.get("__name__")), line)
    if action == "module":
        return not registry.get((text, category, 0))
    if action == "once":
        return not warnings.onceregistry.get((text, category))  # type: ignore[attr-defined]
    return action != "ignore"


def _action(text: str, category: type[Warning], module: str, line: int) -> str:
    """Of the first filter that fits."""
    for action, message, kind, where, number in warnings.filters:
        fits = (message is None or message.match(text)) and (where is None or where.match(module))  # type: ignore[attr-defined]
        if fits and issubclass(category, kind) and number in (0, line):
            return action
    return warnings.defaultaction  # type: ignore[attr-defined, no-any-return]

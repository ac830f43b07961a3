# SPDX-License-Identifier: Apache-2.0
"""Every exception that Slipstream raises on purpose.

    SlipstreamError
    ├── UsageError          the caller gave something that is not allowed (also a ValueError); CLI: exit 2
    │   └── PlanError       a valid request that this machine, or what is allowed of it, cannot hold
    ├── NativeUnavailable   the native extension was demanded and is not there (also a RuntimeError)
    └── MissingDependency   an optional package is needed for what was asked (also an ImportError)
"""

from __future__ import annotations

from collections.abc import Iterable


class SlipstreamError(Exception):
    """Base of all errors of this package."""


class UsageError(SlipstreamError, ValueError):
    """An argument that is not allowed: one line with its name, its value, what is allowed, and the remedy."""

    @classmethod
    def of(cls, argument: str, value: object, allowed: str | Iterable[object], remedy: str = "") -> UsageError:
        """Compose the line, for example ``--dtype int4: not one of float32, bfloat16``."""
        choices = allowed if isinstance(allowed, str) else "not one of " + ", ".join(map(str, allowed))
        tail = f"; {remedy}" if remedy else ""
        return cls(f"{argument} {value}: {choices}{tail}")


class PlanError(UsageError):
    """A request for cores, nodes or memory that cannot be met here."""


class NativeUnavailable(SlipstreamError, RuntimeError):
    """A native kernel was demanded by name, and the extension did not load; the message says why."""


class MissingDependency(SlipstreamError, ImportError):
    """An optional package is missing; the message ends with the install line."""

    @classmethod
    def of(cls, package: str, needed_for: str, extra: str) -> MissingDependency:
        return cls(f"{needed_for} needs {package}: pip install 'slipstream[{extra}]'")

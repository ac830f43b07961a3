# SPDX-License-Identifier: Apache-2.0
"""Where results of measurements are kept from one process to the next: SLIPSTREAM_CACHE, or ~/.cache/slipstream."""

from __future__ import annotations

import os

from slipstream import env


def folder() -> str | None:
    """The folder's full path, whether or not it is there; None where nothing is to be kept."""
    if not env.is_on(env.CACHE, default=True):
        return None
    path = env.read(env.CACHE) or os.path.expanduser("~/.cache/slipstream")
    return None if path.startswith("~") else os.path.abspath(path)  # a user without a home


def why_none() -> str:
    """A sentence for where `folder` is None."""
    if not env.is_on(env.CACHE, default=True):
        return f"{env.CACHE} switches it off"
    return f"this user has no home folder: set {env.CACHE}"

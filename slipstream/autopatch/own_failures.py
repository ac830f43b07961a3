# SPDX-License-Identifier: Apache-2.0
"""Where the engine's own failures go: into the decision list, and to the place that SLIPSTREAM_LOG names."""

from __future__ import annotations

import sys
import traceback

from slipstream import env
from slipstream.decision import log


def note(what: str, error: BaseException) -> None:
    """Record that a piece of ours failed and that the original ran; raises nothing."""
    log.note(what, False, f"slipstream failed and the original runs: {type(error).__name__}: {error}")
    place = env.read(env.LOG)
    if place is None:
        return
    text = "slipstream: " + "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        if place == "stderr":
            sys.stderr.write(text)
        else:
            with open(place, "a", encoding="utf-8") as file:
                file.write(text)
    except OSError:
        return  # a log that cannot be written must not stop the script

# SPDX-License-Identifier: Apache-2.0
"""The two ends of the injection: the launcher writes a child's environment, the child reads it and acts once.

Only what a process without torch needs is imported at the top: every Python process under the launcher pays
for it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from slipstream import env

if TYPE_CHECKING:
    from slipstream.autopatch.settings import Settings

ON_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "on_path")
"""The folder that goes on PYTHONPATH. It holds one file, because everything in it becomes importable."""

_state: dict[str, str | None] = {"settings": None}


def child_environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """A new, complete environment in which every Python process activates the engine.

    ``on_path`` comes first on PYTHONPATH and only once. An empty component means the working directory to
    Python; where the user had one it is spelled ".", and none of ours appears.
    """
    child = dict(environ)
    mine = child.get("PYTHONPATH")
    others = [entry or os.curdir for entry in mine.split(os.pathsep) if entry != ON_PATH] if mine else []
    child["PYTHONPATH"] = os.pathsep.join([ON_PATH, *others])
    message = {"settings": json.loads(settings.to_json()), "interpreter": _interpreter()}
    child[env.AUTOPATCH] = json.dumps(message, sort_keys=True)
    return child


def activate() -> bool:
    """Called by sitecustomize: wait for the import of torch, if this process is one that was meant.

    True when the engine is armed. Imports next to nothing: the rest comes when torch comes.
    """
    text = env.read(env.AUTOPATCH)
    if text is None or _state["settings"] is not None:
        return False
    message = json.loads(text)
    if not message["settings"]["children"]:
        env.remove(env.AUTOPATCH)
    if env.is_on(env.DISABLE) or message["interpreter"] != _interpreter():
        return False
    from slipstream.autopatch import import_hook, old_names

    _state["settings"] = json.dumps(message["settings"])
    import_hook.after("torch", "slipstream.autopatch.patches:apply_activated")
    old_names.watch()
    return True


def activated_settings() -> Settings | None:
    """The settings with which this process was activated, None where it was not."""
    from slipstream.autopatch.settings import Settings

    text = _state["settings"]
    return None if text is None else Settings.from_json(text)


def _interpreter() -> list[str]:
    """What must be equal for our files to fit: one prefix has one torch, one version one ABI."""
    return [sys.prefix, "{}.{}".format(*sys.version_info[:2])]

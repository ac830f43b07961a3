# SPDX-License-Identifier: Apache-2.0
"""What a process says of itself when it ends: its decisions, as one JSON file in the folder of the report.

A forked child that leaves through `os._exit` cannot write; one that multiprocessing started can, through
multiprocessing's own finalizers. Processes of a data loader do nothing that is worth a report.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from slipstream import env
from slipstream.autopatch import own_failures
from slipstream.decision import Decision, log

if TYPE_CHECKING:
    from slipstream.autopatch.settings import Settings

_state: dict[str, Any] = {"verbose": False, "inspected": False, "armed": False}
_stderr = sys.stderr
"""Whatever the script puts in its place later is the script's."""


def write_at_exit(settings: Settings) -> None:
    """Arm the report of this process and of the children that it forks."""
    _state["verbose"], _state["inspected"] = settings.verbose, settings.decides_only
    log.listener = _say if settings.verbose else None
    if _state["armed"]:
        return
    _state["armed"] = True
    atexit.register(finish)
    os.register_at_fork(after_in_child=_after_fork)


def contents() -> dict[str, object]:
    """The report as plain values."""
    decisions = [decision.as_dict() for decision in log]
    return {
        "pid": os.getpid(),
        "argv": list(getattr(sys, "argv", [])),
        "instance": _instance(),
        "inspected": _state["inspected"],
        "decisions": decisions,
        "summary": summary(),
        **_accounts(),
    }


def summary() -> dict[str, object]:
    """Counts and sums over the decisions, and what set-up took."""
    taken = sum(decision.taken for decision in log)
    found: dict[str, object] = {"taken": taken, "not_taken": len(log) - taken}
    options = sys.modules.get("slipstream.optimize.options")
    if options is not None:
        found["setup_s"] = round(options.set_up.spent_s, 4)
        found["packed_mb"] = round(options.set_up.most_packed_bytes / 1e6, 3)
    return found


def finish() -> None:
    """Write the file, if a folder was named; print to stderr, if the run is verbose."""
    try:
        folder = env.read(env.REPORT_DIR)
        if folder is not None:
            _write(folder)
        if _state["verbose"]:
            figures = ", ".join(f"{name} {value}" for name, value in summary().items())
            _stderr.write(f"slipstream: process {os.getpid()} ends: {figures}\n")
    except Exception as error:  # noqa: BLE001 - the script is over; its exit code must stay its own
        own_failures.note("report", error)


def as_line(decision: Decision) -> str:
    """A decision for a person."""
    figures = ", ".join(f"{name} {value:.3g}" for name, value in decision.figures.items())
    mark = "+" if decision.taken else "-"
    return f"slipstream: {mark} {decision.what}: {decision.reason}" + (f" ({figures})" if figures else "") + "\n"


def _say(decision: Decision) -> None:
    """As it is made, amid the script's own call: nothing may come of it."""
    with suppress(Exception):
        _stderr.write(as_line(decision))


def _accounts() -> dict[str, object]:
    """What the pieces did, once there are any; by `sys.modules`, because this part imports none above it."""
    accounts = sys.modules.get("slipstream.optimize.accounts")
    return {} if accounts is None else dict(accounts.contents())


def _write(folder: str) -> None:
    """Under another name first: whoever lists the folder sees whole files only."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{os.getpid()}.json")
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(contents(), file)
    os.replace(path + ".part", path)


def _instance() -> object:
    plan = env.read(env.PLAN)
    return None if plan is None else json.loads(plan).get("index")


def _after_fork() -> None:
    """If multiprocessing made the child, its finalizers call us. It goes on from what its parent decided."""
    finalizers = sys.modules.get("multiprocessing.util")
    if finalizers is not None:
        finalizers.register_after_fork(log, _arm_finalizer)


def _arm_finalizer(_: object) -> None:
    finalizers = sys.modules["multiprocessing.util"]
    finalizers.Finalize(None, _finish_unless_data_worker, exitpriority=0)


def _finish_unless_data_worker() -> None:
    data = sys.modules.get("torch.utils.data")
    if data is None or data.get_worker_info() is None:
        finish()

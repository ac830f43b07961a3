# SPDX-License-Identifier: Apache-2.0
"""Who runs in the zoo: name -> interpreter, environment and way of preparing. A table and nothing else."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass

BASE = "eager-float32"
"""What every speed-up is over."""

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Contestant:
    """``prepare`` names a function of `benchmarks.contest.preparations`; ``engine`` an interpreter; ``codeless`` is ours.

    ``warm_up_s``: seconds of calls between set-up and timing. What others compile is as fast at the second call as ever; ours
    tries both ways on the script's own calls, and captures its graphs beside them. It is told not to wait with that until it
    can be expected to pay: a contest is about the steady state. ``warm_up_calls`` is the least number
    of them, for models whose call takes a second.
    """

    name: str
    prepare: str
    dtype: str
    engine: str = "own"
    codeless: str | None = None
    warm_up_s: float = 0.5
    warm_up_calls: int = 1


def _pair(name: str, prepare: str, engine: str = "own") -> list[Contestant]:
    return [Contestant(f"{name}-{dtype}", prepare, dtype, engine) for dtype in DTYPES]


ALL = {
    contestant.name: contestant
    for contestant in (
        *_pair("eager", "eager"),
        Contestant("autocast-bfloat16", "autocast", "bfloat16"),
        *_pair("compile", "compiled"),
        *_pair("ipex", "ipex", "ipex"),
        *_pair("openvino", "openvino", "openvino"),
        # to its script, ours is eager float32: what differs is the command in front of it
        *(Contestant(f"ours-{dtype}", "eager", "float32", codeless=dtype, warm_up_s=20, warm_up_calls=40) for dtype in DTYPES),
    )
}

DEFAULT = tuple(name for name in ALL if name != "autocast-bfloat16")


def environment(contestant: Contestant, environ: Mapping[str, str], threads: int) -> dict[str, str]:
    """What its process gets: nothing of ours, unless it is ours."""
    foreign = ("PYTHONPATH", "LD_PRELOAD") if contestant.engine != "own" else ()
    plain = {
        name: value
        for name, value in environ.items()
        if name not in foreign and not (name.startswith("SLIPSTREAM_") and contestant.codeless is None)
    }
    return plain | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}


def usable_threads() -> int:
    """One thread for each CPU that this process may use."""
    return len(os.sched_getaffinity(0))


def ipexrun() -> list[str]:
    """The command of this interpreter's environment, or what it would run."""
    installed = pathlib.Path(sys.executable).with_name("ipexrun")
    start = "import sys; from slipstream.launcher.cli import ipexrun; sys.exit(ipexrun())"
    return [str(installed)] if installed.exists() else [sys.executable, "-c", start]


def command(contestant: Contestant, interpreters: Mapping[str, str], threads: int) -> list[str]:
    """What takes the worker as ``-m module``: an interpreter, or for ours what a user types before the script."""
    if contestant.codeless is not None:
        one = ["--ninstances", "1", "--ncores-per-instance", str(threads)]
        return [*ipexrun(), "--auto_ipex", "--early-graphs", "--dtype", contestant.codeless, *one]
    return [sys.executable if contestant.engine == "own" else interpreters[contestant.engine]]

# SPDX-License-Identifier: Apache-2.0
"""numactl and taskset, for those who ask for them by name; the launcher itself binds by system calls."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from slipstream.launcher.plan import Instance
from slipstream.runtime.cpu_list import format_cpu_list

POLICY_FLAGS = {
    "bind": "--membind={nodes}",
    "preferred": "--preferred={nodes}",
    "interleave": "--interleave={nodes}",
    "local": "--localalloc",
}


def external_binder(asked: str, instances: Sequence[Instance]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(words before the program, warnings). No words: nobody binds, or the launcher does."""
    if asked == "taskset":
        path = shutil.which("taskset")
        if path is None:
            return (), _absent("taskset")
        return (path, "-c", "{cpus}"), ()
    if asked == "numactl":
        path = shutil.which("numactl")
        if path is None:
            return (), _absent("numactl")
        memory = POLICY_FLAGS.get(instances[0].memory_policy)
        cpus = (path, "--physcpubind={cpus}")
        if memory is None:
            return cpus, ()
        refusal = _probe([path, memory.format(nodes=format_cpu_list(instances[0].memory_nodes)), "true"])
        if refusal:
            return cpus, (f"--multi-task-manager numactl: no memory policy: {refusal}",)
        return (*cpus, memory), ()
    return (), ()


def _absent(name: str) -> tuple[str, ...]:
    return (f"--multi-task-manager {name}: no such program on PATH; bound by system calls instead",)


def _probe(words: list[str]) -> str:
    """Why numactl cannot do it here (a container without CAP_SYS_NICE, say); empty where it can."""
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    return "" if ended.returncode == 0 else " ".join(ended.stderr.split()) or f"exit code {ended.returncode}"

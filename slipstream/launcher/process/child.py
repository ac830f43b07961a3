# SPDX-License-Identifier: Apache-2.0
"""One instance's process: its own group, bound to its CPUs and memory before exec, and dying with the launcher."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from slipstream.decision import Decision
from slipstream.errors import UsageError
from slipstream.launcher.plan import Instance
from slipstream.runtime.cpu_list import format_cpu_list

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Streams:
    """File descriptors or subprocess constants for the child; None passes the launcher's own on."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None


def start(
    instance: Instance,
    *,
    environ: Mapping[str, str],
    streams: Streams,
    bind: bool,
    foreground: Callable[[], None] | None = None,
) -> tuple[subprocess.Popen[bytes], list[Decision]]:
    """The running process and what binding it came to. Raises UsageError where the program cannot be executed."""
    reader, writer = os.pipe()
    binding = _binding(instance) if bind else []
    launcher = os.getpid()
    prctl = ctypes.CDLL(None).prctl

    def before_exec() -> None:
        os.setpgid(0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != launcher:  # it died before the line above: no signal will come any more
            os._exit(128 + signal.SIGKILL)
        if foreground is not None:
            foreground()
        decisions = [step() for step in binding]
        os.write(writer, json.dumps([decision.as_dict() for decision in decisions]).encode())

    try:
        process = subprocess.Popen(
            instance.argv,
            env={**environ, **instance.environment},
            stdin=streams.stdin,
            stdout=streams.stdout,
            stderr=streams.stderr,
            preexec_fn=before_exec,  # noqa: PLW1509 - the launcher has one thread
        )
    except OSError as error:
        os.close(reader)
        raise UsageError(f"PROGRAM {instance.argv[0]}: {error.strerror or error}") from error
    finally:
        os.close(writer)
    return process, _read_decisions(reader)


def _binding(instance: Instance) -> list[Callable[[], Decision]]:
    steps: list[Callable[[], Decision]] = [lambda: bind_cpus(instance)]
    if instance.memory_policy != "none":
        from slipstream.runtime import memory_policy

        steps.append(lambda: memory_policy.apply(instance.memory_policy, instance.memory_nodes))
    return steps


def bind_cpus(instance: Instance) -> Decision:
    """Confine the calling process to the instance's CPUs; a refusal is a reason, not an error."""
    cpus = format_cpu_list(instance.cpus)
    what = f"instance {instance.index}: CPUs {cpus}"
    try:
        os.sched_setaffinity(0, instance.cpus)
    except OSError as error:
        return Decision(what, False, f"the kernel refused the CPUs: {error.strerror}; it runs where the launcher may")
    held = os.sched_getaffinity(0)
    if held != set(instance.cpus):
        return Decision(what, False, f"the kernel granted {format_cpu_list(held)} only: the rest is outside the cpuset")
    return Decision(what, True, "bound by system call before exec")


def _read_decisions(reader: int) -> list[Decision]:
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    return [Decision(**fields) for fields in json.loads(content)] if content else []

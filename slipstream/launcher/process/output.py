# SPDX-License-Identifier: Apache-2.0
"""Where the instances' output goes: the console with a prefix, a log file each, and whoever listens to lines.

A line is written in one piece and never mixed with another. Log files get every byte as it came.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import BinaryIO, Protocol

from slipstream.errors import UsageError
from slipstream.launcher.plan import Instance
from slipstream.runtime.cpu_list import format_cpu_list

STDOUT, STDERR = 1, 2
LINE_LIMIT = 1 << 20
"""Bytes without a line's end that are held back; a program that prints none still gets its output through."""

Listener = Callable[[int, str], None]
"""Called with an instance's index and each line that it printed."""


class Console(Protocol):
    """What shows the output: ``write`` gets bytes as they came, ``end`` says that a stream has ended."""

    def write(self, index: int, stream: int, data: bytes) -> None: ...

    def end(self, index: int, stream: int) -> None: ...


class Lines:
    """Bytes in, whole lines out (without their end)."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_LIMIT:
            lines.append(self._rest)
            self._rest = b""
        return lines

    def end(self) -> list[bytes]:
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


class PlainConsole:
    """One instance: its bytes, unchanged."""

    def write(self, index: int, stream: int, data: bytes) -> None:
        write_all(stream, data)

    def end(self, index: int, stream: int) -> None:
        pass


class PrefixConsole:
    """Several instances: whole lines, each with `[index] ` before it."""

    def __init__(self, write: Callable[[int, bytes], None] | None = None) -> None:
        self._lines: dict[tuple[int, int], Lines] = {}
        self._write = write or write_all

    def write(self, index: int, stream: int, data: bytes) -> None:
        for line in self._lines.setdefault((index, stream), Lines()).feed(data):
            self._show(index, stream, line)

    def end(self, index: int, stream: int) -> None:
        for line in self._lines.pop((index, stream), Lines()).end():
            self._show(index, stream, line)

    def _show(self, index: int, stream: int, line: bytes) -> None:
        self._write(stream, b"[%d] %s\n" % (index, last_overwrite(line)))


class Quiet:
    """Nothing reaches the console."""

    def write(self, index: int, stream: int, data: bytes) -> None:
        pass

    def end(self, index: int, stream: int) -> None:
        pass


class Router:
    """Takes what an instance wrote to its log, to the listeners and to the console."""

    def __init__(self, console: Console, *, logs: LogFiles | None, listeners: Sequence[Listener]) -> None:
        self.console = console
        self._logs = logs
        self._listeners = listeners
        self._lines: dict[tuple[int, int], Lines] = {}

    def write(self, index: int, stream: int, data: bytes) -> None:
        if self._logs is not None:
            self._logs.write(index, data)
        if self._listeners:
            self._tell(index, self._lines.setdefault((index, stream), Lines()).feed(data))
        try:
            self.console.write(index, stream, data)
        except BrokenPipeError:
            if self._logs is None:
                raise
            self.console = Quiet()  # the reader of the console left; the logs go on

    def end(self, index: int, stream: int) -> None:
        self._tell(index, self._lines.pop((index, stream), Lines()).end())
        with suppress(BrokenPipeError):
            self.console.end(index, stream)

    def _tell(self, index: int, lines: list[bytes]) -> None:
        for line in lines:
            text = last_overwrite(line).decode(errors="replace")
            for listener in self._listeners:
                listener(index, text)


class LogFiles:
    """``PREFIX_TIME_instance_I_cores_A-B_C-D.log`` for each instance, ``PREFIX_TIME_instances.log`` for the launcher."""

    def __init__(self, folder: str, *, prefix: str, instances: Sequence[Instance]) -> None:
        stem = f"{prefix}_{time.strftime('%Y%m%d%H%M%S')}"
        try:
            os.makedirs(folder, exist_ok=True)
            self._own = _new_log(os.path.join(folder, f"{stem}_instances.log"))
            self._files = {one.index: _new_log(os.path.join(folder, self._name(stem, one))) for one in instances}
        except OSError as error:
            raise UsageError(f"--log-dir {folder}: {error.strerror or error}") from error

    @staticmethod
    def _name(stem: str, instance: Instance) -> str:
        return f"{stem}_instance_{instance.index}_cores_{format_cpu_list(instance.cpus).replace(',', '_')}.log"

    def write(self, index: int, data: bytes) -> None:
        self._files[index].write(data)

    def note(self, text: str) -> None:
        """A line of the launcher's own."""
        self._own.write(f"{text}\n".encode())

    def close(self) -> None:
        for file in (self._own, *self._files.values()):
            file.close()


def _new_log(path: str) -> BinaryIO:
    """Unbuffered: whoever follows the file sees each line at once, and a killed launcher has lost none."""
    return open(path, "wb", buffering=0)


def last_overwrite(line: bytes) -> bytes:
    """What a terminal would show of a line in which a progress bar went back to the start again and again."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]


def write_all(stream: int, data: bytes) -> None:
    """Every byte, also to a stream that somebody made non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(stream, view) :]
        except BlockingIOError:
            select.select([], [stream], [])

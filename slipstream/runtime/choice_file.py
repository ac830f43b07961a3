# SPDX-License-Identifier: Apache-2.0
"""A file of measured choices that several processes read and append to at once: one for each kind of machine and build.

JSON lines. The first says what the choices hold for, each other one is a row of `Choice`'s fields behind its question; of two
rows for one question the later counts. Writers take turns by flock. A row that is torn, by a kill or by a full disk, is a line
that nobody can read, and nothing else is lost. What a file is trusted for is not decided here (`optimize/choices.py`).
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

FORMAT = 1
"""Part of the file's name: files of another format are never opened."""

MOST_BYTES = 400_000
"""Of a file: some 2000 rows. Beyond it the oldest are dropped until half of that is left."""

MOST_FILES = 16
"""In a folder: each build of ours and of torch has its own. The files that were written to longest ago go."""

PATIENCE_S = 0.2
"""How long to wait for other writers, who take a fraction of a millisecond each; one may have been stopped."""


LEFT_S = 3600
"""A file that its writer has not put in its place after so long has no writer any more."""


class Choice(NamedTuple):
    """``way`` is who won, ours or the original; ``speedup_x`` original / ours, of which a win took more than ``margin``;
    ``rounds`` of each were timed. ``original_s`` is the original's seconds for a multiply-add, ``at`` seconds since 1970.
    ``contested``: the measurement before it found otherwise.
    """

    way: str
    speedup_x: float
    margin: float
    rounds: int
    original_s: float
    at: int
    contested: bool = False


class Busy(OSError):
    """Another process has held the lock for longer than `PATIENCE_S`."""


class ChoiceFile:
    """Of one folder and of what its choices hold for: CPU model, instruction set, versions …, by name."""

    def __init__(self, folder: str, surroundings: Mapping[str, str]) -> None:
        self.folder = folder
        self.surroundings = {"format": str(FORMAT), **surroundings}
        text = json.dumps(self.surroundings, sort_keys=True)
        self.path = os.path.join(folder, f"choices-{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl")

    def read(self) -> dict[str, Choice]:
        """What is known, by question; the oldest first. Raises OSError where a file is there and cannot be read."""
        try:
            with open(self.path, "rb") as file:
                return _parse(file.read(2 * MOST_BYTES))
        except FileNotFoundError:
            return {}

    def append(self, found: Mapping[str, Choice]) -> None:
        """Add rows, whole or not at all. Raises OSError where that cannot be: no permission, no room, no locks, `Busy`."""
        os.makedirs(self.folder, exist_ok=True)
        with self._locked() as file:
            size = os.fstat(file).st_size
            rows = b"".join(_row(question, choice) for question, choice in found.items())
            if size + len(rows) > MOST_BYTES:
                self._rewrite({**self.read(), **found})
                return
            if size == 0:
                rows = self._header() + rows
                _drop_oldest_files(self.folder, besides=self.path)
            elif os.pread(file, 1, size - 1) != b"\n":
                rows = b"\n" + rows
            try:
                if os.write(file, rows) < len(rows):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            except OSError:
                os.ftruncate(file, size)
                raise

    def _header(self) -> bytes:
        return json.dumps(self.surroundings, sort_keys=True).encode() + b"\n"

    def _rewrite(self, choices: Mapping[str, Choice]) -> None:
        """With the newest that fit into half of the room; under the lock of the file that is replaced."""
        kept: list[bytes] = []
        room = MOST_BYTES // 2
        for question, choice in sorted(choices.items(), key=lambda item: -item[1].at):
            row = _row(question, choice)
            room -= len(row)
            if room < 0:
                break
            kept.append(row)
        part = f"{self.path}.{os.getpid()}.part"
        try:
            with open(part, "wb") as file:
                file.write(self._header() + b"".join(reversed(kept)))
            os.replace(part, self.path)
        except OSError:
            with suppress(OSError):
                os.unlink(part)
            raise

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The file, open for appending, ours alone; made anew if it was replaced while we waited."""
        end = time.monotonic() + PATIENCE_S
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if _lock(file) and _is_still(file, self.path):
                    try:
                        yield file
                    finally:
                        fcntl.flock(file, fcntl.LOCK_UN)  # a child forked meanwhile has it open as well
                    return
            finally:
                os.close(file)
            if time.monotonic() > end:
                raise Busy(errno.EAGAIN, "another process holds the file's lock", self.path)
            time.sleep(0.001)


def files(folder: str) -> list[str]:
    """The paths of all such files in a folder."""
    return sorted(glob.glob(os.path.join(glob.escape(folder), "choices-*.jsonl")))


def count(path: str) -> int:
    """How many choices a file holds; 0 where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return len(_parse(file.read(2 * MOST_BYTES)))
    except OSError:
        return 0


def _row(question: str, choice: Choice) -> bytes:
    return json.dumps([question, *choice]).encode() + b"\n"


def _parse(content: bytes) -> dict[str, Choice]:
    found: dict[str, Choice] = {}
    for row in _rows(content.split(b"\n")[1:]):
        if not _is_row(row):
            continue
        question, *fields = row
        found_before = found.pop(question, None)  # so that the later stands later
        choice = Choice(*fields)
        if found_before is not None and found_before.way != choice.way:
            choice = choice._replace(contested=True)
        found[question] = choice
    return found


def _rows(lines: list[bytes]) -> list[Any]:
    """All at once, which takes a third of the time; one by one where a line is damaged."""
    lines = [line for line in lines if line]
    try:
        return list(json.loads(b"[" + b",".join(lines) + b"]"))
    except (ValueError, RecursionError):
        return [row for row in map(_value, lines) if row is not None]


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


_FIELDS = (str, str, float, float, int, float, int, bool)


def _is_row(row: Any) -> bool:
    return type(row) is list and tuple(map(type, row)) == _FIELDS


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(file: int, path: str) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(file)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _drop_oldest_files(folder: str, besides: str) -> None:
    """Also what a killed writer left of a file that it was about to replace."""
    with suppress(OSError):
        others = sorted((path for path in files(folder) if path != besides), key=os.path.getmtime, reverse=True)
        parts = glob.glob(os.path.join(glob.escape(folder), "choices-*.part"))
        left = [path for path in parts if os.path.getmtime(path) < time.time() - LEFT_S]
        for path in others[MOST_FILES - 1 :] + left:
            os.unlink(path)

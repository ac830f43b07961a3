# SPDX-License-Identifier: Apache-2.0
"""A file of measured choices that several processes read and append to at once: one for each kind of machine and build.

The first line says what the choices hold for; each other one is a question, a tab and `Choice`'s fields, both as JSON. Of two
rows for one question the later counts. A row is decoded when it is asked for, so that a file is read in a millisecond.
Writers take turns by flock. A row that is torn, by a kill or by a full disk, is a line that nobody can read, and nothing else
is lost. What a file is trusted for is not decided here (`optimize/choices.py`).
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


class Rows:
    """A file's content, by question: its last two rows as they stand there."""

    def __init__(self, content: str = "") -> None:
        self._rows: dict[str, tuple[str, ...]] = {}
        for line in content.split("\n")[1:]:
            question, tab, fields = line.partition("\t")
            if tab:
                before = self._rows.pop(question, ())  # so that the later stands later
                self._rows[question] = (*before[-1:], fields)

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, question: str) -> Choice | None:
        """What is known of a question; contested, where the last two measurements differ."""
        return self._decode(json.dumps(question))

    def decoded(self) -> dict[str, Choice]:
        """Everything that can be read."""
        found = ((_value(question), self._decode(question)) for question in self._rows)
        return {question: choice for question, choice in found if isinstance(question, str) and choice is not None}

    def _decode(self, question: str) -> Choice | None:
        choices = [choice for choice in map(_choice, self._rows.get(question, ())) if choice is not None]
        if not choices:
            return None
        differ = len({choice.way for choice in choices}) > 1
        return choices[-1]._replace(contested=True) if differ else choices[-1]


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
        return self.rows().decoded()

    def rows(self) -> Rows:
        """The same, to be decoded by and by."""
        try:
            return Rows(_content(self.path))
        except FileNotFoundError:
            return Rows()

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
        return len(Rows(_content(path)))
    except OSError:
        return 0


def _content(path: str) -> str:
    with open(path, "rb") as file:
        return file.read(2 * MOST_BYTES).decode(errors="replace")


def _row(question: str, choice: Choice) -> bytes:
    return f"{json.dumps(question)}\t{json.dumps(choice)}\n".encode()


def _choice(text: str) -> Choice | None:
    fields = _value(text)
    return Choice(*fields) if type(fields) is list and tuple(map(type, fields)) == _FIELDS else None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


_FIELDS = (str, float, float, int, float, int, bool)


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

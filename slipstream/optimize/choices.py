# SPDX-License-Identifier: Apache-2.0
"""What earlier processes measured on this kind of machine: which way was the faster one, and whether to believe it.

A choice is believed if it was clear, not contested and not old, and even then one in `AGAIN` is measured again, so that what
was measured beside other work heals. Only speed is remembered: whether a result is right depends on the weights.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import pathlib
import random
import time
from collections.abc import Callable, Hashable

import torch

import slipstream
from slipstream import env
from slipstream.decision import log
from slipstream.kernels import native
from slipstream.runtime import cache_folder, choice_file, isa
from slipstream.runtime.choice_file import Choice, ChoiceFile, Rows

OURS, ORIGINAL = "ours", "original"

CLEAR = 1.1
"""A win has to exceed what was asked of it by this, a loss to stay below it by as much; what lies between is measured again."""

OLD_S = 30 * 86400.0
"""Seconds after which a choice is measured again."""

AHEAD_S = 86400.0
"""A choice from further in the future than this was written under a wrong clock, and its age is not known."""

AGAIN = 20
"""Of so many choices that are believed, a process measures one again all the same."""

SLOW_S = 5e-3
"""A folder that takes longer to write to is written to at exit only. On a local disk it takes 0.1 ms."""

WHAT = "choices of earlier processes"
"""What the report calls all this."""


def is_believed(choice: Choice, now: float) -> bool:
    """Whether a process may take a choice for its own without measuring."""
    if choice.contested or not -AHEAD_S <= now - choice.at <= OLD_S:
        return False
    if choice.way == OURS:
        return CLEAR * choice.margin <= choice.speedup_x < float("inf")
    return choice.way == ORIGINAL and 0 < choice.speedup_x <= choice.margin / CLEAR


def as_text(question: Hashable) -> str | None:
    """A question as it stands in the file; None where a part of it would mean nothing to another process."""
    if isinstance(question, tuple):
        parts = [as_text(part) for part in question]
        return None if None in parts else f"({' '.join(map(str, parts))})"
    if question is None or isinstance(question, (bool, int, float)):
        return str(question)
    if isinstance(question, str):
        return repr(question)
    return str(question).removeprefix("torch.") if isinstance(question, torch.dtype) else None


class Memory:
    """Choices by question, read when first asked for, written as they are made. No failure of a file goes further than here."""

    def __init__(self, again: int = AGAIN) -> None:
        self.again = again
        self.reads = True
        """Off for who wants everything measured; what is found is still written."""
        self._file: ChoiceFile | None = None
        self._known = Rows()
        self._kept: dict[str, Choice] = {}
        self._at_exit: dict[Hashable, Callable[[], None]] = {}
        self._opened = self._armed = self._deferred = False
        self._random = random.Random()  # one of its own: the script's sequence stays as it is
        self._figures = {"read": 0, "used": 0, "measured": 0}

    def recall(self, question: Hashable) -> Choice | None:
        """What may be believed of a question; asked once a process for each, since the answer may be to measure again."""
        text = self._text(question)
        if not self.reads or text is None or not self._is_open():
            return None
        choice = self._known.get(text)
        if choice is None or not is_believed(choice, time.time()) or self._random.randrange(self.again) == 0:
            return None
        self._count("used")
        return choice

    def keep(self, question: Hashable, fast: bool, speedup_x: float, margin: float, rounds: int, original_s: float) -> None:
        """Write down what was just measured."""
        text = self._text(question)
        if text is None or not self._is_open():
            return
        way = OURS if fast else ORIGINAL
        self._kept[text] = Choice(way, round(speedup_x, 4), float(margin), rounds, float(f"{original_s:.4g}"), int(time.time()))
        self._arm()
        if not self._deferred:
            self.flush()
        self._count("measured")

    def at_exit(self, question: Hashable, keep: Callable[[], None]) -> None:
        """Have ``keep``, which may keep an answer to the question, called when the process ends. The last one given counts."""
        self._at_exit[question] = keep
        self._arm()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            atexit.register(self._end)
            os.register_at_fork(after_in_child=self._forget)

    def _end(self) -> None:
        for keep in list(self._at_exit.values()):
            keep()
        self.flush()

    def _forget(self) -> None:
        """What is not written yet: in a child, it is the parent's to write."""
        self._kept.clear()
        self._at_exit.clear()

    def flush(self) -> None:
        """Write what is not written yet. What another process keeps us from is left for the next time."""
        if self._file is None or not self._kept:
            return
        start, writing = time.perf_counter(), dict(self._kept)
        try:
            self._file.append(writing)
        except choice_file.Busy:
            self._deferred = True
        except OSError as error:
            self._give_up(error)
        else:
            for text in writing:
                self._kept.pop(text, None)
            self._deferred = time.perf_counter() - start > SLOW_S

    def close(self) -> None:
        """Forget what was read, and whether anything could be: the next question opens the folder that is then meant."""
        self.flush()
        self._file, self._opened, self._deferred, self.reads = None, False, False, True
        self._known = Rows()
        self._forget()
        self._figures = dict.fromkeys(self._figures, 0)

    def _is_open(self) -> bool:
        if not self._opened:
            self._opened = True
            try:
                self._open()
            except OSError as error:
                self._give_up(error)
        return self._file is not None

    def _open(self) -> None:
        folder = cache_folder.folder()
        if folder is None:
            log.note(WHAT, False, f"{cache_folder.why_none()}; each process measures for itself")
            return
        self._file = ChoiceFile(folder, surroundings())
        self._known = self._file.rows()
        self._figures["read"] = len(self._known)
        self._count()

    def _give_up(self, error: OSError) -> None:
        self._file = None
        self._kept.clear()
        where = error.filename or cache_folder.folder()
        why = f"not kept: {where}: {error.strerror or error}; each process measures for itself"
        log.note(WHAT, False, why, **self._figures)

    def _count(self, *names: str) -> None:
        for name in names:
            self._figures[name] += 1
        if self._file is not None:
            log.note(WHAT, True, f"kept in {self._file.path}", **self._figures)

    def _text(self, question: Hashable) -> str | None:
        """With what else the speed depends on and may change while a process runs."""
        threads = torch.get_num_threads()
        cpus = min(threads, len(os.sched_getaffinity(0)))
        return as_text((question, torch.get_float32_matmul_precision(), threads, cpus))


def surroundings() -> dict[str, str]:
    """All that speed depends on and that stays the same while a process runs."""
    return {
        "cpu": isa.cpu_model() or "unknown",
        "level": native.active_level(),
        "torch": str(torch.__version__),
        "slipstream": slipstream.__version__,
        "native": _build(),
        "libraries": " ".join(_preloaded()),
        "malloc": f"{env.read(env.GLIBC_TUNABLES)} {env.read(env.MALLOC_CONF)}",
    }


def _build() -> str:
    """Which build of the native extension: its size and its time, since reading four megabytes would take longer."""
    if not native.available():
        return "none"
    stamp = os.stat(pathlib.Path(slipstream.__file__).parent / "_native.so")
    return f"{stamp.st_size}-{stamp.st_mtime_ns}"


def _preloaded() -> list[str]:
    """The allocator and the OpenMP runtime, where they are not the usual ones, by a function that only they have."""
    signs = {"tcmalloc": "tc_version", "jemalloc": "mallctl", "intel openmp": "kmp_set_blocktime"}
    found = []
    with contextlib.suppress(OSError):
        program = ctypes.CDLL(None)
        found = [name for name, sign in signs.items() if hasattr(program, sign)]
    return found


memory = Memory()
"""That of this process."""

# SPDX-License-Identifier: Apache-2.0
"""The record of a search: one JSON line a run, on disk before the next run starts; and a runner that knows it.

A resumed search asks for the same runs in the same order; those that are on record are answered from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from slipstream.errors import UsageError
from slipstream.launcher.tune.trial import LIMIT, Figure, Outcome, Runner, Trial

FILE = "trials.jsonl"
VERSION = 1

Key = tuple[str, str, int]


class Record:
    """The file in ``folder``. ``about`` says what is searched: a record of something else is refused."""

    def __init__(self, folder: str, about: Mapping[str, Any], *, resume: bool) -> None:
        self.path = os.path.join(folder, FILE)
        self._about = json.loads(json.dumps({"version": VERSION, **about}))
        self._known: dict[Key, dict[str, Any]] = {}
        self.notes: list[str] = []
        exists = os.path.exists(self.path)
        if exists and not resume:
            raise UsageError(f"--output {folder}: holds the record of a search; go on with it (--resume) or name another")
        if resume and not exists:
            raise UsageError(f"--resume --output {folder}: no {FILE} in it")
        try:
            os.makedirs(folder, exist_ok=True)
            if exists:
                self._load()
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the search
        except OSError as error:
            raise UsageError(f"--output {folder}: {error.strerror or error}") from error
        if not exists:
            self._write({"kind": "search", **self._about})

    @property
    def count(self) -> int:
        """Runs on record."""
        return len(self._known)

    def find(self, trial: Trial) -> Outcome | None:
        """The outcome on record; a run that hit a lower limit than today's is none."""
        entry = self._known.get(_key(trial))
        if entry is None or (entry["ended"] == LIMIT and not trial.length.cut and entry["limit"] < 0.99 * trial.limit):
            return None
        return _outcome(entry)

    def add(self, trial: Trial, outcome: Outcome) -> None:
        """Append and wait until it is on disk: a machine that dies in the next run has lost nothing."""
        entry = {
            "kind": "trial",
            "configuration": [list(pair) for pair in trial.configuration.settings],
            "length": trial.length.name,
            "repeat": trial.repeat,
            "limit": round(trial.limit, 3),
            **asdict(outcome),
        }
        self._known[_key(trial)] = json.loads(json.dumps(entry))
        self._write(entry)

    def close(self) -> None:
        self._file.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _load(self) -> None:
        with open(self.path, encoding="utf-8") as file:
            text = file.read()
        if text and not text.endswith("\n"):  # the writer was killed in the middle of a line
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("\n")
        entries = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                entries.append(json.loads(line))
            except ValueError:
                self.notes.append(f"{self.path}: line {number} is not whole and is left out")
        if not entries or entries[0].get("kind") != "search":
            raise UsageError(f"--resume: {self.path} is not the record of a search")
        self._check(entries[0])
        for entry in entries[1:]:
            pairs = tuple((flag, value) for flag, value in entry["configuration"])
            self._known[json.dumps(pairs), entry["length"], entry["repeat"]] = entry

    def _check(self, header: Mapping[str, Any]) -> None:
        for key, value in self._about.items():
            if header.get(key) != value:
                raise UsageError(
                    f"--resume: {self.path} has {key} {_brief(header.get(key))}, this search has {_brief(value)}; "
                    "start another one: --output DIR without --resume"
                )


class RecordedRunner:
    """Answers from the record, else runs and records."""

    def __init__(self, runner: Runner, record: Record) -> None:
        self._runner = runner
        self._record = record
        self.reused = 0

    def run(self, trial: Trial) -> Outcome:
        known = self._record.find(trial)
        if known is not None:
            self.reused += 1
            return known
        outcome = self._runner.run(trial)
        self._record.add(trial, outcome)
        return outcome

    def seconds(self) -> float:
        return self._runner.seconds()


def _key(trial: Trial) -> Key:
    return json.dumps(trial.configuration.settings), trial.length.name, trial.repeat


def _outcome(entry: Mapping[str, Any]) -> Outcome:
    figures = [
        Figure(
            **{
                **figure,
                "values": {int(index): value for index, value in figure["values"].items()},
                "times": {int(index): tuple(times) for index, times in figure["times"].items()},
            }
        )
        for figure in entry["figures"]
    ]
    names = ("ended", "seconds", "instances", "reason", "resident_mb")
    return Outcome(figures=tuple(figures), **{name: entry[name] for name in names})


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 100 else text[:97] + "..."

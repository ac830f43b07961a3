# SPDX-License-Identifier: Apache-2.0
"""The measurement behind `--memory-allocator auto`: what is chosen, kept, said, and that it never stops a launch."""

import json
import subprocess
import sys
import threading
import time

import pytest
from launched import environment

from slipstream import env
from slipstream.launcher.process import allocator_probe


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv(env.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def runs(monkeypatch):
    """Have each measuring process take so many seconds, by its variable NAME; what ran is listed."""
    ran = []
    times = {"default": 1.0, "keep": 0.5, "late": None}

    def run(variables, *, timeout):
        ran.append(variables.get("NAME", "default"))
        return times[ran[-1]]

    monkeypatch.setattr(allocator_probe, "_run", run)
    return ran


CANDIDATES = {"default": {}, "keep": {"NAME": "keep"}}


def test_auto_stays_where_nothing_is_clearly_faster():
    assert allocator_probe.judge({"default": 1.0, "jemalloc": 0.95})[0] == "default"


def test_the_probe_runs_and_a_library_that_fails_is_out(tmp_path, cache):
    library = tmp_path / "library.so"
    library.write_text("no library")
    seconds = allocator_probe.measure({"default": {}, "broken": {"LD_PRELOAD": str(library)}})
    assert set(seconds) == {"default"} and 0 < seconds["default"] < float("inf")


def test_what_was_measured_is_kept(cache, runs):
    answers = [allocator_probe.best_allocator(CANDIDATES) for _ in range(2)]
    assert answers[0] == answers[1] and answers[0][0] == "keep"
    assert len(runs) == 2 * allocator_probe.ROUNDS
    assert allocator_probe.known_allocator(CANDIDATES) == answers[0]


def test_with_the_cache_off_each_launch_measures(cache, runs, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(env.CACHE, "off")
    answers = [allocator_probe.best_allocator(CANDIDATES) for _ in range(2)]
    assert answers[0] == answers[1] and len(runs) == 4 * allocator_probe.ROUNDS
    assert list(tmp_path.iterdir()) == []


def test_other_settings_of_a_library_are_measured_anew(cache, runs):
    allocator_probe.best_allocator(CANDIDATES)
    allocator_probe.best_allocator({"default": {}, "keep": {"NAME": "keep", "MALLOC_CONF": "other"}})
    assert len(runs) == 4 * allocator_probe.ROUNDS


def test_what_is_not_known_is_not_measured_for_a_plan(cache, runs):
    name, reason = allocator_probe.known_allocator(CANDIDATES)
    assert (name, runs) == ("default", [])
    assert reason == "not measured yet: the first run here does so, and takes the fastest of default, keep"


def test_time_that_ran_out_gives_an_answer_that_is_not_kept(cache, runs, monkeypatch):
    clock = iter([0.0, 1.0, 6.0, 9.0, 12.0, 13.0, 14.0, 15.0])
    monkeypatch.setattr(allocator_probe.time, "monotonic", lambda: next(clock))
    assert allocator_probe.measure(CANDIDATES) == {"default": 1.0, "keep": 0.5}
    assert runs == ["default", "keep", "default"]
    assert not cache.exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "\udcff", '{"KEY": 3}', '{"KEY": {}}', '{"KEY": {"default": "fast"}}', '{"KEY": {"other": 1.0}}']
)
def test_a_spoilt_cache_is_measured_over(cache, runs, content):
    cache.mkdir()
    text = content.replace('"KEY"', json.dumps(allocator_probe._key(CANDIDATES)))
    (cache / "allocators.json").write_text(text, errors="surrogateescape")
    assert allocator_probe.known_allocator(CANDIDATES)[0] == "default"
    assert allocator_probe.best_allocator(CANDIDATES)[0] == "keep"


@pytest.mark.parametrize("failure", [RuntimeError("can't start new thread"), OSError("no"), TypeError("None")])
def test_no_failure_reaches_the_launch(cache, monkeypatch, failure):
    def fail(candidates):
        raise failure

    monkeypatch.setattr(allocator_probe, "measure", fail)
    name, reason = allocator_probe.best_allocator(CANDIDATES)
    assert name == "default" and "could not be measured" in reason and str(failure) in reason


def test_a_library_that_went_away_is_no_failure(cache):
    candidates = {"default": {}, "gone": {"LD_PRELOAD": "/no/such/library.so"}}
    assert allocator_probe.best_allocator(candidates)[0] == "default"
    assert allocator_probe.known_allocator(candidates)[0] == "default"


def test_a_probe_that_never_works_is_told_in_the_reason(cache, monkeypatch):
    monkeypatch.setattr(allocator_probe, "_run", lambda variables, *, timeout: None)
    name, reason = allocator_probe.best_allocator(CANDIDATES)
    assert name == "default" and "could not be measured" in reason
    assert not cache.exists()


@pytest.mark.parametrize(("slow", "lines"), [(True, 1), (False, 0)])
def test_who_waits_is_told_once(cache, monkeypatch, slow, lines):
    def run(variables, *, timeout):
        time.sleep(0.1 if slow else 0)
        return 1.0

    monkeypatch.setattr(allocator_probe, "PATIENCE", 0.2)
    monkeypatch.setattr(allocator_probe, "_run", run)
    said, threads = [], threading.active_count()
    allocator_probe.best_allocator(CANDIDATES, said.append)
    assert len(said) == lines
    assert all("measuring which memory allocator" in text and "\n" not in text for text in said)
    assert threading.active_count() == threads


@pytest.fixture
def launched_with(tmp_path, script):
    """Run the launcher on a Python that writes down its arguments and does nothing: (its end, what was started)."""
    python, diary = tmp_path / "python", tmp_path / "diary"
    python.write_text(f'#!/bin/sh\necho "$*" >> {diary}\n')
    python.chmod(0o755)
    path = script("print('ran')")
    code = f"import sys; sys.executable = {str(python)!r}; from slipstream.launcher import cli; sys.exit(cli.ipexrun())"

    def run(*words):
        ended = subprocess.run(
            [sys.executable, "-c", code, *words, path],
            capture_output=True,
            text=True,
            env=environment(**{env.CACHE: str(tmp_path / "cache")}),
        )
        return ended, diary.read_text().splitlines() if diary.exists() else []

    return run


@pytest.mark.parametrize("words", [("--dry-run",), ("--plan", "json"), ("--plan", "text")])
def test_a_plan_starts_nothing(tmp_path, launched_with, words):
    ended, started = launched_with(*words)
    assert (ended.returncode, started) == (0, [])
    assert "not measured yet" in ended.stdout
    assert not (tmp_path / "cache").exists()


def test_a_plan_shows_what_a_run_has_measured(launcher, script, tmp_path):
    clean = environment(**{env.CACHE: str(tmp_path / "cache")})
    path = script("print('ran')")
    assert launcher(path, env=clean).returncode == 0
    assert (tmp_path / "cache" / "allocators.json").exists()
    decisions = json.loads(launcher("--plan", "json", path, env=clean).stdout)["decisions"]
    (reason,) = [decision["reason"] for decision in decisions if decision["what"].startswith("allocator")]
    assert "at allocating large blocks" in reason


def test_a_python_that_cannot_be_measured_still_runs_the_program(launched_with):
    ended, started = launched_with()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert started[-1].endswith("script.py")

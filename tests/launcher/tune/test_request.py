# SPDX-License-Identifier: Apache-2.0
"""Own flags, fixed flags of ipexrun and the program's words are told apart; wrong ones are one sentence."""

import pytest

from slipstream.errors import UsageError
from slipstream.launcher.tune.objective import Limit, Objective
from slipstream.launcher.tune.request import parse_duration, parse_request


def test_three_kinds_of_words():
    words = ["--budget", "90s", "--auto_ipex", "--objective=p99<20", "--ncores_per_instance", "2", "--trials", "7"]
    request = parse_request([*words, "-m", "package.module", "--budget", "1h", "-m", "--", ""])
    assert request.program == ("package.module", "--budget", "1h", "-m", "--", "")
    assert request.fixed == ("--auto_ipex", "--ncores_per_instance", "2", "-m")
    assert (request.budget, request.trials, request.repeats) == (90.0, 7, 3)
    assert request.objective == Objective(("throughput",), (Limit("p99", 20.0),))
    assert request.line.values.auto_ipex and request.line.values.module
    assert request.line.program == request.program


def test_old_spellings_and_beginnings_of_fixed_flags_keep_their_values():
    request = parse_request(["--ninstance", "2", "--enable_tcmalloc", "--memory-pol", "bind", "x.py", "a"])
    assert request.fixed == ("--ninstance", "2", "--enable_tcmalloc", "--memory-pol", "bind")
    assert request.program == ("x.py", "a")
    assert request.line.values.ninstances == 2


def test_a_double_dash_ends_the_flags():
    assert parse_request(["--resume", "--output", "d", "--", "--odd.py"]).program == ("--odd.py",)


def test_underscores_in_own_flags():
    assert parse_request(["--conf_file", "a.yaml", "--trial_timeout", "1m", "x.py"]).trial_timeout == 60.0


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5m", 90), ("0.5", 0.5), ("1H", 3600)]
)
def test_durations(text, seconds):
    assert parse_duration(text, argument="--budget") == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "m", "10 minutes", "-5", "1m1h", "inf"])
def test_wrong_durations(text):
    with pytest.raises(UsageError, match="--budget"):
        parse_duration(text, argument="--budget")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--trials", "0", "x.py"], "--trials 0: give a whole number from 1"),
        (["--repeats", "many", "x.py"], "--repeats many"),
        (["--timeout", "5", "x.py"], "--timeout: not with slipstream tune; .*--trial-timeout"),
        (["--nnodes", "2", "x.py"], "one machine"),
        (["--report", "r.html", "x.py"], "--report"),
        (["--resume", "x.py"], "--output DIR"),
        (["--no-such", "x.py"], "--no-such: no such flag"),
        (["--budget"], "--budget: expected one argument"),
        (["--topology", "t.txt", "x.py"], "add --dry-run"),
    ],
)
def test_wrong_words(words, reason):
    with pytest.raises(UsageError, match=reason):
        parse_request(words)

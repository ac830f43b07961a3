# SPDX-License-Identifier: Apache-2.0
"""Errors name what is wrong and what to do; decisions keep their reason; switches read the environment."""

import threading

import pytest

from slipstream import env
from slipstream.decision import Decision, DecisionLog
from slipstream.errors import MissingDependency, NativeUnavailable, PlanError, SlipstreamError, UsageError


def test_usage_error_is_one_line_with_argument_value_choices_and_remedy():
    error = UsageError.of("--dtype", "int4", ("float32", "bfloat16"), "see --help")
    assert str(error) == "--dtype int4: not one of float32, bfloat16; see --help"
    assert str(UsageError.of("--cores", 9, "more than the 2 allowed")) == "--cores 9: more than the 2 allowed"


def test_errors_are_also_the_builtin_kind_that_callers_expect():
    assert issubclass(UsageError, ValueError)
    assert issubclass(PlanError, UsageError)
    assert issubclass(NativeUnavailable, RuntimeError)
    assert issubclass(MissingDependency, ImportError)
    assert all(issubclass(kind, SlipstreamError) for kind in (UsageError, NativeUnavailable, MissingDependency))
    assert str(MissingDependency.of("transformers", "the demo", "llm")).endswith("pip install 'slipstream[llm]'")


def test_a_later_decision_replaces_the_earlier_and_keeps_its_place():
    log = DecisionLog()
    log.note("a: pack", False, "too small")
    log.note("b: pack", True, "packed", speedup_x=2.0)
    log.note("a: pack", True, "larger input", memory_mb=1.0)
    assert [d.what for d in log] == ["a: pack", "b: pack"]
    assert next(iter(log)) == Decision("a: pack", True, "larger input", {"memory_mb": 1.0})
    assert next(iter(log)).as_dict()["figures"] == {"memory_mb": 1.0}
    log.clear()
    assert len(log) == 0


def test_decisions_of_many_threads_are_all_kept():
    log = DecisionLog()
    threads = [
        threading.Thread(target=lambda t=t: [log.note(f"{t}.{i}", True, "done") for i in range(200)]) for t in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log) == 1600


@pytest.mark.parametrize(
    ("value", "on"), [("1", True), ("yes", True), ("0", False), ("off", False), ("FALSE", False), ("no", False)]
)
def test_switches(monkeypatch, value, on):
    monkeypatch.setenv(env.DISABLE, value)
    assert env.is_on(env.DISABLE) is on


def test_unset_and_empty_are_the_default(monkeypatch):
    monkeypatch.delenv(env.NATIVE, raising=False)
    assert env.is_on(env.NATIVE, default=True)
    monkeypatch.setenv(env.NATIVE, "")
    assert env.read(env.NATIVE) is None
    assert not env.is_on(env.NATIVE)

# SPDX-License-Identifier: Apache-2.0
"""The old marker: its dictionary, the value on the next line of the same instance, and what is made of several instances."""

import pytest

from slipstream.launcher.tune.marker import MarkerError, marked_figures, read_marker

SPEED = "@hypertune {'name': 'speed', 'higher_is_better': True, 'target_val': 7}"
DELAY = "@hypertune {'name': 'delay'}"


def test_values_of_interleaved_instances_are_kept_apart():
    lines = [(0, SPEED), (1, SPEED), (1, "2"), (0, "1"), (0, DELAY), (0, "0.5"), (1, DELAY), (1, "1.5"), (1, "noise 9")]
    speed, delay = marked_figures(lines)
    assert (speed.name, speed.how, speed.higher, speed.target, dict(speed.values)) == ("@speed", "sum", True, 7.0, {0: 1, 1: 2})
    assert (delay.how, delay.higher, delay.target, dict(delay.values)) == ("mean", False, None, {0: 0.5, 1: 1.5})


@pytest.mark.parametrize("name", ["accuracy", "f1", "top1_acc"])
def test_shares_are_not_summed_though_higher_is_better(name):
    about = f"@hypertune {{'name': '{name}', 'higher_is_better': True}}"
    assert marked_figures([(0, about), (0, "0.5")])[0].how == "mean"


def test_aggregate_says_it():
    about = "@hypertune {'name': 'tail', 'aggregate': 'max'}"
    assert marked_figures([(0, about), (0, "1")])[0].how == "max"


@pytest.mark.parametrize("target", ["float('-inf')", "-inf", "-math.inf", "1e999"])
def test_an_infinite_target_is_none(target):
    about = f"@hypertune {{'name': 'speed', 'target_val': {target}}}"
    assert marked_figures([(0, about), (0, "1")])[0].target is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{'name': open('x')}", "plain values"),
        ("{'higher_is_better': True}", "it needs"),
        ("{'name': 'a', 'better': True}", "better is not one of"),
        ("{'name': 'a', 'higher_is_better': 1}", "True or False"),
        ("{'name': 'a', 'target_val': 'x'}", "a number"),
        ("{'name': 'a', 'aggregate': 'min'}", "sum, mean or max"),
        ("", "plain values"),
    ],
)
def test_wrong_markers(text, reason):
    with pytest.raises(MarkerError, match=reason):
        read_marker(f"@hypertune {text}")


def test_a_line_that_is_no_number():
    with pytest.raises(MarkerError, match="no number: 'fast'"):
        marked_figures([(0, SPEED), (0, "fast")])

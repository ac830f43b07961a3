# SPDX-License-Identifier: Apache-2.0
"""What was asked is found among what the script prints, in one unit, over all instances; anything else has a reason."""

import pytest
from simulated import latency, throughput

from slipstream.errors import UsageError
from slipstream.launcher.tune.objective import Limit, NoFigure, Objective, measure, meets_targets, parse_objective, resolve
from slipstream.launcher.tune.trial import DONE, Figure, Outcome


def read(text, *figures, instances=1):
    resolved = resolve(parse_objective(text) if text else Objective(), figures)
    return resolved, measure(resolved, Outcome(DONE, 1.0, instances, figures))


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("throughput", Objective(("throughput",))),
        ("latency", Objective(("latency",))),
        ("p99<20", Objective(("throughput",), (Limit("p99", 20.0),))),
        ("p99 <= 0.02 s", Objective(("throughput",), (Limit("p99", 20.0),))),
        ("latency, throughput>100", Objective(("latency",), (Limit("throughput", 100.0, upper=False),))),
        ("min:loss", Objective(("min:loss",))),
        ("Eval Samples", Objective(("eval_samples",))),
    ],
)
def test_forms(text, objective):
    assert parse_objective(text) == objective


@pytest.mark.parametrize("text", ["", "p99<", "p99<fast", "<20", "p99<20 parsecs", "a,,b", "min:p99<3", "p99=20"])
def test_other_forms_are_refused(text):
    with pytest.raises(UsageError, match="--objective"):
        parse_objective(text)


def test_throughput_is_summed_and_latency_averaged_in_milliseconds():
    assert read("throughput", throughput(30.0, instances=3), instances=3)[1].goals == (30.0,)
    times = Figure("latency", "mean", {0: 0.002, 1: 0.004}, unit="s", higher=False)
    assert read("latency", times, instances=2)[1].goals == (-3.0,)


def test_a_time_limit_is_for_the_worst_instance():
    tail = Figure("p99", "mean", {0: 10.0, 1: 30.0}, unit="ms", higher=False)
    assert read("p99<20", throughput(8.0, instances=2), tail, instances=2)[1].excess == (0.5,)
    assert read("p99<30", throughput(8.0, instances=2), tail, instances=2)[1].excess == (0.0,)


def test_a_lower_limit():
    assert read("latency,throughput>10", latency("latency", 3.0), throughput(5.0))[1].excess == (0.5,)


@pytest.mark.parametrize(
    ("text", "names", "chosen"),
    [
        ("throughput", ["it/s", "samples/s"], "samples/s"),
        ("throughput", ["it/s"], "it/s"),
        ("throughput", ["eval_steps_per_second", "eval_samples_per_second"], "eval_samples_per_second"),
        ("throughput", ["samples/s", "throughput"], "throughput"),
        ("latency", ["p99_latency", "mean_latency"], "mean_latency"),
        ("latency", ["p99_latency", "p50_latency"], "p50_latency"),
        ("p99", ["latency_p50", "latency_p99"], "latency_p99"),
    ],
)
def test_the_meant_figure(text, names, chosen):
    figures = [latency(name, 1.0) if "latency" in name else Figure(name, "sum", {0: 1.0}) for name in names]
    for order in (figures, figures[::-1]):
        assert resolve(parse_objective(text), order).goals[0].name == chosen


def test_something_to_be_kept_low_is_not_summed():
    figure = Figure("loss", "sum", {0: 1.0, 1: 3.0})
    assert read("min:loss", figure, instances=2)[1].goals == (-2.0,)


def test_markers_are_the_objective_where_none_is_asked():
    marked = Figure("@speed", "sum", {0: 4.0}, target=3.0)
    resolved, measurement = read("", throughput(9.0), marked)
    assert [goal.name for goal in resolved.goals] == ["@speed"]
    assert meets_targets(resolved, measurement)
    assert read("throughput", throughput(9.0), marked)[1].goals == (9.0,)


def test_targets_that_are_not_there_are_never_met():
    """Without this, maximising stops after its first trial."""
    resolved, measurement = read("throughput", throughput(9.0))
    assert not meets_targets(resolved, measurement)


@pytest.mark.parametrize(
    ("figures", "reason"),
    [
        ((), "printed no figure"),
        ((latency("latency", 1.0, instances=2),), "printed no throughput, only latency"),
        ((throughput(3.0, instances=1),), "instance 1 printed no throughput"),
        ((Figure("throughput", "sum", {0: 1.0, 1: float("nan")}),), "throughput is nan"),
    ],
)
def test_reasons(figures, reason):
    with pytest.raises(NoFigure, match=reason):
        read("throughput", *figures, instances=2)

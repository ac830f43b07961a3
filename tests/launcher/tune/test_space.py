# SPDX-License-Identifier: Apache-2.0
"""Spaces hold what a machine and its software offer, stay small, and lose nothing but what cannot run or is the same."""

import math

import pytest
from machines import HYBRID, T1, VM, lscpu
from simulated import space

from slipstream.errors import UsageError
from slipstream.launcher.options import launch_options
from slipstream.launcher.topology_file import parse_lscpu
from slipstream.launcher.tune.offer import Offer, read_offer
from slipstream.launcher.tune.request import parse_request
from slipstream.launcher.tune.screening import Screening
from slipstream.launcher.tune.space import (
    MOST_CONFIGURATIONS,
    Axis,
    asked_axes,
    by_prediction,
    default_axes,
    enumerate_space,
)

EVERYTHING = Offer(
    (28, 28), smt=True, allocators=("default", "tcmalloc", "jemalloc"), intel_openmp=True, optimizing=True, bfloat16=True
)


def names(axes):
    return {axis.name: [dict(setting) for setting in axis.settings] for axis in axes}


def counts(offer):
    shapes = names(default_axes(offer, ()))["instances"]
    return [int(shape["ninstances"]) for shape in shapes if "ncores-per-instance" not in shape]


def test_default_space_of_a_large_server_is_a_few_hundred_points():
    axes = default_axes(EVERYTHING, ())
    assert [axis.name for axis in axes] == ["instances", "smt", "allocator", "openmp", "dtype"]
    assert math.prod(len(axis.settings) for axis in axes) < 300


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        ((1,), [1]),
        ((2,), [1, 2]),
        ((28, 28), [1, 2, 4, 8, 14, 28, 56]),
        ((8,), [1, 2, 4, 8]),
        ((13,), [1, 2, 4, 13]),
        ((64, 64), [1, 2, 4, 8, 16, 32, 64, 128]),
    ],
)
def test_instance_counts(cores, expected):
    assert counts(Offer(cores)) == expected


@pytest.mark.parametrize("cores", range(1, 130))
def test_counts_stay_few_and_waste_little(cores):
    found = counts(Offer((cores,)))
    assert found[0] == 1 and found[-1] == cores and found == sorted(set(found))
    assert len(found) <= 7
    assert all(count * (cores // count) >= 7 / 8 * cores for count in found)


def test_one_node_and_half_a_node_are_tried_for_single_instances():
    shapes = names(default_axes(EVERYTHING, ()))["instances"]
    assert {"ninstances": "1", "ncores-per-instance": "28"} in shapes
    assert {"ninstances": "1", "ncores-per-instance": "14"} in shapes


def test_what_is_fixed_or_not_there_is_no_axis():
    assert names(default_axes(Offer((2,)), ())) == {"instances": [{"ninstances": "1"}, {"ninstances": "2"}]}
    given = {"ninstances", "use-logical-cores", "memory-allocator", "omp-runtime", "dtype"}
    assert default_axes(EVERYTHING, given) == []


def test_asked_axes_take_the_place_of_default_ones():
    axes = asked_axes(["instances=1,4; smt=on", "memory-policy=bind,interleave"], EVERYTHING, (), optimizing=True)
    assert names(axes) == {
        "instances": [{"ninstances": n, "ncores-per-instance": ""} for n in ("1", "4")],
        "allocator": [{"memory-allocator": name} for name in ("default", "tcmalloc", "jemalloc")],
        "openmp": [{"omp-runtime": name} for name in ("default", "intel")],
        "dtype": [{"dtype": name} for name in ("float32", "bfloat16")],
        "smt": [{"use-logical-cores": "on"}],
        "memory-policy": [{"memory-policy": name} for name in ("bind", "interleave")],
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("threads=1", "threads is not one of instances, cores"),
        ("instances", "not of the form NAME=VALUE"),
        ("instances=1,,2", "not of the form"),
        ("instances=two", "two is not a whole number"),
        ("allocator=mimalloc", "mimalloc: not one of auto, default"),
        ("smt=yes", "yes: not one of off, on"),
        ("smt=on;smt=off", "there twice"),
        ("strategy=close", "also given as fixed"),
        ("dtype=float32", "add it"),
        ("cores-list=0-3", "cores-list is not one of"),
    ],
)
def test_wrong_spaces(text, reason):
    with pytest.raises(UsageError, match=reason):
        asked_axes([text], Offer((4,)), {"strategy"}, optimizing=False)


def test_a_huge_space_is_sampled_with_all_neighbours_of_the_first_point():
    axes = [Axis(name, tuple(((name, str(value)),) for value in range(30))) for name in ("a", "b", "c", "d")]
    points, decisions = enumerate_space(axes)
    places = {point.place for point in points}
    assert len(points) == len(places) == MOST_CONFIGURATIONS
    assert points[0].place == (0, 0, 0, 0)
    assert {(value, 0, 0, 0) for value in range(30)} <= places
    assert f"{MOST_CONFIGURATIONS} of {30**4}" in decisions[0].what
    assert enumerate_space(axes)[0] == points


def test_a_shuffled_space_starts_at_its_first_point_and_holds_the_same():
    axes = [Axis("a", tuple((("a", str(value)),) for value in range(20)))]
    plain, shuffled = enumerate_space(axes)[0], enumerate_space(axes, shuffled=True)[0]
    assert shuffled[0] == plain[0] and shuffled != plain
    assert sorted(shuffled, key=lambda one: one.place) == plain


def test_prediction_adds_up_what_each_value_was_worth():
    points = space(ninstances=(1, 2, 4), memory_allocator=("default", "tcmalloc"), omp_runtime=("default", "intel"))
    assert by_prediction(points, {})[:5] == [point for point in points if sum(map(bool, point.place)) <= 1]
    seen = {(0, 0, 0): 0.0, (1, 0, 0): 3.0, (2, 0, 0): 1.0, (0, 1, 0): 1.0, (0, 0, 1): -5.0}
    rest = [point for point in points if point.place not in seen]
    ordered = [point.place for point in by_prediction(rest, seen)]
    assert ordered[0] == (1, 1, 0) and ordered[-1][2] == 1


def screened(text, words, configurations, environ=None):
    request = parse_request([*words, __file__])
    screening = Screening(parse_lscpu(text), request.line, environ or {})
    return screening.keep(configurations), screening.decisions()


def test_sizes_that_do_not_fit_are_out_with_one_reason():
    kept, decisions = screened(VM, [], space(ninstances=(1, 2, 3, 4, 5, 6, 7)))
    assert [(one.instances, one.threads) for one in kept] == [(1, 4), (2, 2), (3, 1), (4, 1)]
    assert [decision.figures["configurations"] for decision in decisions] == [3.0]
    assert "more than the 4 physical cores" in decisions[0].reason


def test_the_same_start_is_tried_once():
    no_smt = lscpu(1, 4, smt=False)
    kept, decisions = screened(no_smt, [], space(use_logical_cores=("off", "on"), ninstances=(1, 2)))
    assert [str(one) for one in kept] == ["--ninstances 1", "--ninstances 2"]
    assert "the planner makes the same" in decisions[0].reason


def test_smt_doubles_the_threads_of_an_even_split():
    kept, _ = screened(T1, [], space(use_logical_cores=("off", "on"), ninstances=(2,)))
    assert [one.threads for one in kept] == [28, 56]


def test_a_missing_library_is_out_and_not_replaced(monkeypatch):
    monkeypatch.setattr("slipstream.launcher.preload.find_library", lambda name, environ: None)
    points = space(memory_allocator=("default", "tcmalloc"), omp_runtime=("default", "intel"))
    kept, decisions = screened(VM, [], points)
    assert [one.words() for one in kept] == [["--memory-allocator", "default", "--omp-runtime", "default"]]
    assert all("is not here" in decision.reason for decision in decisions)


def test_a_missing_binder_is_out(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    kept, decisions = screened(VM, [], space(multi_task_manager=("auto", "taskset")))
    assert len(kept) == 1
    assert "--multi-task-manager taskset: no such program" in decisions[0].reason


def test_the_default_allocator_is_really_the_default_one():
    """An allocator in LD_PRELOAD would be what runs under every name."""
    environ = {"LD_PRELOAD": "/usr/lib/libtcmalloc.so.4"}
    kept, decisions = screened(VM, [], space(memory_allocator=("default", "tcmalloc")), environ)
    assert [one.words() for one in kept] == [["--memory-allocator", "tcmalloc"]]
    assert "LD_PRELOAD already holds tcmalloc" in decisions[0].reason


def offered(text, words=(), environ=None):
    request = parse_request([*words, __file__])
    options = launch_options(request.line)
    return read_offer(parse_lscpu(text), options, environ or {}, best_allocator=lambda candidates: ("keep", "measured"))


def test_offer_is_what_fixed_flags_leave():
    assert offered(T1)[0].cores_of_nodes == (28, 28)
    assert offered(T1, ["--nodes-list", "1"])[0].cores_of_nodes == (28,)
    assert offered(T1, ["--cores-list", "0-3"])[0].cores_of_nodes == (4,)
    assert offered(HYBRID)[0].cores_of_nodes == (28, 28)
    assert offered(HYBRID, ["--use-e-cores"])[0].cores_of_nodes == (32, 32)
    assert offered(T1)[0].smt and not offered(lscpu(1, 4, smt=False))[0].smt


def test_offer_says_what_is_not_installed(monkeypatch):
    monkeypatch.setattr("slipstream.launcher.preload.find_library", lambda name, environ: None)
    offer, decisions = offered(VM)
    assert offer.allocators == ("keep", "default") and not offer.intel_openmp
    missing = {decision.what for decision in decisions if "not installed; " in decision.reason}
    assert missing == {"allocator: tcmalloc", "allocator: jemalloc", "openmp: intel"}


def test_the_search_starts_with_what_a_plain_start_would_take(monkeypatch):
    monkeypatch.setattr("slipstream.launcher.preload.find_library", lambda name, environ: f"/lib/{name}.so")
    offer, _ = offered(VM)
    assert offer.allocators == ("keep", "default", "tcmalloc", "jemalloc")
    assert default_axes(offer, ())[2].settings[0] == (("memory-allocator", "keep"),)


def test_an_allocator_in_place_leaves_none_to_choose():
    offer, decisions = offered(VM, environ={"LD_PRELOAD": "libjemalloc.so.2"})
    assert offer.allocators == ()
    assert "LD_PRELOAD already holds jemalloc" in decisions[0].reason


def test_a_setting_of_the_users_that_is_the_allocator():
    kept, decisions = screened(VM, [], space(memory_allocator=("default", "keep")), {"GLIBC_TUNABLES": "glibc.malloc.check=1"})
    assert [one.words() for one in kept] == [["--memory-allocator", "default"]]
    assert "GLIBC_TUNABLES is set" in decisions[0].reason

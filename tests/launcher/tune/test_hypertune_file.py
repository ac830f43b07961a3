# SPDX-License-Identifier: Apache-2.0
"""The old YAML file: every hyperparameter, both spellings, its defaults, and what was wrong with its space."""

import importlib
import math

import pytest
from machines import T1, VM

from slipstream.errors import MissingDependency, UsageError
from slipstream.launcher.topology_file import parse_lscpu
from slipstream.launcher.tune.hypertune_file import DEPRECATED, HYPERPARAMETERS, interpret, read_hypertune_file
from slipstream.launcher.tune.offer import Offer
from slipstream.launcher.tune.request import parse_request
from slipstream.launcher.tune.screening import Screening
from slipstream.launcher.tune.space import enumerate_space

SMALL = Offer((4,), smt=True)


def file(hp, offer=SMALL, tuning=None, **launcher):
    return interpret({"tuning": tuning or {}, "hyperparams": {"launcher": {"hp": hp, **launcher}}}, offer, source="f")


def flags(found):
    return {axis.name: [" ".join(point.words()) for point in enumerate_space([axis])[0]] for axis in found.axes}


def test_values_become_flags():
    found = file(
        ["malloc", "disable_iomp", "disable_numactl", "use_logical_cores", "ninstances", "use_all_nodes"],
        ninstances=[1, 2, -1],
        malloc=["pt", "tc", "je"],
        use_all_nodes=[True, False],
    )
    assert flags(found) == {
        "instances": ["--ninstances 1", "--ninstances 2", ""],
        "use_all_nodes": ["", "--nodes-list 0"],
        "use_logical_cores": ["", "--use-logical-cores"],
        "disable_numactl": ["", "--multi-task-manager taskset"],
        "disable_iomp": ["--omp-runtime default", "--omp-runtime intel"],
        "malloc": [f"--memory-allocator {name}" for name in ("default", "tcmalloc", "jemalloc")],
    }


def test_what_is_not_tuned_stays_away():
    assert flags(file(["ninstances"], ninstances=[2])) == {
        "instances": ["--ninstances 2"],
        "use_all_nodes": [""],
        "use_logical_cores": [""],
        "disable_numactl": [""],
    }


@pytest.mark.parametrize(("name", "most"), [("all_physical_cores", 4), ("all_logical_cores", 8)])
def test_lists_of_cores(name, most):
    counts = file(["ncores_per_instance"], ncores_per_instance=name).axes[0].settings
    assert [dict(setting)["ncores-per-instance"] for setting in counts] == [str(n) for n in range(1, most + 1)]


def test_tuning_settings():
    found = file(["malloc"], tuning={"strategy": "random", "max_trials": 7})
    assert (found.strategy, found.trials) == ("random", 7)
    assert (file(["malloc"]).strategy, file(["malloc"]).trials) == ("grid", 100)


def test_everything_with_both_spellings_is_one_space():
    """The predecessor met the same hyperparameter under two names and stopped in the middle of the search."""
    found = file([*HYPERPARAMETERS, *DEPRECATED])
    assert found.names == tuple(HYPERPARAMETERS)
    assert len(found.axes) == len(HYPERPARAMETERS) - 1
    assert set(found.notes) == {f"{old} is now spelled {new}" for old, new in DEPRECATED.items()}


def test_old_names_carry_their_values():
    old = file(["ncore_per_instance"], ncore_per_instance=[1, 2])
    new = file(["ncores_per_instance"], ncores_per_instance=[1, 2])
    assert old.axes == new.axes


def test_all_cores_times_all_cores_does_not_explode():
    large = Offer((28, 28), smt=True)
    found = file(["ninstances", "ncores_per_instance"], large)
    pairs = len(found.axes[0].settings)
    assert pairs == sum(112 // count for count in range(1, 113)) < 112 * 112 / 20
    assert math.prod(len(axis.settings) for axis in found.axes) == pairs
    screening = Screening(parse_lscpu(T1), parse_request([__file__]).line, {})
    kept = screening.keep(enumerate_space(found.axes)[0])
    assert all(one.instances * one.threads <= 56 for one in kept) and kept


def test_a_grid_runs_on_a_small_machine():
    screening = Screening(parse_lscpu(VM), parse_request([__file__]).line, {})
    kept = screening.keep(enumerate_space(file(["ninstances", "malloc"], malloc=["pt"]).axes)[0])
    assert [one.instances for one in kept] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "not a table"),
        ([1], "not a table"),
        ({"hyperparam": {}}, "hyperparam: not one of tuning, output_dir, hyperparams"),
        ({"tuning": {"strategy": "bayes"}}, "bayes: not one of grid, random"),
        ({"tuning": {"max_trials": "9"}}, "max_trials 9"),
        ({"output_dir": 3}, "output_dir 3"),
        ({"hyperparams": {"launcher": {}}}, "hp None: give the list"),
        ({"hyperparams": {"launcher": {"hp": ["threads"]}}}, "threads: not one of"),
        ({"hyperparams": {"launcher": {"hp": ["malloc"], "malloc": ["mi"]}}}, "one of pt, tc, je"),
        ({"hyperparams": {"launcher": {"hp": ["malloc"], "malloc": "pt"}}}, "give a list of values"),
        ({"hyperparams": {"launcher": {"hp": ["ninstances"], "ninstances": [0]}}}, "a whole number from 1"),
        ({"hyperparams": {"launcher": {"hp": ["ninstances"], "ninstances": [True]}}}, "a whole number from 1"),
        ({"hyperparams": {"launcher": {"hp": ["disable_iomp"], "disable_iomp": ["yes"]}}}, "True or False"),
        ({"hyperparams": {"launcher": {"hp": ["ninstances"], "ninstances": [99]}}}, "fits into 8 CPUs"),
    ],
)
def test_wrong_files(content, reason):
    with pytest.raises(UsageError, match=reason):
        interpret(content, SMALL, source="f")


def test_files(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "c.yaml"
    path.write_text("output_dir: results\nhyperparams: {launcher: {hp: [malloc]}}\n")
    assert read_hypertune_file(str(path), SMALL).output == "results"
    path.write_text("a: [")
    with pytest.raises(UsageError, match="not YAML"):
        read_hypertune_file(str(path), SMALL)
    with pytest.raises(UsageError, match="No such file"):
        read_hypertune_file(str(tmp_path / "none.yaml"), SMALL)


def test_without_pyyaml_the_remedy_is_named(monkeypatch):
    real = importlib.import_module

    def without(name, *rest):
        if name == "yaml":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(MissingDependency, match=r"pip install 'slipstream\[tune\]'"):
        read_hypertune_file("c.yaml", SMALL)

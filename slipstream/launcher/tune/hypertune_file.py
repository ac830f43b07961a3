# SPDX-License-Identifier: Apache-2.0
"""The YAML file of the old hypertune command, as axes of a space and settings of a search.

    tuning:      {strategy: grid | random, max_trials: 100}
    output_dir:  folder
    hyperparams:
      launcher:
        hp: [ncores_per_instance, ninstances]
        ncores_per_instance: all_physical_cores
        ninstances: [1, 2]
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slipstream.errors import MissingDependency, UsageError
from slipstream.launcher.tune.offer import Offer
from slipstream.launcher.tune.space import Axis, shape_axis
from slipstream.launcher.tune.trial import OFF, ON

DEPRECATED = {"ncore_per_instance": "ncores_per_instance", "use_logical_core": "use_logical_cores"}
DEFAULT_TRIALS = 100
STRATEGIES = ("grid", "random")
ALLOCATORS = {"pt": "default", "tc": "tcmalloc", "je": "jemalloc"}
CORE_LISTS = ("all_physical_cores", "all_logical_cores")


@dataclass(frozen=True)
class Hyperparameter:
    """``flag`` is what it became; ``word`` turns a value of the file into the flag's; ``rest`` is the value if not tuned."""

    flag: str
    word: Callable[[Any, Offer], str]
    default: Callable[[Offer], Sequence[Any]]
    rest: Any = None


def _count(value: Any, offer: Offer) -> str:
    if isinstance(value, bool) or not isinstance(value, int) or not (value == -1 or value > 0):
        raise ValueError("a whole number from 1, or -1 for unset")
    return "" if value == -1 else str(value)


def _switch(yes: str, no: str) -> Callable[[Any, Offer], str]:
    def word(value: Any, offer: Offer) -> str:
        if not isinstance(value, bool):
            raise ValueError("True or False")
        return yes if value else no

    return word


def _allocator(value: Any, offer: Offer) -> str:
    if value not in ALLOCATORS:
        raise ValueError(f"one of {', '.join(ALLOCATORS)}")
    return ALLOCATORS[value]


HYPERPARAMETERS: dict[str, Hyperparameter] = {
    "ncores_per_instance": Hyperparameter("ncores-per-instance", _count, lambda offer: range(1, _cpus(offer) + 1), -1),
    "ninstances": Hyperparameter("ninstances", _count, lambda offer: range(1, _cpus(offer) + 1), -1),
    "use_all_nodes": Hyperparameter(
        "nodes-list", _switch("", "0"), lambda offer: [True, False] if len(offer.cores_of_nodes) > 1 else [True], True
    ),
    "use_logical_cores": Hyperparameter(
        "use-logical-cores", _switch(ON, OFF), lambda offer: [False, True] if offer.smt else [False], False
    ),
    "disable_numactl": Hyperparameter("multi-task-manager", _switch("taskset", ""), lambda offer: [False, True], False),
    # False meant Intel's runtime, which was then the launcher's choice wherever it was installed.
    "disable_iomp": Hyperparameter("omp-runtime", _switch("default", "intel"), lambda offer: [True, False]),
    "malloc": Hyperparameter("memory-allocator", _allocator, lambda offer: ["pt", "tc", "je"]),
}
"""In the order of axes. ``disable_iomp`` and ``malloc`` that are not tuned are left to the launcher, which takes tcmalloc or
Intel's runtime only where that is faster."""


@dataclass(frozen=True)
class HypertuneFile:
    """What a file says. ``names`` are its hyperparameters in today's spelling; ``notes`` say what was spelled otherwise."""

    axes: tuple[Axis, ...]
    names: tuple[str, ...]
    trials: int = DEFAULT_TRIALS
    strategy: str = "grid"
    output: str = ""
    notes: tuple[str, ...] = ()


def read_hypertune_file(path: str, offer: Offer) -> HypertuneFile:
    """The file's content, checked key by key."""
    try:
        yaml = importlib.import_module("yaml")
    except ImportError:
        raise MissingDependency.of("PyYAML", f"--conf-file {path}", "tune") from None
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise UsageError(f"--conf-file {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--conf-file {path}: not YAML ({error})") from error
    return interpret(content, offer, source=f"--conf-file {path}")


def interpret(content: object, offer: Offer, *, source: str) -> HypertuneFile:
    """What a parsed file means on this machine."""
    whole = _mapping(content, source, ("tuning", "output_dir", "hyperparams"))
    tuning = _mapping(whole.get("tuning") or {}, f"{source}: tuning", ("strategy", "max_trials"))
    hyperparams = _mapping(whole.get("hyperparams") or {}, f"{source}: hyperparams", ("launcher",))
    strategy, trials = tuning.get("strategy", "grid"), tuning.get("max_trials", DEFAULT_TRIALS)
    if strategy not in STRATEGIES:
        raise UsageError.of(f"{source}: strategy", strategy, STRATEGIES)
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise UsageError(f"{source}: max_trials {trials}: give a whole number from 1")
    output = whole.get("output_dir") or ""
    if not isinstance(output, str):
        raise UsageError(f"{source}: output_dir {output}: give a folder's name")
    notes: list[str] = []
    launcher = _renamed(hyperparams.get("launcher"), f"{source}: launcher", notes)
    names = _names(launcher, source, notes)
    axes = _axes(names, launcher, offer, source)
    return HypertuneFile(tuple(axes), tuple(names), trials, strategy, output, tuple(notes))


def _axes(names: Sequence[str], launcher: Mapping[str, Any], offer: Offer, source: str) -> list[Axis]:
    words: dict[str, list[str]] = {}
    for name, about in HYPERPARAMETERS.items():
        if name in names:
            values = _values(name, launcher.get(name), offer, source)
        else:
            values = [] if about.rest is None else [about.rest]
        try:
            words[name] = list(dict.fromkeys(about.word(value, offer) for value in values))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{source}: {name} {values}: each value is {error}") from error
    axes = [shape_axis([words.pop("ninstances"), words.pop("ncores_per_instance")], cpus=_cpus(offer))]
    for name, values in words.items():
        if values:
            axes.append(Axis(name, tuple(((HYPERPARAMETERS[name].flag, value),) for value in values)))
    if not axes[0].settings:
        raise UsageError(f"{source}: no pair of ninstances and ncores_per_instance fits into {_cpus(offer)} CPUs")
    return axes


def _values(name: str, given: object, offer: Offer, source: str) -> Sequence[Any]:
    if given is None:
        return list(HYPERPARAMETERS[name].default(offer))
    if name in {"ninstances", "ncores_per_instance"} and given in CORE_LISTS:
        return range(1, (_cpus(offer) if given == "all_logical_cores" else offer.cores) + 1)
    if not isinstance(given, list) or not given:
        more = f", or {' or '.join(CORE_LISTS)}" if name in {"ninstances", "ncores_per_instance"} else ""
        raise UsageError(f"{source}: {name} {given}: give a list of values{more}")
    return given


def _names(launcher: Mapping[str, Any], source: str, notes: list[str]) -> list[str]:
    names = launcher.get("hp")
    if not isinstance(names, list) or not names:
        raise UsageError(f"{source}: hp {names}: give the list of hyperparameters to tune: {', '.join(HYPERPARAMETERS)}")
    found: list[str] = []
    for name in names:
        today = _today(str(name), notes)
        if today not in HYPERPARAMETERS:
            raise UsageError.of(f"{source}: hp", name, HYPERPARAMETERS)
        found.append(today)
    return list(dict.fromkeys(found))


def _renamed(content: object, source: str, notes: list[str]) -> dict[str, Any]:
    """The launcher's part with today's names; the old and the new name of one thing are the same one."""
    allowed = ("hp", *HYPERPARAMETERS, *DEPRECATED)
    mapping = _mapping(content or {}, source, allowed)
    result = {name: value for name, value in mapping.items() if name not in DEPRECATED}
    for old in DEPRECATED:
        if old in mapping:
            result.setdefault(_today(old, notes), mapping[old])
    return result


def _today(name: str, notes: list[str]) -> str:
    today = DEPRECATED.get(name, name)
    note = f"{name} is now spelled {today}"
    if today != name and note not in notes:
        notes.append(note)
    return today


def _mapping(content: object, source: str, allowed: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise UsageError(f"{source}: not a table of {', '.join(allowed)}")
    for key in content:
        if key not in allowed:
            raise UsageError.of(f"{source}: key", key, allowed)
    return content


def _cpus(offer: Offer) -> int:
    return offer.cores * (2 if offer.smt else 1)

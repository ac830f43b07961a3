# SPDX-License-Identifier: Apache-2.0
"""Which configurations of a space can run here: planned like a start would, those that do not fit or are the same out."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from slipstream.decision import Decision
from slipstream.errors import UsageError
from slipstream.launcher.command_line import CommandLine
from slipstream.launcher.flags import BY_NAME
from slipstream.launcher.options import LaunchOptions, Libraries, Placement, launch_options
from slipstream.launcher.plan import LaunchPlan, make_plan
from slipstream.launcher.preload import choose_preload, preloaded
from slipstream.launcher.tune.trial import OFF, ON, Configuration
from slipstream.runtime.topology import Topology

KEEP_VARIABLE = "GLIBC_TUNABLES"


@dataclass
class Screening:
    """``keep`` gives back what can be tried; ``decisions`` say what else there was and why it is not tried.

    ``callers`` are the caller's variables, which may win over a flag.
    """

    topology: Topology
    line: CommandLine
    callers: Mapping[str, str]
    _plans: dict[Placement, LaunchPlan | str] = field(default_factory=dict)
    _problems: dict[Libraries, str] = field(default_factory=dict)
    _refused: dict[str, list[Configuration]] = field(default_factory=dict)

    def keep(self, configurations: Sequence[Configuration]) -> list[Configuration]:
        """Those that fit, each kind of start once, with what the planner makes of them."""
        kept: dict[Hashable, Configuration] = {}
        for one in configurations:
            try:
                options = self.options(one)
            except UsageError as error:
                self._refuse(one, str(error))
                continue
            plan = self._plan(options.placement)
            problem = plan if isinstance(plan, str) else self._problem(options.libraries) or self._no_binder(options)
            if problem or isinstance(plan, str):
                self._refuse(one, problem)
                continue
            kind = (_kind(plan), options.libraries, options.optimization, options.running.task_manager)
            if kind in kept:
                self._refuse(one, f"the planner makes the same of it as of {kept[kind]}")
                continue
            threads = min(instance.threads for instance in plan.instances)
            kept[kind] = replace(one, instances=len(plan.instances), threads=threads)
        return _labelled(list(kept.values()))

    def decisions(self) -> list[Decision]:
        """One for each reason."""
        found = []
        for reason, members in self._refused.items():
            what = f"not tried: {members[0]}" + (f" and {len(members) - 1} more" if len(members) > 1 else "")
            found.append(Decision(what, False, reason, {"configurations": float(len(members))}))
        return found

    def options(self, configuration: Configuration) -> LaunchOptions:
        """The fixed flags with the configuration's own, validated as on a command line."""
        values = argparse.Namespace(**vars(self.line.values))
        given = set(self.line.given)
        for name, text in configuration.settings:
            if text in {"", OFF}:
                continue
            flag = BY_NAME[name]
            value: object = True if text == ON else int(text) if flag.kind == "integer" else text
            setattr(values, flag.key, value)
            given.add(name)
        return launch_options(CommandLine(values, frozenset(given), self.line.program, ()))

    def _plan(self, placement: Placement) -> LaunchPlan | str:
        """The plan, or why there is none."""
        if placement not in self._plans:
            try:
                self._plans[placement] = make_plan(self.topology, placement)
            except UsageError as error:
                self._plans[placement] = str(error)
        return self._plans[placement]

    def _problem(self, libraries: Libraries) -> str:
        """Why these libraries would not be what runs: the launcher goes on without a missing one, a search must not."""
        if libraries not in self._problems:
            chosen = choose_preload(libraries, self.callers)
            problem = "; ".join(chosen.warnings)
            for name in ("tcmalloc", "jemalloc"):
                if preloaded(name, self.callers) and libraries.allocator not in {"auto", name}:
                    problem = f"LD_PRELOAD already holds {name}, which wins over --memory-allocator; unset it"
            if libraries.allocator == "keep" and self.callers.get(KEEP_VARIABLE):
                problem = f"{KEEP_VARIABLE} is set and wins over --memory-allocator keep; unset it"
            self._problems[libraries] = problem
        return self._problems[libraries]

    def _no_binder(self, options: LaunchOptions) -> str:
        """The launcher binds by itself where the program that should is missing: another start under its name."""
        program = options.running.task_manager
        asked = program in {"numactl", "taskset"}
        return f"--multi-task-manager {program}: no such program" if asked and shutil.which(program) is None else ""

    def _refuse(self, one: Configuration, reason: str) -> None:
        # Many sizes fail for the same reason with other numbers in it: the flag that it names tells them apart.
        kind = next((known for known in self._refused if _stem(known) == _stem(reason)), reason)
        self._refused.setdefault(kind, []).append(one)


def _labelled(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Each with a label of the flags in which they differ."""
    values: dict[str, set[str]] = {}
    for one in configurations:
        for flag, value in one.settings:
            values.setdefault(flag, set()).add(value)
    return [
        replace(one, label=str(Configuration(tuple(pair for pair in one.settings if len(values[pair[0]]) > 1))))
        if any(len(found) > 1 for found in values.values())
        else one
        for one in configurations
    ]


def _kind(plan: LaunchPlan) -> Hashable:
    return tuple((one.cpus, one.memory_policy, one.memory_nodes) for one in plan.instances)


def _stem(reason: str) -> str:
    """A refusal without its numbers."""
    return "".join(letter for letter in reason.split("(", maxsplit=1)[0] if not letter.isdigit())

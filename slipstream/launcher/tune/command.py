# SPDX-License-Identifier: Apache-2.0
"""`slipstream tune`: request, machine, space, search, verdict, files. The other files do the work."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slipstream.decision import Decision, log
from slipstream.errors import UsageError
from slipstream.launcher import environment
from slipstream.launcher.options import LaunchOptions, launch_options
from slipstream.launcher.plan import make_plan
from slipstream.launcher.preload import BestAllocator
from slipstream.launcher.tune.hypertune_file import HypertuneFile, read_hypertune_file
from slipstream.launcher.tune.launch_trial import LaunchedRunner
from slipstream.launcher.tune.offer import Offer, read_offer
from slipstream.launcher.tune.record import Record, RecordedRunner
from slipstream.launcher.tune.request import COMMAND, Request, parse_request
from slipstream.launcher.tune.screening import Screening
from slipstream.launcher.tune.search import Search, Settings
from slipstream.launcher.tune.show import result
from slipstream.launcher.tune.show.progress import progress
from slipstream.launcher.tune.space import SHORT, Axis, asked_axes, enumerate_space
from slipstream.launcher.tune.trial import Configuration
from slipstream.launcher.tune.verdict import judge
from slipstream.runtime.topology import Topology, read_topology, summary

NOTHING_FOUND = 1
INTERRUPTED = 128 + signal.SIGINT


@dataclass(frozen=True)
class Plan:
    """Everything that is settled before the first run."""

    candidates: list[Configuration]
    settings: Settings
    output: str
    decisions: list[Decision]


def main(words: Sequence[str]) -> int:
    """Search; 0 with a winner, 1 without one. Raises UsageError and MissingDependency."""
    request = parse_request(words)
    options = launch_options(request.line)
    for note in options.notes:
        _say(f"note: {note}")
    environ = environment.callers_environment()
    topology = _topology(options)
    plan = prepare(request, options, topology, environ)
    if options.plan_form:
        _print_space(plan, topology)
        return 0
    _warn(options, topology, environ)
    return _search(request, plan, topology)


def prepare(request: Request, options: LaunchOptions, topology: Topology, environ: Mapping[str, str]) -> Plan:
    """The candidates and how to search among them."""
    offer, decisions = read_offer(topology, options, environ, best_allocator=_best_allocator(request, options))
    axes, old = _axes(request, options, offer)
    points, sampled = enumerate_space(axes, shuffled=old is not None and old.strategy == "random")
    screening = Screening(topology, request.line, environ)
    candidates = screening.keep(points)
    decisions = [*_concerning(decisions, request), *sampled, *screening.decisions()]
    if not candidates:
        reasons = "; ".join(decision.reason for decision in screening.decisions())
        raise UsageError(f"--space: no configuration of it can run here: {reasons}")
    settings = Settings(
        budget=request.budget,
        repeats=request.repeats,
        trials=request.trials if request.trials is not None or old is None else old.trials,
        timeout=request.trial_timeout,
        predict=old is None,
        memory_mb=_free_memory(),
    )
    output = request.output or (old.output if old else "") or time.strftime("slipstream-tune-%Y%m%d-%H%M%S")
    return Plan(candidates, settings, output, decisions)


def _best_allocator(request: Request, options: LaunchOptions) -> BestAllocator:
    """What plain ipexrun would choose by; no measuring where it would not measure, or nobody asks."""
    said = "memory-allocator" in request.line.given or any("allocator" in text for text in request.spaces)
    if said or request.conf_file or options.topology or options.program.kind == "executable":
        return lambda candidates: ("default", "")
    from slipstream.launcher.process.allocator_probe import best_allocator

    return best_allocator


def _axes(request: Request, options: LaunchOptions, offer: Offer) -> tuple[list[Axis], HypertuneFile | None]:
    if not request.conf_file:
        return asked_axes(request.spaces, offer, request.line.given, optimizing=options.optimization.on), None
    if request.spaces:
        raise UsageError(f"--space {request.spaces[0]}: --conf-file holds a space already; give one of the two")
    old = read_hypertune_file(request.conf_file, offer)
    for note in old.notes:
        _say(f"note: --conf-file {request.conf_file}: {note}")
    for axis in old.axes:
        for flag, value in axis.settings[0]:
            if flag in request.line.given and (value or len(axis.settings) > 1):
                raise UsageError(f"--conf-file {request.conf_file}: it sets {axis.name}, as --{flag} does; give one of the two")
    return list(old.axes), old


def _concerning(decisions: Iterable[Decision], request: Request) -> list[Decision]:
    """Those about something that is not fixed by a flag anyway."""
    kinds = [(decision, decision.what.partition(":")[0]) for decision in decisions]
    return [decision for decision, kind in kinds if SHORT.get(kind, kind) not in request.line.given]


def _search(request: Request, plan: Plan, topology: Topology) -> int:
    about = {"program": list(request.program), "fixed": list(request.fixed), "machine": summary(topology)}
    record = Record(plan.output, about, resume=request.resume)
    for note in record.notes:
        _say(f"warning: {note}")
    display = progress(budget=plan.settings.budget, known=record.count)
    launched = LaunchedRunner(request.fixed, request.program, f"{plan.output}/runs", tick=display.tick)
    runner = RecordedRunner(launched, record)
    search = Search(plan.candidates, request.objective, plan.settings, runner, display)
    # Being told to end is an interruption like Ctrl-C: the run in progress is stopped, what is known is reported.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    interrupted = False
    display.start()
    try:
        search.run()
    except KeyboardInterrupt:
        interrupted = True
        search.course.stopped = "interrupted"
    finally:
        display.stop()
        signal.signal(signal.SIGTERM, before)
        record.close()
    code = _conclude(request, plan, search, {**about, "objective": str(request.objective), "runs": search.course.runs})
    if interrupted:
        _say(f"interrupted; go on with: {COMMAND} --resume --output {plan.output} …")
    return INTERRUPTED if interrupted else code


def _conclude(request: Request, plan: Plan, search: Search, about: Mapping[str, Any]) -> int:
    """Print and write what was found."""
    course = search.course
    verdict = judge(course, plan.candidates[0])
    decisions = [*plan.decisions, *course.decisions, *verdict.decisions]
    for decision in decisions:
        log.add(decision)
    command = result.command_line(request.fixed, verdict.winner.configuration, request.program) if verdict.winner else ""
    result.write_files(plan.output, verdict, command, decisions, about)
    result.print_table(verdict, decisions)
    if verdict.winner is None:
        _say(f"error: no winner; {verdict.decisions[0].reason}; what each run printed is in {plan.output}/runs")
        return NOTHING_FOUND
    sys.stdout.write(f"\n{course.runs} runs, everything in {plan.output}; the winning command line:\n\n{command}\n")
    return 0


def _topology(options: LaunchOptions) -> Topology:
    if options.topology:
        from slipstream.launcher.topology_file import load_topology

        return load_topology(options.topology)
    return read_topology()


def _print_space(plan: Plan, topology: Topology) -> None:
    """For --dry-run: what would be tried, and what not."""
    sys.stdout.write(f"machine: {summary(topology)}\n{len(plan.candidates)} configurations, the plain start first\n")
    for one in plan.candidates:
        sys.stdout.write(f"  {one}  ({one.instances} × {one.threads} threads)\n")
    for decision in plan.decisions:
        sys.stdout.write(f"{decision.what}: {decision.reason}\n")


def _warn(options: LaunchOptions, topology: Topology, environ: Mapping[str, str]) -> None:
    """Settings in the environment that speak into every configuration."""
    instance = make_plan(topology, options.placement).instances[0]
    for sentence in environment.overridden(instance, environ):
        _say(f"warning: {sentence}")


def _free_memory() -> float:
    import psutil

    return float(psutil.virtual_memory().available) / 1e6


def _say(text: str) -> None:
    sys.stderr.write(f"{COMMAND}: {text}\n")
    sys.stderr.flush()

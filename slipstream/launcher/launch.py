# SPDX-License-Identifier: Apache-2.0
"""From options to an exit code: topology, plan, environment, processes, report. The other files do the work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from io import FileIO
from typing import TYPE_CHECKING, Any

from slipstream import env
from slipstream.errors import PlanError
from slipstream.launcher import environment, report
from slipstream.launcher.options import LaunchOptions, Placement
from slipstream.launcher.plan import Instance, LaunchPlan, make_plan
from slipstream.launcher.preload import BestAllocator, Preload, choose_preload
from slipstream.launcher.process import binder
from slipstream.runtime.cpu_list import format_cpu_list
from slipstream.runtime.topology import Topology, read_topology, restrict

if TYPE_CHECKING:
    from slipstream.launcher.spawn import Job


def launch(options: LaunchOptions, *, command: str) -> int:
    """Run what ``options`` ask for, or print its plan."""

    def say(text: str) -> None:
        sys.stderr.write(f"{command}: {text}\n")
        sys.stderr.flush()

    for note in options.notes:
        say(f"note: {note}")
    if options.compare:
        from slipstream.launcher.codeless.compare import compare

        return compare(options, command=command, say=say)
    environ = environment.callers_environment()
    topology = machine(options, environ)
    plan = full_plan(options, topology, environ, say)
    if options.plan_form:
        _print_plan(plan, topology, options.plan_form)
        return 0
    report.check_report("-" if options.optimization.decides_only else options.running.report)
    _check_still_fits(plan, topology)
    for warning in plan.warnings:
        say(f"warning: {warning}")
    return _run(plan, options, environ, say, command)


def machine(options: LaunchOptions, environ: Mapping[str, str]) -> Topology:
    if options.topology:
        from slipstream.launcher.topology_file import load_topology

        return load_topology(options.topology)
    return _share_of_rank(read_topology(), environ)


def _share_of_rank(topology: Topology, environ: Mapping[str, str]) -> Topology:
    """Under somebody else's torchrun, which binds nobody, each local rank takes an even part of the machine."""
    ranks, rank = environ.get("LOCAL_WORLD_SIZE", ""), environ.get("LOCAL_RANK", "")
    if env.PLAN in environ or not (ranks.isdigit() and rank.isdigit() and int(rank) < int(ranks)):
        return topology
    shares = make_plan(
        topology, Placement(ninstances=int(ranks), use_logical_cores=True, use_e_cores=True, memory_policy="none")
    )
    reason = f"for the other ranks: LOCAL_RANK={rank} of LOCAL_WORLD_SIZE={ranks} is set"
    return restrict(topology, cpus=shares.instances[int(rank)].cpus, reason=reason)


def libraries(options: LaunchOptions, environ: Mapping[str, str], say: Callable[[str], None]) -> Preload:
    """What to preload."""
    return choose_preload(options.libraries, environ, best_allocator=_best_allocator(options, say))


def full_plan(
    options: LaunchOptions,
    topology: Topology,
    environ: Mapping[str, str],
    say: Callable[[str], None],
    *,
    preload: Preload | None = None,
) -> LaunchPlan:
    """Instances with environment and argv. ``preload``: what was chosen for another plan, to share it."""
    if options.plan_from:
        return report.plan_from_file(options.plan_from)
    preload = preload or libraries(options, environ, say)
    plan, variables = _placed(options, topology)
    preload = replace(preload, variables=(*preload.variables, *variables))
    words, warnings = binder.external_binder(options.running.task_manager, plan.instances)
    around = environment.Surroundings(environ, preload, words, buffered=not _needs_pipes(plan, options))
    instances = tuple(environment.equip(one, options, around) for one in plan.instances)
    more = (*preload.warnings, *warnings, *environment.overridden(instances[0], environ))
    plan = replace(plan, instances=instances, warnings=(*plan.warnings, *more), decisions=preload.decisions)
    if options.distributed.nnodes:
        from slipstream.launcher import distributed

        plan = replace(plan, command=distributed.start_command(plan, options.distributed))
    return plan


def _placed(options: LaunchOptions, topology: Topology) -> tuple[LaunchPlan, tuple[tuple[str, str, str], ...]]:
    """The plan of instances, or of this machine's ranks with the variables that all of them need."""
    wanted = options.distributed
    if not wanted.nnodes:
        return make_plan(topology, options.placement), ()
    from slipstream.launcher import distributed

    ranks = distributed.make_rank_plan(topology, options.placement, wanted, workers=distributed.ccl_workers(wanted))
    return ranks.plan, ranks.variables


def _best_allocator(options: LaunchOptions, say: Callable[[str], None]) -> BestAllocator | None:
    """What `auto` chooses by: a measurement; for a plan only what was measured before, since it starts nothing."""
    if options.program.kind == "executable" or options.topology:
        return None

    def choose(candidates: Mapping[str, Mapping[str, str]]) -> tuple[str, str]:
        from slipstream.launcher.process import allocator_probe  # only where there is a choice

        if options.plan_form:
            return allocator_probe.known_allocator(candidates)
        return allocator_probe.best_allocator(candidates, say)

    return choose


def _print_plan(plan: LaunchPlan, topology: Topology, form: str) -> None:
    if form == "json":
        decisions = [decision.as_dict() for decision in plan.decisions]
        sys.stdout.write(json.dumps({**report.plan_as_dict(plan), "decisions": decisions}, indent=1) + "\n")
    else:
        sys.stdout.write(report.plan_as_text(plan, topology))


def _check_still_fits(plan: LaunchPlan, topology: Topology) -> None:
    """A plan from a file may be of another machine, or of another affinity mask."""
    usable = set(topology.numbers())
    for one in plan.instances:
        beyond = set(one.cpus) - usable
        if beyond:
            raise PlanError(
                f"--plan-from instance {one.index}: CPU {format_cpu_list(beyond)} may not be used here; "
                f"usable: {format_cpu_list(usable)}"
            )


def _needs_pipes(plan: LaunchPlan, options: LaunchOptions) -> bool:
    """One instance keeps the launcher's own terminal, unless its output is wanted for something."""
    running = options.running
    wanted = (running.log_dir, running.quiet, running.metrics, running.report, running.live == "on")
    return len(plan.instances) > 1 or any(wanted)


def binds_itself(plan: LaunchPlan, options: LaunchOptions) -> bool:
    """By system calls, unless nobody is to bind, or a program before the script's own command does."""
    asked = options.running.task_manager
    by_program = asked in {"numactl", "taskset"} and asked in plan.instances[0].argv[0]
    return asked != "none" and not by_program


def _run(plan: LaunchPlan, options: LaunchOptions, environ: Mapping[str, str], say: Callable[[str], None], command: str) -> int:
    from slipstream.launcher.observe.watch import CHECK_SECONDS, Watch
    from slipstream.launcher.spawn import Supervisor, Tick

    watch = Watch(plan, options.running, piped=_needs_pipes(plan, options), say=say, command=command)
    if watch.logs is not None:
        watch.logs.note(report.plan_as_text(plan, None))
    inspecting = options.optimization.decides_only
    wants_report = bool(options.running.report) or inspecting
    with _temporary_folder(needed=wants_report or bool(plan.command)) as folder:
        instances, sources = _starts(plan, folder, piped=_needs_pipes(plan, options))
        supervisor = Supervisor(
            instances,
            options.running,
            environ={**environ, env.REPORT_DIR: folder} if wants_report else environ,
            router=watch.router(),
            say=watch.say,
            bind=binds_itself(plan, options),
            ticks=(Tick(CHECK_SECONDS, watch.check), Tick(1.0, watch.sample)),
            sources=sources,
        )
        watch.start()
        try:
            code = supervisor.run()
        finally:
            watch.stop(supervisor.jobs)
        if wants_report:
            found = watch.findings(supervisor.jobs)
            merged = report.merged_report(plan, folder, instances=ends(supervisor.jobs, plan), extra=found)
            if inspecting:
                report.print_pieces(merged, sys.stderr)
            if options.running.report:
                report.write_report(merged, options.running.report)
        elif len(plan.instances) > 1:
            _sum_up(watch.metrics.as_dicts(), say)
    return code


def _temporary_folder(*, needed: bool) -> AbstractContextManager[str]:
    """Its name; most runs need none, and start without one where nothing can be written."""
    if not needed:
        return nullcontext("")
    import tempfile

    return tempfile.TemporaryDirectory(prefix="slipstream-", ignore_cleanup_errors=True)


def _starts(plan: LaunchPlan, folder: str, *, piped: bool) -> tuple[Sequence[Instance], Sequence[tuple[FileIO, int, int]]]:
    """What to start, and pipes to read besides: for ranks, their starter and a pipe for each."""
    if not plan.command:
        return plan.instances, ()
    from slipstream.launcher import distributed
    from slipstream.launcher.process.rank_streams import open_pipes

    starter = distributed.as_one_instance(plan)
    if not piped:
        return (starter,), ()
    variables = {**starter.environment, env.RANK_STREAMS: folder}
    return (replace(starter, environment=variables),), open_pipes(folder, len(plan.instances))


def ends(jobs: Sequence[Job], plan: LaunchPlan) -> list[dict[str, Any]]:
    """How each instance ended, for the report; of ranks, what their starter said."""
    found: list[dict[str, Any]] = [
        {
            "index": job.instance.index,
            "pid": job.process.pid,
            "argv": list(job.instance.argv),
            "exit_code": job.code,
            "seconds": round(job.seconds, 3),
            "decisions": [decision.as_dict() for decision in job.decisions],
        }
        for job in jobs
    ]
    if plan.command:
        return [{**found[0], "index": rank.index, "argv": list(rank.argv)} for rank in plan.instances]
    return found


def _sum_up(figures: Sequence[Mapping[str, Any]], say: Callable[[str], None]) -> None:
    """One line for each figure that more than one instance printed."""
    for figure in figures:
        if len(figure["instances"]) > 1:
            unit = f" {figure['unit']}" if figure["unit"] else ""
            say(
                f"{figure['name']}: {figure['how']} over {len(figure['instances'])} instances "
                f"{figure['total']:.6g}{unit}, spread {figure['spread_percent']:.1f} %"
            )

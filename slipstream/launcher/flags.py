# SPDX-License-Identifier: Apache-2.0
"""Every flag of ipexrun as a row of one table: name, kind, default, meaning. No decisions: `options.py`.

Each name may be written with dashes or underscores. Spellings of older launchers: `legacy.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """One flag. ``kind`` is switch, text, texts (may be repeated), integer, count (1 unless given), number or choice."""

    name: str
    kind: str
    meaning: str
    default: object = None
    choices: tuple[str, ...] = ()
    value: str = ""
    short: str = ""

    @property
    def takes_value(self) -> bool:
        return self.kind != "switch"

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")


def switch(name: str, meaning: str, *, short: str = "") -> Flag:
    return Flag(name, "switch", meaning, False, short=short)


def choice(name: str, choices: Sequence[str], meaning: str, *, default: str | None = None) -> Flag:
    return Flag(name, "choice", meaning, default if default is not None else choices[0], tuple(choices))


PROGRAM = (
    switch("module", "PROGRAM is a module name, run as python -m does", short="m"),
    switch("no-python", "PROGRAM is any executable"),
)
CORES = (
    Flag("ninstances", "integer", "how many copies of the program to start; 0: as many as fit, or one", 0, value="N"),
    Flag(
        "ncores-per-instance",
        "integer",
        "cores of each instance; 0: even split, remainder unused; -1: even split, remainder to the first instances",
        0,
        value="N",
    ),
    Flag("cores-list", "text", "use exactly these CPUs (0-3,8), SMT siblings and E-cores included", "", value="LIST"),
    Flag("nodes-list", "text", "use the CPUs of these NUMA nodes (0,2-3)", "", value="LIST"),
    Flag("sockets-list", "text", "use the CPUs of these sockets, each of which may have several nodes", "", value="LIST"),
    switch("use-logical-cores", "use both SMT siblings of a core; an instance always gets whole cores"),
    switch("use-e-cores", "use efficient cores of a hybrid processor too"),
    choice("strategy", ("scatter", "close"), "where fewer instances than fit go: over all nodes, or side by side"),
    switch("bind-numa-node", "no instance crosses a NUMA node (the same as --group-by node)"),
    choice("group-by", ("none", "l3", "node", "socket"), "no instance crosses one of these"),
    Flag("instance-idx", "text", "start only these instances of the plan (0,2-3); -1: all", "", value="LIST"),
    switch("latency-mode", "four cores an instance, as many instances as fit without crossing a node"),
    switch("throughput-mode", "one instance for each NUMA node"),
)
BINDING = (
    choice(
        "multi-task-manager",
        ("auto", "none", "numactl", "taskset"),
        "who binds: auto, the launcher itself by system calls; none, nobody; or one of these programs",
    ),
    choice(
        "memory-policy",
        ("auto", "bind", "preferred", "interleave", "local", "hbm", "none"),
        "where memory comes from: auto prefers the instance's node, or interleaves over its nodes",
    ),
)
LIBRARIES = (
    choice(
        "memory-allocator",
        ("auto", "default", "keep", "tcmalloc", "jemalloc"),
        "malloc of the instances: auto, what measures fastest here; default, the system's; keep, the system's, told to "
        "keep freed blocks; or one to preload",
    ),
    choice("omp-runtime", ("auto", "default", "intel"), "OpenMP runtime: torch's own, or Intel's to preload"),
    switch("benchmark", "jemalloc gives nothing back to the system: fastest, and may run out of memory"),
    switch("preload-children", "what is preloaded stays preloaded in the processes that the script starts"),
)
OPTIMIZATION = (
    switch("auto-ipex", "optimize the script's models at their first inference call, without changing the script"),
    choice("dtype", ("float32", "bfloat16", "float16"), "compute in this type under --auto-ipex; float16 where the CPU has it"),
    switch("auto-ipex-verbose", "print on stderr what is optimized and why, as it is decided"),
    switch("disable-ipex-graph-mode", "no graph capture under --auto-ipex"),
    switch("early-graphs", "capture graphs at a model's third call, not only once they can be expected to pay: for services"),
    choice(
        "float32-matmul-precision",
        ("script", "highest", "high", "medium"),
        "float32 products under --auto-ipex: as the script sets it, or forced",
    ),
    Flag("budget", "number", "seconds that --auto-ipex may spend on preparing in one process", None, value="SECONDS"),
    switch("low-memory", "under --auto-ipex, keep no second copy of the weights"),
    switch("no-children", "--auto-ipex is for the script alone, not for the Python programs that it starts"),
    Flag(
        "compare",
        "count",
        "run the script plainly and under --auto-ipex in turn, N times each, and print the difference; exit code 1 where "
        "the outputs differ",
        0,
        value="N",
    ),
    Flag("tolerance", "text", "for --compare: how far printed numbers may differ, relatively (by --dtype)", "", value="X"),
)
PLAN = (
    switch("dry-run", "print the plan and start nothing"),
    choice("plan", ("none", "text", "json"), "print the plan in this form and start nothing"),
    Flag("plan-from", "text", "run the plan of this JSON file, perhaps edited, instead of making one", "", value="FILE"),
    Flag("topology", "text", "plan for the machine of this file (lscpu --all --extended, or a /sys tree)", "", value="FILE"),
)
RUN = (
    Flag("env", "texts", "set a variable for the instances; may be repeated", (), value="NAME=VALUE"),
    choice("on-failure", ("kill", "continue"), "when an instance fails: stop the others, or let them end"),
    Flag("timeout", "number", "stop everything after this many seconds (exit code 124)", None, value="SECONDS"),
    Flag("grace", "number", "seconds between asking an instance to stop and killing it", 10.0, value="SECONDS"),
    Flag("log-dir", "text", "folder for one log file an instance and one of the launcher", "", value="FOLDER"),
    Flag("log-file-prefix", "text", "first part of the log files' names", "run", value="NAME"),
    switch("quiet", "nothing that the instances print reaches the console"),
    choice("live", ("auto", "on", "off"), "a live table: with several instances on a terminal, always, never"),
    Flag(
        "metric",
        "texts",
        "pattern of a figure that the script prints, with groups name and value; may be repeated",
        (),
        value="REGEX",
    ),
    Flag("report", "text", "report at the end: - as text on stdout, or FILE.json, FILE.html, FILE.txt", "", value="FILE"),
)
DISTRIBUTED = (
    Flag("nnodes", "integer", "more than 0 starts ranks of one job, on this many machines", 0, value="N"),
    Flag("nprocs-per-node", "integer", "ranks on each machine; 0: one for each NUMA node", 0, value="N"),
    choice("launcher", ("torchrun", "mpi"), "what starts the ranks: torch's elastic launcher, or mpiexec"),
    Flag("node-rank", "integer", "which machine this is; -1: its place in the hostfile", -1, value="N"),
    Flag("hostfile", "text", "file with a host on each line; the first is the master", "hostfile", value="FILE"),
    Flag("master-addr", "text", "address of the first machine", "127.0.0.1", value="ADDRESS"),
    Flag("master-port", "integer", "port on the first machine", 29500, value="PORT"),
    Flag(
        "ccl-worker-count", "integer", "cores of each rank kept for oneCCL's workers, where oneCCL is installed", 4, value="N"
    ),
    switch("logical-cores-for-ccl", "oneCCL's workers get SMT siblings instead of cores"),
    Flag("extra-mpi-params", "text", "more arguments for mpiexec, as one quoted text", "", value="TEXT"),
)
GROUPS: dict[str, tuple[Flag, ...]] = {
    "program": PROGRAM,
    "instances and cores": CORES,
    "binding": BINDING,
    "preloaded libraries": LIBRARIES,
    "codeless optimization": OPTIMIZATION,
    "planning": PLAN,
    "running": RUN,
    "several ranks or machines": DISTRIBUTED,
}
BY_NAME: dict[str, Flag] = {flag.name: flag for group in GROUPS.values() for flag in group}

# SPDX-License-Identifier: Apache-2.0
"""The checks on the machine of two nodes: node 0 has CPUs 0-3, node 1 CPUs 4-7; 0 and 1 are siblings, 2 and 3, and so on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from launching import (
    OBSERVE,
    Run,
    expect,
    expect_error,
    expect_in,
    expect_instances,
    launch,
    left_out,
    plan,
    planned_cpus,
)

CPU = Path("/sys/devices/system/cpu")
NODE = Path("/sys/devices/system/node")
CGROUP = Path("/sys/fs/cgroup")
PAGES_ARE_CHECKED_AFTER = "15"
"""Seconds after which the launcher has looked at a running instance's pages more than once."""

BEYOND_THE_NODE = 120
LEAST_TOLD = 15
"""Megabytes: a twentieth of what was touched by then is told of, and that may be before all of it was."""

WEIGHTS_MEGABYTES = 32

NODE_0 = "CPUs 0,2, 2 threads, prefer:0, pages on node 0"
NODE_1 = "CPUs 4,6, 2 threads, prefer:1, pages on node 1"


def the_machine_itself() -> None:
    expect("machine: CPUs of node 0", "0-3", (NODE / "node0/cpulist").read_text().strip())
    expect("machine: CPUs of node 1", "4-7", (NODE / "node1/cpulist").read_text().strip())
    expect("machine: nodes with memory", "0-1", (NODE / "has_memory").read_text().strip())
    pairs = sorted({(CPU / f"cpu{number}/topology/thread_siblings_list").read_text().strip() for number in range(8)})
    expect("machine: siblings", "0-1 2-3 4-5 6-7", " ".join(pairs))


def plans() -> None:
    whole = plan()
    expect("plan: one instance, a CPU of each core", "0,2,4,6", planned_cpus(whole))
    expect("plan: siblings left out by default", "1,3,5,7", left_out(whole, "SMT sibling"))
    for flags, cpus in (
        ("--ninstances 2", "0,2 | 4,6"),
        ("--ninstances 4", "0 | 2 | 4 | 6"),
        ("--ncores-per-instance 1", "0 | 2 | 4 | 6"),
        ("--ninstances 2 --ncores-per-instance 1", "0 | 4"),
        ("--ninstances 2 --ncores-per-instance 1 --strategy close", "0 | 2"),
        ("--ninstances 3 --bind-numa-node", "0,2 | 4 | 6"),
        ("--ninstances 3 --ncores-per-instance -1 --bind-numa-node", "0,2 | 4 | 6"),
        ("--nodes-list 1 --ninstances 2", "4 | 6"),
        ("--cores-list 1,5 --ninstances 2", "1 | 5"),
        ("--ninstances 3 --use-logical-cores", "0,1 | 2,3 | 4,5"),
        ("--ninstances 3 --use-logical-cores --bind-numa-node", "0,1,2,3 | 4,5 | 6,7"),
        ("--throughput-mode", "0,2 | 4,6"),
        ("--throughput-mode --nodes-list 1", "4,6"),
        ("--latency-mode", "0,2 | 4,6"),
        ("--ninstances 2 --group-by l3", "0,2 | 4,6"),
        ("--ninstances 2 --instance-idx 1", "4,6"),
    ):
        expect(f"plan {flags}", cpus, planned_cpus(plan(*flags.split())))


def every_way_to_read_the_machine() -> None:
    own = plan("--ninstances", "2")["instances"]
    with tempfile.NamedTemporaryFile("w") as file:
        subprocess.run(["lscpu", "--all", "--extended"], stdout=file, check=True)
        texts = plan("--ninstances", "2", "--topology", file.name)
    expect("--topology with lscpu's text of this machine", as_text(own), as_text(texts["instances"]))
    expect("--topology /sys", as_text(own), as_text(plan("--ninstances", "2", "--topology", "/sys")["instances"]))


def as_text(instances: Sequence[dict[str, object]]) -> str:
    return " | ".join(f"CPUs {one['cpus']} nodes {one['nodes']}" for one in instances)


def errors() -> None:
    for flags, part in (
        ("--ninstances 5", "give at most 4"),
        ("--ncores-per-instance 3 --bind-numa-node", "give at most 2"),
        ("--nodes-list 2", "nodes with CPUs: 0-1"),
        ("--cores-list 8", "no CPU 8"),
        ("--memory-policy hbm", "no memory-only node"),
    ):
        expect_error(flags, launch(*flags.split()), part)


def an_instance_on_each_node() -> None:
    # It lives long enough for the launcher to look at its threads and pages.
    run = launch("--ninstances", "2", options=("--seconds", "2"))
    expect_instances("--ninstances 2", run, [NODE_0, NODE_1])
    expect("--ninstances 2: no warning", "", run.stderr)


def one_node() -> None:
    expect_instances("--nodes-list 1", launch("--nodes-list", "1"), [NODE_1])
    status = launch("--nodes-list", "1", "--no-python", program=("grep", "Cpus_allowed_list", "/proc/self/status"))
    expect("--nodes-list 1 --no-python grep … /proc/self/status", "Cpus_allowed_list: 4,6", " ".join(status.stdout.split()))


def all_cores() -> None:
    expect_instances("no flags", launch(), ["CPUs 0,2,4,6, 4 threads, interleave:0-1, pages on nodes 0,1 evenly"])


def siblings_too() -> None:
    run = launch("--use-logical-cores")
    expect_instances("--use-logical-cores", run, ["CPUs 0-7, 8 threads, interleave:0-1, pages on nodes 0,1 evenly"])
    run = launch("--use-logical-cores", "--ninstances", "2")
    texts = ["CPUs 0-3, 4 threads, prefer:0, pages on node 0", "CPUs 4-7, 4 threads, prefer:1, pages on node 1"]
    expect_instances("--use-logical-cores --ninstances 2", run, texts)


def bound_to_nodes() -> None:
    run = launch("--bind-numa-node", "--ninstances", "3")
    texts = [NODE_0, "CPUs 4, 1 thread, prefer:1, pages on node 1", "CPUs 6, 1 thread, prefer:1, pages on node 1"]
    expect_instances("--bind-numa-node --ninstances 3", run, texts)


def memory_policies() -> None:
    for policy, text in (
        ("bind", "CPUs 4,6, 2 threads, bind:1, pages on node 1"),
        ("preferred", NODE_1),
        ("interleave", "CPUs 4,6, 2 threads, interleave:1, pages on node 1"),
        ("local", "CPUs 4,6, 2 threads, local, pages on node 1"),
        ("none", "CPUs 4,6, 2 threads, default, pages on node 1"),
    ):
        run = launch("--nodes-list", "1", "--memory-policy", policy)
        expect_instances(f"--nodes-list 1 --memory-policy {policy}", run, [text])
    run = launch("--memory-policy", "bind")
    expect("--memory-policy bind on both nodes", "CPUs 0,2,4,6, bind:0-1", held(run))


def held(run: Run) -> str:
    """CPUs and policy without the place of pages: that of `bind` to two nodes depends on where the process runs."""
    return "; ".join(f"CPUs {seen['process']['cpus']}, {seen['process']['policy']}" for seen in run.seen.values())


def edited_plan() -> None:
    """CPUs of one node, memory of the other: pages lie where the policy says, not where they were first touched."""
    with tempfile.TemporaryDirectory() as folder:
        made = launch("--nodes-list", "0", "--plan", "json", program=(OBSERVE, folder))
        content = json.loads(made.stdout)
        content["instances"][0].update(memory_policy="bind", memory_nodes=[1])
        file = Path(folder) / "plan"
        file.write_text(json.dumps(content))
        ran = launch("--plan-from", str(file), program=())
        seen = {int(one.stem): json.loads(one.read_text()) for one in Path(folder).glob("*.json")}
    run = replace(ran, seen=seen)
    expect_instances("--plan-from, memory on the other node", run, ["CPUs 0,2, 2 threads, bind:1, pages on node 1"])


def callers_mask() -> None:
    text = "CPUs 5,7, 2 threads, prefer:1, pages on node 1"
    expect_instances("taskset -c 5,7 ipexrun", launch(before=("taskset", "-c", "5,7")), [text])
    run = launch(prepare=lambda: os.sched_setaffinity(0, {5, 7}))
    expect_instances("sched_setaffinity {5, 7}, then ipexrun", run, [text])
    masked = plan(before=("taskset", "-c", "5,7"))
    expect("taskset -c 5,7: left out for the mask", "0,1,2,3,4,6", left_out(masked, "affinity"))
    run = launch("--use-logical-cores", before=("taskset", "-c", "4-6"))
    expect_instances("taskset -c 4-6 ipexrun --use-logical-cores", run, ["CPUs 4-6, 3 threads, prefer:1, pages on node 1"])
    for mask, flags, part in (("0-1", "--ninstances 2", "give at most 1"), ("0-3", "--nodes-list 1", "node 1 has no CPU")):
        run = launch(*flags.split(), before=("taskset", "-c", mask))
        expect_error(f"taskset -c {mask} ipexrun {flags}", run, part)


@contextmanager
def offline(*cpus: int) -> Iterator[None]:
    for number in cpus:
        (CPU / f"cpu{number}/online").write_text("0")
    try:
        yield
    finally:
        for number in cpus:
            (CPU / f"cpu{number}/online").write_text("1")


def offline_cpus() -> None:
    with offline(6):
        expect("CPU 6 offline: left out", "6", left_out(plan(), "offline"))
        expect_instances("CPU 6 offline", launch("--nodes-list", "1"), ["CPUs 4,7, 2 threads, prefer:1, pages on node 1"])
        expect_error("CPU 6 offline, --cores-list 6", launch("--cores-list", "6"), "CPU 6 is offline")
    with offline(6, 7):
        expect("CPUs 6 and 7 offline", "0,2,4", planned_cpus(plan()))
        run = launch("--ninstances", "2", "--bind-numa-node")
        texts = [NODE_0, "CPUs 4, 1 thread, prefer:1, pages on node 1"]
        expect_instances("CPUs 6 and 7 offline, --ninstances 2 --bind-numa-node", run, texts)
        with tempfile.NamedTemporaryFile("w") as file:
            subprocess.run(["lscpu", "--all", "--extended"], stdout=file, check=True)
            expect("CPUs 6 and 7 offline, lscpu's text", "0,2,4", planned_cpus(plan("--topology", file.name)))
    with offline(4, 5, 6, 7):
        expect("node 1 without CPUs", "0,2", planned_cpus(plan()))
        expect("node 1 without CPUs, --throughput-mode", "0,2", planned_cpus(plan("--throughput-mode")))
        expect_error("node 1 without CPUs, --nodes-list 1", launch("--nodes-list", "1"), "nodes with CPUs: 0")
    expect("all CPUs online again", "0,2,4,6", planned_cpus(plan()))


@contextmanager
def control_group(**limits: str) -> Iterator[tuple[str, ...]]:
    """Words before a command that put it into a group of its own; `cpuset_cpus` is the file cpuset.cpus."""
    (CGROUP / "cgroup.subtree_control").write_text("+cpuset +cpu")
    group = CGROUP / "part"
    group.mkdir()
    for name, value in limits.items():
        (group / name.replace("_", ".")).write_text(value)
    try:
        yield ("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh")
    finally:
        group.rmdir()


def control_groups() -> None:
    with control_group(cpuset_cpus="4-7") as before:
        expect_instances("cpuset 4-7", launch(before=before), [NODE_1])
        expect("cpuset 4-7, two instances", "4 | 6", planned_cpus(plan("--ninstances", "2", before=before)))
    with control_group(cpuset_mems="1") as before:
        run = launch("--ninstances", "2", before=before)
        texts = [f"CPUs {cpus}, 2 threads, default, pages on node 1" for cpus in ("0,2", "4,6")]  # nothing is left to choose
        expect_instances("cpuset with memory of node 1 only", run, texts)
    with control_group(cpuset_cpus="4-7", cpuset_mems="0") as before:
        run = launch(before=before)
        expect_instances("cpuset 4-7 with memory of node 0 only", run, ["CPUs 4,6, 2 threads, default, pages on node 0"])
    with control_group(cpu_max="200000 100000") as before:
        made = plan(before=before)
        expect("quota of 2 CPUs: two cores of one node", "0,2", planned_cpus(made))
        expect("quota of 2 CPUs: left out for it", "4,6", left_out(made, "quota"))


def other_binders() -> None:
    run = launch("--multi-task-manager", "numactl", "--ninstances", "2")
    expect_instances("--multi-task-manager numactl", run, [NODE_0, NODE_1])
    run = launch("--multi-task-manager", "taskset", "--ninstances", "2")
    texts = [f"CPUs {cpus}, 2 threads, default, pages on node {node}" for node, cpus in enumerate(("0,2", "4,6"))]
    expect_instances("--multi-task-manager taskset", run, texts)
    run = launch("--nodes-list", "1", before=("/usr/bin/python3",), environ={"PATH": "/nowhere"})
    expect_instances("PATH without numactl, taskset and lscpu", run, [NODE_1])


def a_script_that_moves_itself() -> None:
    run = launch("--nodes-list", "0", options=("--seconds", "4", "--move-to", "0,2,5"))
    expect_in("a script that moves itself off its node is told of", "may leave the plan", run.stderr)


def a_node_that_is_full() -> None:
    """`preferred`, not `bind`: an instance that outgrows its node gets slower, not killed, and the launcher says so."""
    megabytes = str(free_megabytes(1) + BEYOND_THE_NODE)
    run = launch("--nodes-list", "1", options=("--megabytes", megabytes, "--seconds", PAGES_ARE_CHECKED_AFTER))
    pages = run.seen[0]["process"]["pages"] if run.seen else {}
    expect("an instance that outgrows its node: exit code, pages on both nodes", (0, ["0", "1"]), (run.code, sorted(pages)))
    told = re.search(r"lies elsewhere \(node 0 (\d+) MB", run.stderr)
    enough = told is not None and int(told[1]) >= LEAST_TOLD
    least = f"a warning that {LEAST_TOLD} MB or more lie on node 0"
    expect("an instance that outgrows its node is told of", least, least if enough else f"«{' '.join(run.stderr.split())}»")


def a_file_that_others_read_first() -> None:
    """Weights that a process maps privately stay where the page cache has them; that is nobody's mistake."""
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/weights"
        write = f"open({file!r}, 'wb').write(bytes({WEIGHTS_MEGABYTES} << 20))"
        subprocess.run(["numactl", "--membind=0", "python3", "-c", write], check=True)
        run = launch("--nodes-list", "1", options=("--map-file", file, "--seconds", PAGES_ARE_CHECKED_AFTER))
    expect_instances("a file mapped that lies on the other node", run, [NODE_1])
    expect("it is no reason for a warning", "", run.stderr)


def free_megabytes(node: int) -> int:
    for line in (NODE / f"node{node}/meminfo").read_text().splitlines():
        if "MemFree" in line:
            return int(line.split()[3]) // 1024
    raise RuntimeError(f"node {node} does not tell its free memory")


CHECKS = (
    the_machine_itself,
    plans,
    every_way_to_read_the_machine,
    errors,
    all_cores,
    an_instance_on_each_node,
    one_node,
    siblings_too,
    bound_to_nodes,
    memory_policies,
    edited_plan,
    callers_mask,
    offline_cpus,
    control_groups,
    other_binders,
    a_script_that_moves_itself,
    a_node_that_is_full,
    a_file_that_others_read_first,
)

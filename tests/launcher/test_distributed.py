# SPDX-License-Identifier: Apache-2.0
"""Ranks: which cores compute and which communicate, and real jobs under torchrun and mpiexec."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from launched import ALLOWED, COMMAND, environment, is_running, two_cpus, until
from machines import HYBRID, SNC, T1, Q, cpus, lscpu, sets

from slipstream.errors import PlanError, UsageError
from slipstream.launcher import distributed
from slipstream.launcher.options import Distributed, Placement
from slipstream.launcher.topology_file import parse_lscpu

HYBRID0 = lscpu(2, 28, efficient=4, numbering="node by node")
NO_SMT = lscpu(2, 28, smt=False)


def ranks(machine, placement=None, **wanted):
    asked = Distributed(nnodes=1, **wanted)
    workers = distributed.ccl_workers(asked)
    return distributed.make_rank_plan(parse_lscpu(machine), placement or Placement(), asked, workers=workers)


def variables(made):
    return {name: value for name, value, _ in made.variables}


@pytest.mark.parametrize(
    ("machine", "placement", "wanted", "domain", "workers"),
    [
        (T1, {}, {"ccl_worker_count": 4}, "[0xffffff0,0xffffff00000000]", "0,1,2,3,28,29,30,31"),
        (T1, {}, {"logical_cores_for_ccl": True}, "[0xfffffff,0xfffffff0000000]", "56,57,58,59,84,85,86,87"),
        (NO_SMT, {}, {"logical_cores_for_ccl": True}, "[0xffffff0,0xffffff00000000]", "0,1,2,3,28,29,30,31"),
        (Q, {"nodes_list": (1, 2)}, {"ccl_worker_count": 2}, "[0xfff0000,0x3ffc0000000]", "14,15,28,29"),
        (
            T1,
            {"ncores": 24, "use_logical_cores": True, "group_by": "node"},
            {"ccl_worker_count": 4},
            "[0xff0,0xff0000]",
            "0,1,2,3,12,13,14,15",
        ),
        (
            HYBRID0,
            {},
            {"logical_cores_for_ccl": True},
            "[0xfffffff,0xfffffff000000000000000]",
            "28,29,30,31,88,89,90,91",
        ),
    ],
)
def test_examples_of_older_launchers(machine, placement, wanted, domain, workers):
    made = ranks(machine, Placement(**placement), **wanted)
    assert variables(made)["I_MPI_PIN_DOMAIN"] == domain
    assert variables(made)["CCL_WORKER_AFFINITY"] == workers


def test_a_rank_for_each_node_of_a_socket():
    assert cpus(ranks(SNC, Placement(sockets_list=(1,)), ccl_worker_count=0).plan) == sets("8-11 | 12-15")


def test_each_rank_may_use_its_workers_cpus_too():
    made = ranks(T1, logical_cores_for_ccl=True)
    assert set(made.plan.instances[0].cpus) == {*range(28), 56, 57, 58, 59}
    assert {one.threads for one in made.plan.instances} == {28}


def test_no_cores_are_kept_for_workers_that_do_not_exist():
    made = ranks(HYBRID, nprocs_per_node=4)
    assert [len(cpus) for cpus in made.compute] == [14] * 4
    assert "CCL_WORKER_COUNT" not in variables(made)


def test_missing_siblings_are_said():
    assert any("fewer than 4 SMT siblings" in text for text in ranks(NO_SMT, logical_cores_for_ccl=True).plan.warnings)


def test_more_workers_than_cores_are_refused():
    with pytest.raises(PlanError, match="--ccl-worker-count 28: a rank has 28 cores"):
        ranks(T1, ccl_worker_count=28)


def test_siblings_cannot_serve_twice():
    with pytest.raises(UsageError, match="--logical-cores-for-ccl"):
        ranks(T1, Placement(use_logical_cores=True), logical_cores_for_ccl=True)


def test_hostfile(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# the cluster\nfirst slots=2\n\nsecond:2\nthird\n")
    wanted = Distributed(nnodes=2, hostfile=str(file))
    assert distributed.read_hostfile(wanted) == ["first", "second"]
    with pytest.raises(UsageError, match="3 hosts, --nnodes 4"):
        distributed.read_hostfile(replace(wanted, nnodes=4))
    with pytest.raises(UsageError, match="needs a host on each line"):
        distributed.read_hostfile(Distributed(nnodes=2, hostfile=str(tmp_path / "none")))
    assert distributed.read_hostfile(Distributed(nnodes=2, hostfile=str(tmp_path / "none"), node_rank=1)) == []


def test_own_addresses_are_recognized():
    assert distributed.is_this_machine("127.0.0.1")
    assert not distributed.is_this_machine("192.0.2.1")  # reserved for documentation
    assert not distributed.is_this_machine("no.such.host.invalid")


ALL_REDUCE = """
    import os, torch, torch.distributed as dist
    dist.init_process_group("gloo")
    total = torch.tensor(float(dist.get_rank() + 1))
    dist.all_reduce(total)
    here = sorted(os.sched_getaffinity(0))
    os.write(1, f"{dist.get_rank()}/{dist.get_world_size()} {total.item()} {here} {torch.get_num_threads()}\\n".encode())
    dist.destroy_process_group()
"""
PORTS = itertools.count(29600 + os.getpid() % 1000)


@two_cpus
def test_ranks_under_torchrun(launcher, script):
    path = script(ALL_REDUCE)
    ended = launcher("--nnodes", 1, "--nprocs-per-node", 2, "--master-port", next(PORTS), path)
    half = len(ALLOWED) // 2
    expected = [f"[{rank}] {rank}/2 3.0 {ALLOWED[rank * half : (rank + 1) * half]} {half}" for rank in (0, 1)]
    assert sorted(ended.stdout.splitlines()) == expected, ended.stderr


@two_cpus
def test_figures_of_ranks_are_summed(launcher, script, tmp_path):
    report = tmp_path / "report.json"
    words = ["--nnodes", 1, "--nprocs-per-node", 2, "--master-port", next(PORTS), "--report", report]
    ended = launcher(*words, "--log-dir", tmp_path / "logs", script("print('throughput: 2.5 samples/s')"))
    assert sorted(ended.stdout.splitlines()) == [f"[{rank}] throughput: 2.5 samples/s" for rank in (0, 1)]
    content = json.loads(report.read_text())
    assert content["metrics"][0]["total"] == 5
    assert [one["exit_code"] for one in content["instances"]] == [0, 0]
    assert len(list((tmp_path / "logs").glob("*_instance_?_*.log"))) == 2


def test_a_failing_rank_fails_the_job(launcher, script):
    ended = launcher("--nnodes", 1, "--nprocs-per-node", 1, "--master-port", next(PORTS), script("raise SystemExit(3)"))
    assert ended.returncode != 0


def test_ranks_die_with_a_killed_launcher(started, script, tmp_path):
    path = script("import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)")
    mark = tmp_path / "pid"
    process = started("--nnodes", 1, "--nprocs-per-node", 1, "--master-port", next(PORTS), path, mark)
    pid = until(lambda: mark.exists() and mark.read_text())
    process.kill()
    process.wait()
    until(lambda: not is_running(int(pid)))


def test_plan_of_ranks(launcher, script):
    words = ["--nnodes", 1, "--nprocs-per-node", len(ALLOWED), "--plan", "json", script("pass")]
    planned = json.loads(launcher(*words).stdout)
    assert [one["cpus"] for one in planned["instances"]] == [[cpu] for cpu in ALLOWED]
    assert planned["command"][1:3] == ["-m", "torch.distributed.run"]


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a cable, 10.213.7.1 and 10.213.7.2."""
    if not shutil.which("ip"):
        pytest.skip("needs ip(8)")
    names = [f"slip{os.getpid()}{letter}" for letter in "ab"]
    made = ip("netns", "add", names[0])
    if made.returncode:
        pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
    try:
        for words in (
            ["netns", "add", names[1]],
            ["-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1]],
        ):
            made = ip(*words)
            if made.returncode:
                pytest.skip(f"no virtual cables here: {made.stderr.strip()}")
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.213.7.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def test_two_machines(two_hosts, script, tmp_path):
    (tmp_path / "hosts").write_text("10.213.7.1\n10.213.7.2\n")
    words = ["--nnodes", "2", "--nprocs-per-node", "1", "--ncores-per-instance", "1", "--hostfile", str(tmp_path / "hosts")]
    words += ["--env", "GLOO_SOCKET_IFNAME=cable", script(ALL_REDUCE)]
    running = [
        subprocess.Popen(["ip", "netns", "exec", name, *COMMAND, *words], stdout=subprocess.PIPE, text=True, env=environment())
        for name in two_hosts
    ]
    lines = [process.communicate(timeout=60)[0].strip() for process in running]
    assert lines == [f"{rank}/2 3.0 [{ALLOWED[0]}] 1" for rank in (0, 1)]


@pytest.mark.skipif(not shutil.which("mpiexec"), reason="needs mpiexec (apt install mpich)")
def test_ranks_under_mpiexec(launcher, script):
    count = min(2, len(ALLOWED))
    words = ["--nnodes", 1, "--nprocs-per-node", count, "--launcher", "mpi", "--master-port", next(PORTS)]
    ended = launcher(*words, script(ALL_REDUCE))
    half = len(ALLOWED) // count
    total = sum(range(1, count + 1))
    prefixes = [f"[{rank}] " if count > 1 else "" for rank in range(count)]
    expected = [f"{prefixes[r]}{r}/{count} {total:.1f} {ALLOWED[r * half : (r + 1) * half]} {half}" for r in range(count)]
    assert sorted(ended.stdout.splitlines()) == expected, ended.stderr


def test_without_mpiexec_one_line(launcher, tmp_path):
    ended = launcher("--nnodes", 1, "--launcher", "mpi", __file__, env=environment(PATH=str(tmp_path)))
    assert ended.returncode == 2
    assert "no mpiexec on PATH; apt install mpich" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_rank_module_uses_the_interpreter_of_the_launcher(launcher, script):
    planned = json.loads(launcher("--nnodes", 1, "--plan", "json", script("pass")).stdout)
    assert planned["command"][0] == sys.executable


@two_cpus
def test_inside_somebody_elses_torchrun_each_rank_plans_its_part(launcher, script):
    path = script("import os; print(sorted(os.sched_getaffinity(0)))")
    half = len(ALLOWED) // 2
    for rank in (0, 1):
        ended = launcher(path, env=environment(LOCAL_WORLD_SIZE="2", LOCAL_RANK=str(rank)))
        assert ended.stdout == f"{ALLOWED[rank * half : (rank + 1) * half]}\n"

# SPDX-License-Identifier: Apache-2.0
"""The launcher's smaller parts: spellings, preloading, environment, figures, checks, topology files."""

import ctypes
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from launched import ALLOWED, environment

from slipstream import env
from slipstream.errors import UsageError
from slipstream.launcher import preload
from slipstream.launcher.command_line import parse_command_line
from slipstream.launcher.environment import Surroundings, equip
from slipstream.launcher.legacy import LEGACY
from slipstream.launcher.observe import verify
from slipstream.launcher.observe.metrics import Metrics
from slipstream.launcher.options import LaunchOptions, Libraries, Program, launch_options
from slipstream.launcher.plan import Instance
from slipstream.launcher.process import allocator_probe
from slipstream.launcher.topology_file import load_topology

DATA = pathlib.Path(__file__).parents[1] / "data" / "topologies"


def options(*words):
    return launch_options(parse_command_line([*words, __file__], command="ipexrun"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--ncore_per_instance 4", "--ncores-per-instance 4"),
        ("--ninstance 2", "--ninstances 2"),
        ("--socket_id 0", "--sockets-list 0"),
        ("--node_id 0", "--nodes-list 0"),
        ("--node-id -1", ""),
        ("--core_list 0-3", "--cores-list 0-3"),
        ("--use_logical_core", "--use-logical-cores"),
        ("--latency_performance", "--latency-mode"),
        ("--latency", "--latency-mode"),
        ("--throughput_performance", "--throughput-mode"),
        ("--throughput", "--throughput-mode"),
        ("--multi_instance", "--throughput-mode"),
        ("--multi_instance --ninstances 2", "--ninstances 2"),
        ("--distributed", "--nnodes 1"),
        ("--distributed --nnodes 3", "--nnodes 3"),
        ("--nproc_per_node 2", "--nprocs-per-node 2"),
        ("--more_mpi_parms -x", "--extra-mpi-params -x"),
        ("--more_mpi_params -x", "--extra-mpi-params -x"),
        ("--logical_core_for_ccl", "--logical-cores-for-ccl"),
        ("--enable_tcmalloc", "--memory-allocator tcmalloc"),
        ("--enable_jemalloc", "--memory-allocator jemalloc"),
        ("--enable_jemalloc --enable_tcmalloc", "--memory-allocator tcmalloc"),
        ("--use_default_allocator", "--memory-allocator default"),
        ("--enable_iomp", "--omp-runtime intel"),
        ("--disable_iomp", "--omp-runtime default"),
        ("--kmp_affinity compact", "--env KMP_AFFINITY=compact"),
        ("--disable_numactl", "--multi-task-manager taskset"),
        ("--disable_taskset", "--multi-task-manager numactl"),
        ("--disable_numactl --disable_taskset", "--multi-task-manager none"),
        ("--skip_cross_node_cores", "--bind-numa-node"),
        ("--rank 0", "--instance-idx 0"),
        ("--instance_idx -1", ""),
        ("--ninstances -1", ""),
        ("--log_path logs", "--log-dir logs"),
        ("--silent", "--quiet"),
        ("--auto_ipex --dtype=bfloat16", "--auto-ipex --dtype bfloat16"),
        ("--cores-list=0-3", "--cores-list 0-3"),
    ],
)
def test_old_spellings_mean_the_new_ones(old, new):
    from dataclasses import replace

    assert replace(options(*old.split()), notes=()) == replace(options(*new.split()), notes=())


def test_every_old_spelling_that_took_effect_is_noted_once():
    line = parse_command_line(["--ncore_per_instance", "2", "--use-logical-core", "x.py"], command="ipexrun")
    assert list(line.notes) == [
        "--ncore_per_instance 2 is now spelled --ncores-per-instance 2",
        "--use-logical-core is now spelled --use-logical-cores",
    ]


def test_of_several_lists_the_narrowest_decides():
    made = options("--sockets-list", "0", "--cores-list", "0", "--nodes-list", "0")
    assert (made.placement.cores_list, made.placement.nodes_list, made.placement.sockets_list) == ((0,), (), ())
    assert made.notes == (
        "--nodes-list 0 is ignored: --cores-list decides",
        "--sockets-list 0 is ignored: --cores-list decides",
    )


def test_no_old_spelling_hides_a_flag():
    from slipstream.launcher.flags import BY_NAME

    assert not set(LEGACY) & set(BY_NAME)


@pytest.mark.parametrize("words", [["-h"], ["--help"]])
def test_help_after_the_program_is_the_programs(words):
    line = parse_command_line(["x.py", *words], command="ipexrun")
    assert line.program == ("x.py", *words)


def test_unclear_beginning_is_refused():
    with pytest.raises(UsageError, match="may be --log-dir or --log-file-prefix"):
        parse_command_line(["--log", "x", "y.py"], command="ipexrun")


def elf(path):
    """A file that looks like a library for this machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(sys.executable, "rb") as file:
        path.write_bytes(file.read(64))
    return str(path)


@pytest.mark.parametrize(
    ("name", "soname"),
    [("jemalloc", "libjemalloc.so.2"), ("tcmalloc", "libtcmalloc_minimal.so.4"), ("intel", "libiomp5.so")],
)
def test_libraries_are_found_by_soname(tmp_path, name, soname):
    path = elf(tmp_path / "lib" / soname)
    assert preload.find_library(name, {"CONDA_PREFIX": str(tmp_path)}) == path


def test_libraries_of_another_machine_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(preload, "LD_CACHE", str(tmp_path / "none"))
    path = pathlib.Path(elf(tmp_path / "lib" / "libjemalloc.so.2"))
    content = bytearray(path.read_bytes())
    content[18] ^= 0xFF
    path.write_bytes(content)
    assert preload.find_library("jemalloc", {"CONDA_PREFIX": str(tmp_path)}) is None


def test_libraries_in_the_loaders_cache(tmp_path, monkeypatch):
    path = elf(tmp_path / "libjemalloc.so.2")
    cache = tmp_path / "ld.so.cache"
    cache.write_bytes(b"glibc-ld.so.cache1.1\0libjemalloc.so.2\0" + path.encode() + b"\0")
    monkeypatch.setattr(preload, "LD_CACHE", str(cache))
    assert preload.find_library("jemalloc", {}) == path


def test_what_is_missing_comes_with_its_install_line(tmp_path, monkeypatch):
    monkeypatch.setattr(preload, "find_library", lambda name, environ: None)
    chosen = preload.choose_preload(Libraries(allocator="jemalloc", omp_runtime="intel"), {})
    assert chosen.libraries == ()
    assert [text.rpartition("; ")[2] for text in chosen.warnings] == [preload.INSTALL["intel"], preload.INSTALL["jemalloc"]]


def test_auto_takes_what_was_measured_to_be_faster(monkeypatch):
    monkeypatch.setattr(preload, "find_library", lambda name, environ: f"/lib/{name}.so")
    measured = {"default": 1.0, "keep": 0.7, "jemalloc": 0.5, "tcmalloc": 0.6}
    asked = {}

    def best(candidates):
        asked.update(candidates)
        return allocator_probe.judge(measured)

    chosen = preload.choose_preload(Libraries(), {}, best_allocator=best)
    assert set(asked) == set(measured)
    assert chosen.libraries == ("/lib/jemalloc.so",)
    assert chosen.variables[0][0] == "MALLOC_CONF"
    assert "default 1000 ms, keep 700 ms, jemalloc 500 ms" in chosen.decisions[-1].reason


def test_users_own_preload_is_respected():
    chosen = preload.choose_preload(Libraries(allocator="tcmalloc"), {"LD_PRELOAD": "/opt/libjemalloc.so.2"})
    assert chosen.libraries == ()
    assert "already in LD_PRELOAD" in chosen.decisions[-1].reason


def equipped(environ, *, libraries=(), program=None, children=False):
    chosen = preload.Preload(tuple(libraries), (("MALLOC_CONF", "x", "why"),))
    request = LaunchOptions(program=program or Program("script", "x.py"), libraries=Libraries(children=children))
    return equip(Instance(0, (0, 1), (0,), 2), request, Surroundings(environ, chosen))


def test_environment_has_a_reason_for_each_change():
    made = equipped({"HOME": "/home"}, libraries=["/lib/a.so"])
    assert set(made.environment) == set(made.reasons)
    assert made.environment["OMP_NUM_THREADS"] == "2"
    assert "HOME" not in made.environment


def test_users_values_win():
    made = equipped({"OMP_NUM_THREADS": "5", "MALLOC_CONF": "mine"})
    assert not {"OMP_NUM_THREADS", "MALLOC_CONF"} & set(made.environment)


def test_no_openmp_setting_pins_the_main_thread():
    made = equipped({})
    assert not [name for name in made.environment if "BIND" in name or "PLACES" in name or "AFFINITY" in name]


def preload_seen_by(tmp_path, *, children):
    """(in the process, in a program that it starts) for a real library; None where it is not preloaded."""
    libm = next(path for path in ("/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6") if os.path.exists(path))
    code = (
        "import os, subprocess, sys; "
        "print('libm.so' in open('/proc/self/maps').read(), os.environ.get('LD_PRELOAD'), os.environ.get('PYTHONPATH')); "
        "sys.stdout.flush(); subprocess.run(['sh', '-c', 'echo $LD_PRELOAD'])"
    )
    (tmp_path / "x.py").write_text(code)
    made = equipped(environment(), libraries=[libm], program=Program("script", str(tmp_path / "x.py")), children=children)
    ended = subprocess.run(made.argv, env={**environment(), **made.environment}, capture_output=True, text=True, check=True)
    return libm, ended.stdout.splitlines()


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.uname().machine != "x86_64", reason="names x86-64 folders")
def test_preload_does_not_reach_grandchildren(tmp_path):
    _, lines = preload_seen_by(tmp_path, children=False)
    assert lines == [f"True None {environment()['PYTHONPATH']}", ""]
    libm, lines = preload_seen_by(tmp_path, children=True)
    assert lines == [f"True {libm} {environment()['PYTHONPATH']}", libm]


@pytest.mark.parametrize(
    ("line", "name", "value", "summed"),
    [
        ("throughput: 123.4 fps", "throughput", 123.4, True),
        ("Throughput (images/s): 99", "throughput", 99, True),
        ("Throughput: 1.5e3 samples/sec", "throughput", 1500, True),
        ("done, 256.5 samples/s on cpu", "samples/s", 256.5, True),
        ("100%|#####| 10/10 [00:01<00:00,  7.25it/s]", "it/s", 7.25, True),
        ("{'eval_loss': 1.0, 'eval_samples_per_second': 12.345, 'x': 1}", "eval_samples_per_second", 12.345, True),
        ("Latency: 3.2 ms", "latency", 3.2, False),
        ("p99 latency = 41 ms", "p99_latency", 41, False),
    ],
)
def test_figures_in_lines(line, name, value, summed):
    metrics = Metrics()
    for index in (0, 1):
        metrics.listen(index, line)
    figure = next(figure for figure in metrics.as_dicts() if figure["name"] == name)
    assert figure["total"] == pytest.approx(2 * value if summed else value)
    assert figure["how"] == ("sum" if summed else "mean")


def test_the_last_value_counts_and_the_spread_is_between_instances():
    metrics = Metrics([r"(?P<name>speed) (?P<value>\d+)"])
    for index, text in [(0, "speed 1"), (0, "speed 90"), (1, "speed 110"), (1, "no figure 12 here")]:
        metrics.listen(index, text)
    (figure,) = metrics.as_dicts()
    assert (figure["total"], figure["spread_percent"]) == (200, 20)
    assert [value for _, value in figure["series"][0]] == [1, 90]


def test_endless_lines_and_numbers_do_no_harm():
    metrics = Metrics()
    metrics.listen(0, "a" * 1_000_000 + " 5 it/s")
    metrics.listen(0, "throughput: 1e999")
    assert [figure["total"] for figure in metrics.as_dicts()] == [5]


def test_threads_of_this_process_are_checked():
    here = Instance(0, tuple(ALLOWED), (0,), len(ALLOWED))
    assert verify.check_threads(here, os.getpid()).taken
    elsewhere = verify.check_threads(Instance(0, (max(ALLOWED) + 1,), (0,), 1), os.getpid())
    assert not elsewhere.taken and "may leave the plan" in elsewhere.reason
    narrowed = verify.check_threads(Instance(0, (*ALLOWED, max(ALLOWED) + 1), (0,), 1), os.getpid())
    assert not narrowed.taken and "main thread was narrowed" in narrowed.reason


def test_pages_by_node():
    text = [
        "7f0 default anon=100 dirty=100 N0=60 N1=40 kernelpagesize_kB=4\n",
        "7f1 default anon=2 dirty=2 N1=2 kernelpagesize_kB=2048\n",
        "7f2 default file=/lib/x mapped=50 N0=50 kernelpagesize_kB=4\n",
    ]
    assert verify.bytes_by_node(text) == {0: 60 * 4096, 1: 40 * 4096 + 2 * 2048 * 1024}


def test_lscpu_with_all_its_columns():
    found = load_topology(str(DATA / "two_socket_smt.txt"))
    assert len(found.cpus) == 15
    assert [item.cpus for item in found.left_out] == [(15,)]
    assert {one.l3 for one in found.cpus} == {0, 1}


def test_topology_plans_for_another_machine(launcher):
    words = ["--topology", DATA / "two_socket_smt.txt", "--ninstances", 2, "--plan", "json", "their_script.py"]
    planned = json.loads(launcher(*words).stdout)
    assert [one["cpus"] for one in planned["instances"]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert launcher("--topology", DATA / "two_socket_smt.txt", __file__).returncode == 2


@pytest.mark.parametrize("text", ["", "hello\n", "CPU CORE SOCKET NODE\n", "CPU CORE\n0 -\n"])
def test_what_is_no_topology_is_refused(tmp_path, text):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(UsageError, match="--topology"):
        load_topology(str(tmp_path / "t.txt"))


def deny_set_mempolicy():
    """A seccomp filter as containers have it: set_mempolicy gives EPERM, everything else passes."""

    class Instruction(ctypes.Structure):
        _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]

    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(Instruction))]

    program = (Instruction * 4)(
        Instruction(0x20, 0, 0, 0),  # load the call's number
        Instruction(0x15, 0, 1, 238),
        Instruction(0x06, 0, 0, 0x00050000 | 1),  # fail with EPERM
        Instruction(0x06, 0, 0, 0x7FFF0000),
    )
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(Filter(4, program)), 0, 0) == 0


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filter names x86-64 call numbers")
def test_a_denied_memory_policy_still_runs(launcher, script):
    ended = launcher("--memory-policy", "bind", script("print('ran')"), preexec_fn=deny_set_mempolicy)
    assert (ended.returncode, ended.stdout) == (0, "ran\n")
    assert "set_mempolicy: Operation not permitted" in ended.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self/numa_maps"), reason="a kernel without NUMA")
def test_memory_policy_holds_in_the_program(launcher, script):
    path = script("print(' bind:0 ' in open('/proc/self/numa_maps').read())")
    assert launcher("--memory-policy", "bind", "--nodes-list", "0", path).stdout == "True\n"


@pytest.mark.skipif(not shutil.which("script"), reason="needs script(1) for a terminal")
def test_live_table_on_a_terminal(script):
    path = script("import time; print('7 it/s'); time.sleep(1.2)")
    words = " ".join([sys.executable, "-m", "slipstream.launcher.cli", "--live", "on", path])
    ended = subprocess.run(
        ["script", "-qec", words, "/dev/null"], capture_output=True, text=True, env=environment(TERM="xterm", COLUMNS="140")
    )
    assert ended.returncode == 0
    assert "last figure" in ended.stdout and "running" in ended.stdout and "done" in ended.stdout


@pytest.mark.skipif(not shutil.which("script"), reason="needs script(1) for a terminal")
def test_a_single_instance_keeps_the_terminal(script):
    path = script("import os; print(os.isatty(0), os.isatty(1), os.tcgetpgrp(0) == os.getpgrp())")
    words = " ".join([sys.executable, "-m", "slipstream.launcher.cli", path])
    ended = subprocess.run(
        ["script", "-qec", words, "/dev/null"], capture_output=True, text=True, env=environment(), check=True
    )
    assert ended.stdout.split() == ["True", "True", "True"]


def test_report_folder_is_filled_by_processes(launcher, script, tmp_path):
    path = script(
        f"""
        import json, os
        content = {{"pid": os.getpid(), "argv": ["x"], "instance": 0, "decisions": [
            {{"what": "a [b]", "taken": True, "reason": "because", "figures": {{"speedup_x": 2.0}}}}], "summary": {{"k": 1}}}}
        json.dump(content, open(os.path.join(os.environ[{env.REPORT_DIR!r}], f"{{os.getpid()}}.json"), "w"))
        open(os.path.join(os.environ[{env.REPORT_DIR!r}], "1.json"), "w").write("torn")
        """
    )
    ended = launcher("--report", "-", path)
    assert all(text in ended.stdout for text in ("a [b]", "because", "speedup_x 2", "k 1"))
    launcher("--report", tmp_path / "r.json", path)
    processes = json.loads((tmp_path / "r.json").read_text())["processes"]
    assert [bool(process["decisions"]) for process in processes].count(True) == 1
    assert any(process.get("incomplete") for process in processes)

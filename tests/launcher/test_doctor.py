# SPDX-License-Identifier: Apache-2.0
"""The doctor tells the truth about this machine, quickly and without torch, and each piece of advice has a cause."""

import copy
import json
import os
import subprocess
import sys

import pytest

from slipstream import env
from slipstream.errors import UsageError
from slipstream.launcher import doctor, environment
from slipstream.runtime import isa
from slipstream.runtime.choice_file import Choice, ChoiceFile

CPUS = sorted(os.sched_getaffinity(0))
HEALTHY = {
    "cpu": {"cpus": 8, "governor": ["performance"]},
    "allowed": {"cpu_quota": None, "cpus_usable": 8, "left_out": []},
    "numa": {"balancing": False},
    "instruction_sets": {"problem": None},
    "memory": {"transparent_huge_pages": "madvise"},
    "software": {"torch": "2.13.0+cpu", "native_extension": "built (_native.so)"},
    "openmp": {"variables": {"OMP_NUM_THREADS": "4"}},
    "allocators": {"tcmalloc": "/usr/lib/libtcmalloc.so.4", "jemalloc": None},
}


def run(*arguments, **variables):
    environ = {**os.environ, **variables}
    command = [sys.executable, "-c", "import sys\nfrom slipstream.launcher import doctor\n"
               "code = doctor.main()\nassert 'torch' not in sys.modules\nsys.exit(code)", *arguments]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, env=environ)


@pytest.fixture(scope="module")
def facts():
    done = run("--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_it_says_what_this_process_may_use(facts):
    assert facts["allowed"]["cpus_usable"] == len(CPUS)
    assert facts["cpu"]["cpus"] >= len(CPUS)
    assert 1 <= facts["cpu"]["physical_cores"] <= facts["cpu"]["cpus"]


def test_it_names_the_level_and_what_keeps_from_a_higher_one(facts):
    sets = facts["instruction_sets"]
    assert tuple(sets["available"]) == isa.available_levels()
    assert len(sets["available"]) + len(sets["not_available"]) == len(isa.LEVELS)
    assert sets["in_use"] in sets["available"] or sets["problem"]


def test_it_finds_torch_and_its_openmp_without_importing_it(facts):
    import torch

    assert facts["software"]["torch"] == torch.__version__
    assert facts["openmp"]["brought_by_torch"] is None or "omp" in facts["openmp"]["brought_by_torch"]


def test_it_shows_memory_by_node(facts):
    nodes = [section for name, section in facts["numa"].items() if name.startswith("node_")]
    assert len(nodes) == facts["numa"]["nodes"]
    assert 0 < facts["memory"]["available_mb"] <= facts["memory"]["total_mb"]


@pytest.mark.skipif(len(CPUS) < 2, reason="this process may use one CPU only")
def test_a_narrower_affinity_is_seen():
    code = f"import os; os.sched_setaffinity(0, [{CPUS[0]}]); from slipstream.launcher import doctor; doctor.main(['--json'])"
    told = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    assert told["allowed"]["affinity"] == str(CPUS[0])
    assert told["allowed"]["cpus_usable"] == 1
    assert any("CPUs are not for this process" in sentence for sentence in told["advice"])


def test_the_table_holds_every_section():
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    for section in doctor.examine(environment.callers_environment()):
        assert f"\n{section.replace('_', ' ')}" in f"\n{done.stdout}"
    assert "advice" in done.stdout


def test_a_level_that_is_not_there_is_told_not_raised():
    told = json.loads(run("--json", **{env.ISA: "sse4"}).stdout)
    assert told["instruction_sets"]["in_use"] is None
    assert told["instruction_sets"]["problem"] in told["advice"]


def test_a_native_extension_switched_off_is_said():
    assert json.loads(run("--json", **{env.NATIVE: "0"}).stdout)["software"]["native_extension"] == (
        "switched off by SLIPSTREAM_NATIVE"
    )


def test_it_counts_what_earlier_runs_measured(tmp_path):
    file = ChoiceFile(str(tmp_path), {"cpu": "a"})
    file.append({question: Choice("ours", 2.0, 1.0, 2, 1e-11, 0) for question in "qr"})
    told = json.loads(run("--json", **{env.CACHE: str(tmp_path)}).stdout)["kept_measurements"]
    assert told == {"folder": str(tmp_path), "kernel_choices": 2, "files": 1}
    told = json.loads(run("--json", **{env.CACHE: "off"}).stdout)["kept_measurements"]
    assert told == {"folder": f"none: {env.CACHE} switches it off", "kernel_choices": 0, "files": 0}


def test_bad_arguments():
    with pytest.raises(UsageError, match="unrecognized arguments: --xml"):
        doctor.main(["--xml"])


def test_a_healthy_machine_gets_no_advice():
    assert doctor.advice(HEALTHY) == []


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        ("allowed", "cpu_quota", 2.5, "gives 2.5 CPUs of time for 8 CPUs"),
        ("allowed", "cpus_usable", 6, "2 of 8 CPUs are not for this process"),
        ("numa", "balancing", True, "kernel.numa_balancing=0"),
        ("cpu", "governor", ["powersave"], "the frequency governor is powersave: cpupower"),
        ("memory", "transparent_huge_pages", "never", "echo madvise"),
        ("software", "torch", None, "pip install torch"),
        ("software", "torch", "2.9.1", "torch 2.9.1 is older than 2.10"),
        ("software", "native_extension", "not built: make build", "no native kernels: not built: make build"),
        ("instruction_sets", "problem", "SLIPSTREAM_ISA x: not one of", "SLIPSTREAM_ISA x: not one of"),
        ("openmp", "variables", {"OMP_PROC_BIND": "close"}, "OMP_PROC_BIND may put the main thread"),
        ("allocators", "tcmalloc", None, "no fast allocator is installed"),
    ],
)
def test_each_piece_of_advice_has_its_cause(section, name, value, words):
    facts = copy.deepcopy(HEALTHY)
    facts[section][name] = value
    (sentence,) = doctor.advice(facts)
    assert words in sentence


@pytest.mark.parametrize(("version", "release"), [("2.13.0+cpu", (2, 13)), ("2.10", (2, 10)), ("3.0.0a1", (3, 0))])
def test_releases(version, release):
    assert doctor._release(version) == release

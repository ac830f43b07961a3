# SPDX-License-Identifier: Apache-2.0
"""Flags of `python -m benchmarks`: a mistake is one line on stderr and exit code 2; a right one becomes a value."""

import sys

import pytest

from benchmarks import cli, options
from benchmarks.contest import contestants, models, preparations

WRONG = [
    [],
    ["fly"],
    ["zoo", "--models", "resnet51"],
    ["zoo", "--models", ","],
    ["zoo", "--modes", "ours-int4"],
    ["zoo", "--modes", "ipex-float32"],
    ["zoo", "--rounds", "0"],
    ["zoo", "--rounds", "many"],
    ["zoo", "--seconds", "-1"],
    ["zoo", "--seconds", "nan"],
    ["zoo", "--threads", "100000"],
    ["zoo", "--ipex", "/nowhere/python"],
    ["zoo", "--json", "/nowhere/at/all.json"],
    ["zoo", "--picture", "bars.png"],
    ["zoo", "--speed"],
    ["zoo", "--isa", "avx3"],
    ["kernels", "--isa", "amx"],
    ["demo", "--examples", "poetry"],
    ["demo", "--rounds", "-3"],
    ["kernels", "--dtypes", "float64"],
    ["kernels", "--families", "lstm"],
    ["kernels", "--rows", "0"],
    ["kernels", "--rows", "one"],
    ["kernels", "--rows", "1,,2"],
    ["kernels", "--shapes", "bert-huge"],
    ["ceilings", "--threads", "1"],
    ["write-up"],
    ["write-up", "--zoo", "/nowhere.json"],
    ["write-up", "--demo", "/proc/self/status"],
    ["write-up", "--kernels", "/dev/null"],
]


@pytest.mark.parametrize("argv", WRONG, ids=" ".join)
def test_wrong_flags_are_one_line_and_exit_2(argv, capsys):
    try:
        code = cli.main(argv)
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("benchmarks: ") and err.count("\n") == 1


def zoo(*argv):
    return options.zoo(cli.parser().parse_args(["zoo", *argv]))


def test_the_base_is_always_timed_and_first():
    assert zoo("--modes", "ours-bfloat16").modes == ("eager-float32", "ours-bfloat16")


def test_peers_run_only_where_their_interpreter_is_given():
    assert not any(mode.startswith(("ipex", "openvino")) for mode in zoo().modes)
    with_openvino = zoo("--openvino", sys.executable)
    assert {"openvino-float32", "openvino-bfloat16"} <= set(with_openvino.modes)
    assert not any(mode.startswith("ipex") for mode in with_openvino.modes)


def test_a_name_given_twice_runs_once():
    assert zoo("--models", "bert,lstm,bert").models == ("bert", "lstm")


def test_names_that_stand_twice_are_the_same():
    assert tuple(models.CASES) == options.MODELS
    assert {each.prepare for each in contestants.ALL.values()} == set(preparations.BY_NAME)


def test_only_ours_gets_the_codeless_engine():
    ambient = {"SLIPSTREAM_AUTOPATCH": "{}", "PYTHONPATH": "mine", "PATH": "/bin"}
    for name, who in contestants.ALL.items():
        given = contestants.environment(who, ambient, 3)
        assert given["OMP_NUM_THREADS"] == "3" and given["PATH"] == "/bin"
        started = contestants.command(who, {"ipex": "ipex/python", "openvino": "openvino/python"}, 3)
        assert name.startswith("ours") == ("--auto_ipex" in started)
        if not name.startswith("ours"):
            assert "SLIPSTREAM_AUTOPATCH" not in given and len(started) == 1

# SPDX-License-Identifier: Apache-2.0
"""Levels are cumulative, what is missing is named, and SLIPSTREAM_ISA is obeyed or refused in one line."""

import itertools
import os
import pathlib
import subprocess
import sys

import pytest

from slipstream import env
from slipstream.errors import UsageError
from slipstream.runtime import isa

EVERY_FLAG = frozenset(itertools.chain.from_iterable(isa.NEEDS.values()))
SAPPHIRE_RAPIDS = EVERY_FLAG | {"sse2", "avx"}
AMX = {"amx_tile", "amx_bf16", "amx_int8"}
ZEN4 = EVERY_FLAG - AMX - {"avx512_fp16"}
SKYLAKE_SERVER = ZEN4 - {"avx512_vnni", "avx512_bf16"}
HASWELL = frozenset({"avx2", "fma", "f16c"})


@pytest.fixture
def machine(monkeypatch):
    """A function that makes this process believe in a CPU with other flags."""

    def pretend(flags, *, refusal="", x86=True, vendor="AuthenticAMD"):
        monkeypatch.setattr(isa, "cpu_flags", lambda: frozenset(flags))
        monkeypatch.setattr(isa, "cpu_vendor", lambda: vendor)
        monkeypatch.setattr(isa, "amx_refusal", lambda: refusal)
        monkeypatch.setattr(isa, "is_x86_64", lambda: x86)
        monkeypatch.delenv(env.ISA, raising=False)

    return pretend


@pytest.mark.parametrize(
    ("flags", "highest"),
    [
        (SAPPHIRE_RAPIDS, "amx"),
        (ZEN4, "avx512_bf16"),
        (SKYLAKE_SERVER, "avx512"),
        (HASWELL, "avx2"),
        ({"avx2", "fma"}, "baseline"),
        ({"avx2", "f16c"}, "baseline"),
        (SKYLAKE_SERVER - {"avx512vl"}, "avx2"),
        (
            EVERY_FLAG - {"avx512_vnni"},
            "avx512",
        ),  # a higher one counts for nothing when a lower one is missing
        (frozenset(), "baseline"),
    ],
)
def test_levels_end_at_the_first_gap(machine, flags, highest):
    machine(flags)
    assert isa.available_levels() == isa.LEVELS[: isa.LEVELS.index(highest) + 1]
    assert isa.chosen_level().level == highest


@pytest.mark.parametrize(
    ("flags", "vendor", "level"),
    [
        (SAPPHIRE_RAPIDS - AMX, "GenuineIntel", "avx512_fp16"),
        (SAPPHIRE_RAPIDS, "GenuineIntel", "amx"),
        (ZEN4, "GenuineIntel", "avx512_bf16"),  # Cooper Lake: no AVX512_FP16
        (SAPPHIRE_RAPIDS - AMX, "AuthenticAMD", "avx512_bf16"),
        (SKYLAKE_SERVER, "GenuineIntel", "avx512"),
    ],
)
def test_float16_is_chosen_where_dot_products_are_slow(machine, flags, vendor, level):
    machine(flags, vendor=vendor)
    chosen = isa.chosen_level()
    assert chosen.level == level
    assert ("dot products" in chosen.reason) == (vendor == "AuthenticAMD")


def test_slow_dot_products_can_be_asked_for(machine, monkeypatch):
    machine(SAPPHIRE_RAPIDS - AMX, vendor="GenuineIntel")
    monkeypatch.setenv(env.ISA, "avx512_bf16")
    assert isa.chosen_level().level == "avx512_bf16"


@pytest.mark.parametrize("flag", sorted(EVERY_FLAG))
def test_a_missing_flag_is_named(machine, flag):
    machine(EVERY_FLAG - {flag})
    level = next(level for level, flags in isa.NEEDS.items() if flag in flags)
    assert flag in isa.why_not(level)
    assert flag in isa.why_not("amx")


def test_amx_needs_the_permission_of_the_kernel(machine):
    machine(SAPPHIRE_RAPIDS, refusal="the kernel refuses the tile registers: Operation not permitted")
    assert isa.available_levels()[-1] == "avx512_fp16"
    assert "the kernel refuses" in isa.why_not("amx")
    assert "the kernel refuses" in isa.chosen_level().reason


def test_only_the_baseline_off_x86(machine):
    machine(EVERY_FLAG, x86=False)
    assert isa.available_levels() == ("baseline",)
    assert all("x86-64" in isa.why_not(level) for level in isa.LEVELS[1:])


def test_available_levels_need_no_excuse(machine):
    machine(ZEN4)
    assert [isa.why_not(level) for level in isa.available_levels()] == [""] * 6


def test_a_forced_level_is_taken(machine, monkeypatch):
    machine(ZEN4)
    monkeypatch.setenv(env.ISA, " AVX2 ")
    assert isa.chosen_level() == ("avx2", "SLIPSTREAM_ISA asks for it")


@pytest.mark.parametrize("asked", ["amx", "sse4", "AVX-512"])
def test_a_level_that_is_not_there_is_refused_in_one_line(machine, monkeypatch, asked):
    machine(ZEN4)
    monkeypatch.setenv(env.ISA, asked)
    with pytest.raises(UsageError) as caught:
        isa.chosen_level()
    message = str(caught.value)
    assert message.startswith(f"SLIPSTREAM_ISA {asked}: not one of {', '.join(isa.available_levels())};")
    assert "\n" not in message


def test_an_unknown_level_is_refused():
    with pytest.raises(UsageError, match="level sse4: not one of baseline"):
        isa.why_not("sse4")


@pytest.mark.skipif(not pathlib.Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo here")
def test_this_machine_in_a_fresh_process():
    """The real file and the real system call, and the answer of the machine's own kernel to AMX."""
    code = "from slipstream.runtime import isa; print(*isa.available_levels(), sep='\\n')"
    environment = {name: value for name, value in os.environ.items() if name != env.ISA}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    levels = done.stdout.split()
    assert tuple(levels) == isa.LEVELS[: len(levels)]
    words = pathlib.Path("/proc/cpuinfo").read_text().split()
    assert ("avx2" in levels) == (isa.is_x86_64() and {"avx2", "fma", "f16c"} <= set(words))
    assert "amx" not in levels or "amx_tile" in words

# SPDX-License-Identifier: Apache-2.0
"""The extension loads or says why not; a level can be forced, and never above the machine."""

import os
import subprocess
import sys

import pytest
import torch

from slipstream import env
from slipstream.kernels import native
from slipstream.kernels.native import FLOAT16
from tests.kernels.conftest import INT16, INT16_WINOGRAD


def run(code, **variables):
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True)


def test_switched_off_it_says_so():
    code = "from slipstream.kernels import native as n; print(n.available(), n.levels(), n.reason())"
    result = run(code, SLIPSTREAM_NATIVE="0")
    assert result.stdout.startswith("False () SLIPSTREAM_NATIVE=0")


@pytest.mark.skipif(not native.available(), reason="needs the extension")
def test_each_level_of_the_machine_can_be_forced():
    code = "from slipstream.kernels import native as n; n.available(); print(n.active_level())"
    for level in native.levels():
        assert run(code, SLIPSTREAM_ISA=level).stdout.strip() == level


@pytest.mark.skipif(not native.available(), reason="needs the extension")
def test_unknown_level_is_refused():
    code = "from slipstream.kernels import native as n; n.available()"
    result = run(code, SLIPSTREAM_ISA="sse9")
    assert "SLIPSTREAM_ISA sse9: not one of baseline, avx2" in result.stderr


@pytest.mark.skipif(native.best_level() in ("amx", "none"), reason="this machine runs every level, or has no extension")
def test_level_above_the_machine_is_refused():
    code = "from slipstream.kernels import native as n; n.available()"
    result = run(code, SLIPSTREAM_ISA="amx")
    assert "SLIPSTREAM_ISA amx: this machine runs levels up to" in result.stderr


@pytest.mark.skipif(not native.available(), reason="needs the extension")
def test_level_context_restores():
    before = native.active_level()
    with native.level("baseline"):
        assert native.active_level() == "baseline"
    assert native.active_level() == before


@pytest.mark.skipif(not native.available(), reason="needs the extension")
def test_python_and_native_agree_on_the_machine():
    from slipstream.runtime import isa

    assert isa.available_levels() == native.levels()
    if env.read(env.ISA) is None:
        assert isa.chosen_level().level == native.default_level()


@pytest.mark.skipif(os.environ.get("SLIPSTREAM_NATIVE") == "0", reason="switched off for this run")
def test_an_extension_that_is_here_loads():
    """One built before the sources changed would let the twins serve, and every test of a kernel would pass on them."""
    if native._LIBRARY.exists():
        assert native.available(), native.reason()


def test_which_levels_scale_bfloat16(level):
    half = {FLOAT16: torch.float16}
    assert native.scaled_dtype("linear") is {**dict.fromkeys(INT16, torch.int16), **half}.get(level, torch.bfloat16)
    assert native.scaled_dtype("winograd") is {**dict.fromkeys(INT16_WINOGRAD, torch.int16), **half}.get(level, torch.bfloat16)

# SPDX-License-Identifier: Apache-2.0
"""Who is held to a level's instructions uses no others: asked of the libraries themselves, in a process of their own."""

import os
import subprocess
import sys

import pytest

from benchmarks import instruction_sets
from slipstream.kernels import native
from slipstream.runtime import isa

ASK = """
import torch
from slipstream.kernels import native
print(torch.backends.cpu.get_cpu_capability(), native.active_level())
torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON).__enter__()
torch.mkldnn_max_pool2d(torch.randn(1, 1, 4, 4).to_mkldnn(), 2)
"""


def test_every_level_above_the_baseline_has_its_names():
    assert {"baseline", *instruction_sets.ONEDNN, "amx"} == set(isa.LEVELS)


@pytest.mark.skipif(not native.available(), reason="levels are the native extension's")
@pytest.mark.parametrize("level", instruction_sets.available())
def test_libraries_say_that_they_are_held(level):
    told = os.environ | instruction_sets.held_to(level)
    done = subprocess.run([sys.executable, "-c", ASK], env=told, capture_output=True, text=True, check=True)
    capability, ours = done.stdout.splitlines()[0].split()
    assert (capability, ours) == ("AVX2" if level == "avx2" else "AVX512", level)
    onednn = next(line for line in done.stdout.splitlines() if ",cpu,isa:" in line).partition("isa:")[2]
    assert (onednn == "Intel AVX2") == (level == "avx2") and "AMX" not in onednn

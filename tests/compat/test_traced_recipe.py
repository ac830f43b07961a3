# SPDX-License-Identifier: Apache-2.0
"""The old package's recipe, optimize, trace, freeze, gives a model that answers from fused operators in the dtype asked for."""

import subprocess
import sys
import textwrap

import pytest

from slipstream.kernels import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the graph tier lowers to native kernels")

SCRIPT = """
import warnings
warnings.simplefilter("ignore")
import torch
import intel_extension_for_pytorch as ipex
from torch import nn

model = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)).eval()
x = torch.randn(64, 256)
wanted = model(x).detach()
model = ipex.optimize(model, dtype=torch.{dtype})
with torch.no_grad(){region}:
    model = torch.jit.freeze(torch.jit.trace(model, x, check_trace=False, strict=False))
with torch.no_grad():
    for _ in range(8):
        got = model(x)
print(float((got.float() - wanted).norm() / wanted.norm()))

from slipstream.optimize.graph import background, schedule
from slipstream.optimize.graph.torchscript import slot
call = slot.call_of(model)
call.schedule.early = True
schedule.SMALL_S = 0.0
with torch.no_grad():
    for _ in range(4):
        model(x)
    background.wait()
    got = model(x)
(way,) = call.ways
got = model(x)
print(float((got.float() - wanted).norm() / wanted.norm()), way.program.dtype, got.dtype)
"""


@pytest.mark.parametrize(
    ("dtype", "region", "product"),
    [
        ("float32", "", "torch.float32"),
        ("bfloat16", "", "torch.bfloat16"),
        ("bfloat16", ', torch.autocast("cpu", torch.bfloat16)', "torch.bfloat16"),
    ],
)
def test_optimize_trace_freeze(tmp_path, dtype, region, product):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(dtype=dtype, region=region))
    ran = subprocess.run(
        [sys.executable, "-m", "slipstream.compat", str(script)], capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.split()
    limit = 2e-2 if dtype == "bfloat16" else 1e-5
    assert float(lines[0]) < limit
    assert float(lines[1]) < limit
    assert lines[2] == product

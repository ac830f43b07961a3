# SPDX-License-Identifier: Apache-2.0
"""A server that loads a model, warms it up and then forks its workers, amid a capture: the workers capture for themselves."""

import subprocess
import sys

import pytest

from tests.optimize.graph.conftest import needs_native

pytestmark = needs_native

SCRIPT = """
import gc, logging, os, signal, sys, threading, warnings
import torch
from torch._dynamo import convert_frame, symbolic_convert
from slipstream.autopatch.settings import Settings
from slipstream.optimize import leaf_tier
from slipstream.optimize.graph import background, schedule, tier

torch.set_num_threads(1)  # a forked child of a process that has run parallel loops hangs in its first one
schedule.CALLS, schedule.SMALL_S = 1, 0.0
leaf_tier.install(Settings(early_graphs=True))
amid, may_go = threading.Event(), threading.Event()
real = convert_frame.fullgraph_capture
table = symbolic_convert.InstructionTranslator.dispatch_table


def state():
    level, opcodes = logging.getLogger("torch._dynamo").level, tuple(map(id, table))
    return sys.getswitchinterval(), gc.get_threshold(), level, symbolic_convert.get_funcname, opcodes


def fullgraph_capture(*args, **kwargs):
    amid.set()
    may_go.wait()
    return real(*args, **kwargs)


def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()) for _ in range(3))).eval()


before = state()
model, waiting, x = make(), make(), torch.randn(8, 64)
wanted = model(x)
convert_frame.fullgraph_capture = fullgraph_capture
with torch.inference_mode():
    while not tier.root_call(waiting) or not tier.root_call(waiting).capturing:
        model(x), waiting(x)
    amid.wait()
    assert tier.root_call(model).capturing and state() != before
    warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
    child = os.fork()
    if not child:
        signal.alarm(60)
        may_go.set()
        assert state() == before, (before, state())
        for answering in (model, waiting):
            assert not tier.root_call(answering).capturing
            while not tier.root_call(answering).ways:
                answering(x)
                background.wait()
            assert torch.allclose(answering(x), wanted, rtol=1e-5, atol=1e-5)
        print("child has graphs", flush=True)
        sys.exit(7)
    _, status = os.waitpid(child, 0)
    may_go.set()
    background.wait()
    assert tier.root_call(model).ways and tier.root_call(waiting).ways and state() == before
print("exit code", os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_child_forked_amid_a_capture_captures_for_itself_and_ends():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "child has graphs\nexit code 7\n", "")

# SPDX-License-Identifier: Apache-2.0
"""The engine over the whole process for one test, deciding the same on every machine."""

import math
import pathlib
import sys

import pytest
import torch

from slipstream import env
from slipstream.autopatch.settings import Settings
from slipstream.decision import log
from slipstream.kernels import native
from slipstream.optimize import accounts, attention, guards, leaf_tier, names, options
from slipstream.optimize.graph import background
from slipstream.optimize.guards import Verdict

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for judging.py, however pytest imports the tests


@pytest.fixture
def set_precision():
    """torch's float32 matmul precision, as it was again afterwards."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def tiles():
    with native.level(native.EMULATED):
        yield


@pytest.fixture
def always_faster(monkeypatch):
    """Every trial is won, nothing is too small, set-up takes no time: what is tested is the meaning, not the clock."""
    monkeypatch.setattr(guards.speed, "known", lambda question: Verdict(True, 2.0))
    monkeypatch.setattr(guards, "SMALL_MACS", 0)
    monkeypatch.setattr(options.set_up.allowance, "share", math.inf)


@pytest.fixture
def clean():
    """The lists of the process as a fresh process has them, before and after."""

    def wipe():
        log.clear()
        options.set_up.spent_s = 0.0
        options.set_up.budget_s = None
        options.set_up.allowance.spend(options.set_up.allowance.balance)
        names._roots.clear()
        accounts.uninstall()
        names._nameless.clear()

    wipe()
    yield
    background.wait()  # on a slow machine a test's calls may have set off a capture, whose imports pytest trips over
    leaf_tier.uninstall()
    attention.uninstall()
    wipe()


@pytest.fixture
def engine(always_faster, clean):
    """Call it with a dtype to switch the engine on."""

    def start(dtype="bfloat16", **others):
        settings = Settings(dtype=dtype, **others)
        leaf_tier.install(settings)
        attention.install(settings)

    return start


@pytest.fixture(autouse=True)
def nothing_measured_before(monkeypatch, tmp_path):
    """Each test's trials are held anew, and leave nothing for the next."""
    monkeypatch.setenv(env.CACHE, str(tmp_path / "cache"))
    yield
    guards.speed.clear()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)

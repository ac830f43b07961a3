# SPDX-License-Identifier: Apache-2.0
"""--low-memory: a packed weight's own values leave memory, and whoever looks finds them bit by bit as they were."""

import copy
import json
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from judging import decisions, error
from torch import nn

from slipstream.kernels import native
from slipstream.optimize import one_copy
from slipstream.optimize.pieces.linear import onednn_has_bfloat16
from slipstream.optimize.pieces.piece import Piece

pytestmark = [
    pytest.mark.skipif(one_copy.directory() is None, reason="no local disk for temporary files"),
    pytest.mark.skipif(not (native.available() or onednn_has_bfloat16()), reason="nothing is packed here"),
]


@pytest.fixture
def moved(engine):
    """A layer whose weight was moved, its values before, an input."""
    engine("bfloat16", low_memory=True)
    layer, x = nn.Linear(600, 500).eval(), torch.randn(3, 600)
    before, pointer = layer.weight.detach().clone(), layer.weight.data_ptr()
    with torch.no_grad():
        for _ in range(4):
            layer(x)
    assert decisions(taken=True) and layer.weight.data_ptr() != pointer
    assert not layer.weight.untyped_storage().resizable()
    return layer, before, x


def plain(layer, x):
    return nn.functional.linear(x, layer.weight, layer.bias)


def test_every_way_of_reading(moved):
    layer, before, _ = moved
    weight = layer.weight
    assert type(weight) is nn.Parameter and weight.requires_grad
    for found in (
        weight,
        weight.data,
        layer.state_dict()["weight"],
        copy.deepcopy(layer).weight,
        pickle.loads(pickle.dumps(layer)).weight,
        torch.from_numpy(weight.detach().numpy()),
        weight.detach().view(-1)[:].view(500, 600),
    ):
        assert torch.equal(found, before)
    assert str(weight) == str(nn.Parameter(before))


@torch.no_grad()
def test_writing_is_seen_by_the_next_call(moved):
    layer, before, x = moved
    layer.weight.mul_(2)
    assert torch.equal(layer.weight, 2 * before)
    for _ in range(3):
        assert error(layer(x), plain(layer, x)) < 1e-2
    layer.load_state_dict({"weight": before, "bias": layer.bias})
    for _ in range(3):
        assert error(layer(x), plain(layer, x)) < 1e-2
    assert torch.equal(layer.weight, before)


def test_training_goes_on(moved):
    layer, before, x = moved
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer.train()(x).sum().backward()
    gradient = layer.weight.grad.clone()
    optimizer.step()
    assert torch.equal(layer.weight, before - gradient)


@torch.no_grad()
def test_sizes_met_later_do_not_bring_the_weight_back(moved, monkeypatch):
    layer, _, _ = moved
    x = torch.randn(40, 600)
    with monkeypatch.context() as patch:  # not forward itself: another one there would be the script's, and called
        patch.setattr(Piece, "original", lambda *arguments: pytest.fail("the original ran"))
        patch.setattr(nn.Linear, "_call_impl", lambda *arguments: pytest.fail("the original ran"), raising=False)
        y = layer(x)
    assert error(y, plain(layer, x)) < 1e-2


@torch.no_grad()
@pytest.mark.parametrize("hold", ["detach", "view", "numpy", "state_dict"])
def test_what_something_else_holds_stays(engine, hold):
    engine("bfloat16", low_memory=True)
    layer, x = nn.Linear(600, 500).eval(), torch.randn(3, 600)
    held = {
        "detach": layer.weight.detach,
        "view": lambda: layer.weight[:10],
        "numpy": lambda: layer.weight.detach().numpy(),
        "state_dict": layer.state_dict,
    }[hold]()
    pointer = layer.weight.data_ptr()
    for _ in range(6):
        layer(x)
    assert layer.weight.data_ptr() == pointer
    del held
    for _ in range(12):
        assert error(layer(x), plain(layer, x)) < 1e-2
    assert (layer.weight.data_ptr() != pointer) == (hold != "numpy")  # torch counts such memory as shared for good


def test_not_while_another_thread_may_be_reading():
    weight, stop, ready = nn.Parameter(torch.randn(600, 600)), [], threading.Event()

    def busy():
        ready.set()
        while not stop:
            weight.sum()

    assert one_copy.is_free(weight)
    thread = threading.Thread(target=busy)
    thread.start()
    ready.wait()
    try:
        assert not one_copy.move(weight)
    finally:
        stop.append(True)
        thread.join()
    waiting = threading.Thread(target=(event := threading.Event()).wait)
    waiting.start()
    assert one_copy.move(weight)
    event.set()
    waiting.join()


def test_no_file_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(one_copy, "directory", lambda: str(tmp_path))
    weight = nn.Parameter(torch.randn(600, 600).t())
    before = weight.detach().clone()
    assert one_copy.move(weight) and weight.stride() == before.t().contiguous().t().stride()
    assert torch.equal(weight, before) and not list(tmp_path.iterdir())


SCRIPT = """
import json, sys, torch
from torch import nn
from slipstream.autopatch.settings import Settings
from slipstream.optimize import guards, leaf_tier, options

def resident():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {name: int(fields[name].split()[0]) / 1e3 for name in ("VmRSS", "VmHWM")}

torch.set_num_threads(1)
leaf_tier.install(Settings(dtype=sys.argv[1], low_memory=True))
options.set_up.allowance.share = float("inf")
guards.speed.known = lambda question: guards.Verdict(True, 2.0)
with torch.no_grad():
    small = nn.Linear(600, 600).eval()
    for _ in range(4):
        small(torch.randn(2, 600))
    before = resident()
    model = nn.Sequential(*[nn.utils.skip_init(nn.Linear, 2048, 2048) for _ in range(12)]).eval()
    for parameter in model.parameters():
        parameter.copy_(torch.randn(2048) / 45)
    sums = [int(p.view(torch.int32).sum(dtype=torch.int64)) for p in model.parameters()]
    loaded = resident()
    for _ in range(4):
        model(torch.randn(2, 2048))
    after = resident()
    again = [int(p.view(torch.int32).sum(dtype=torch.int64)) for p in model.parameters()]
print(json.dumps({"before": before, "loaded": loaded, "after": after, "same": sums == again}))
"""


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.5), ("float32", 1.0)])
def test_memory_of_a_model_of_200_megabytes(dtype, share):
    if dtype == "float32" and not native.available():
        pytest.skip("float32 is left to torch without the extension")
    done = subprocess.run([sys.executable, "-c", SCRIPT, dtype], capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout)
    model = found["loaded"]["VmRSS"] - found["before"]["VmRSS"]
    assert found["same"] and model > 190
    assert found["after"]["VmRSS"] - found["before"]["VmRSS"] < share * 201 + 45  # scratch memory of either library
    assert found["after"]["VmHWM"] - found["before"]["VmRSS"] < 201 + 17 * 2 + 45

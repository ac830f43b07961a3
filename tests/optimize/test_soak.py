# SPDX-License-Identifier: Apache-2.0
"""Many threads on shared models whose weights change: each answer belongs to weights that were there; memory does not grow."""

import gc
import threading

import pytest
import torch
from judging import error
from torch import nn

from slipstream.autopatch.settings import Settings
from slipstream.decision import log
from slipstream.optimize import attention, leaf_tier, packs
from slipstream.optimize.graph import background, schedule
from slipstream.optimize.options import set_up

THREADS, CALLS, VERSIONS = 14, 500, 4
LIMIT = 2e-2


class Model(nn.Module):
    """Small, but every layer is above the size from which pieces are tried."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(96, 192)
        self.act = nn.GELU()
        self.outer = nn.Linear(192, 96)
        self.row = nn.Sequential(nn.Linear(96, 96), nn.ReLU())

    def forward(self, x):
        x = self.inner(x)
        x = self.act(x)
        return self.row(self.outer(x))


@pytest.fixture
def one_thread():
    """Each of the threads computes by itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def forced(one_thread, engine):
    """Every piece answers from packed weights."""
    engine("bfloat16")


@pytest.fixture
def started(one_thread, clean):
    """As a script has it: real trials, a real allowance."""
    leaf_tier.install(Settings(dtype="bfloat16"))
    attention.install(Settings(dtype="bfloat16"))


def run(work):
    """``work(number)`` on all threads; what they found wrong."""
    wrong = []

    def guarded(number):
        try:
            wrong.extend(work(number))
        except Exception as failure:  # noqa: BLE001 - a thread's failure is the test's
            wrong.append(repr(failure))

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@torch.no_grad()
def answers(model, states, x):
    found = []
    for state in states:
        model.load_state_dict(state)
        with torch.enable_grad():  # small layers that record are left to torch
            found.append(model(x).detach())
    return found


def versions(model):
    return [{name: torch.randn_like(value) for name, value in model.state_dict().items()} for _ in range(VERSIONS)]


@pytest.fixture(params=["layers", "graph"])
def answering(request, monkeypatch, forced):
    """By what: a graph is captured at once, or not before the test is over."""
    if request.param == "graph":
        for name, value in {"CALLS": 1, "SMALL_S": 0.0, "BESIDE": 1e-9, "CALLS_OF_PROOF": 0}.items():
            monkeypatch.setattr(schedule, name, value)
    else:
        monkeypatch.setattr(schedule, "CALLS", 1 << 30)
    yield request.param
    background.wait()


def test_weights_reloaded_between_calls(answering):
    """Two shared models; whoever reloads waits until nobody is inside, as a server does."""
    models, x = [Model().eval() for _ in range(2)], torch.randn(8, 96)
    states = [versions(model) for model in models]
    wanted = [answers(model, of_model, x) for model, of_model in zip(models, states, strict=True)]
    current, inside, turn = [VERSIONS - 1] * 2, [0, 0], threading.Condition()

    @torch.no_grad()
    def work(number):
        wrong = []
        for call in range(CALLS):
            which = (number + call) % 2
            with turn:
                if number == 0 and call % 50 == 49:
                    turn.wait_for(lambda which=which: inside[which] == 0)
                    current[which] = (current[which] + 1) % VERSIONS
                    state = {name: value.clone() for name, value in states[which][current[which]].items()}
                    models[which].load_state_dict(state, assign=call % 100 == 99)
                inside[which] += 1
                version = current[which]
            y = models[which](x)
            with turn:
                inside[which] -= 1
                turn.notify_all()
            if error(y, wanted[which][version]) > LIMIT:
                wrong.append((number, call, version))
        return wrong

    assert run(work) == []
    assert any(decision.taken and "packed" in decision.what for decision in log)
    assert not any("failed" in decision.reason for decision in log)


@pytest.mark.parametrize("how", ["forced", "started"])
def test_weights_exchanged_during_calls(request, how):
    """Parameters are replaced while others compute: an answer is that of one set of weights, never of a mixture."""
    request.getfixturevalue(how)
    layer, x = nn.Linear(192, 192, bias=False).eval(), torch.randn(8, 192)
    weights = [nn.Parameter(torch.randn(192, 192)) for _ in range(VERSIONS)]
    wanted = [x @ weight.detach().t() for weight in weights]

    @torch.no_grad()
    def work(number):
        wrong = []
        for call in range(CALLS):
            if number == 0 and call % 25 == 24:
                layer.weight = weights[call // 25 % VERSIONS]
            y = layer(x)
            if min(error(y, want) for want in wanted) > LIMIT:
                wrong.append((number, call))
        return wrong

    layer.weight = weights[0]
    assert run(work) == []
    assert not any("failed" in decision.reason for decision in log)


@torch.no_grad()
def test_memory_is_flat_over_ten_thousand_calls(forced):
    model, x = Model().eval(), torch.randn(8, 96)
    state = [{name: value.clone() for name, value in model.state_dict().items()} for _ in range(2)]

    def calls(count):
        for call in range(count):
            model(x[: 1 + call % 8])
            if call % 500 == 499:
                model.load_state_dict(state[call // 500 % 2])
        gc.collect()
        objects = sum(issubclass(type(one), (torch.Tensor, packs.Pack)) for one in gc.get_objects())
        return objects, set_up.packed_bytes, len(log), len(packs._by_tensor)

    before = calls(2000)
    after = calls(10_000)
    assert after[0] <= before[0] + 8 and after[1] <= before[1] + 96 * 192 * 4 and after[2:] <= (before[2] + 4, before[3] + 4)

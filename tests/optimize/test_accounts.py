# SPDX-License-Identifier: Apache-2.0
"""What the report says of pieces: calls, seconds, bytes, and why nothing was done."""

import pytest
import torch
from torch import nn

from slipstream.autopatch import process_report
from slipstream.autopatch.settings import Settings
from slipstream.decision import log
from slipstream.optimize import accounts, guards, leaf_tier, names


@pytest.fixture
def timed(engine):
    """The engine with somebody who looks on."""
    accounts.install(Settings(verbose=True))
    engine("bfloat16")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.norm = nn.LayerNorm(64)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def account(name):
    found = [one for what, one in accounts.contents()["accounts"].items() if what.startswith(f"{name}: ")]
    assert len(found) == 1
    return found[0]


def test_calls_seconds_and_bytes(timed):
    net = Net().eval()
    with torch.no_grad():
        for _ in range(100):
            net(torch.randn(8, 64))
    for number in range(3):
        one = account(f"Net.layers.{number}")
        assert one["calls"] == 100 and one["seconds"] > 0
        assert (one["layer"], one["tier"], one["weights_mb"]) == ("Linear", "leaf", 64 * 64 * 4 / 1e6)
        assert 0 < one["packed_mb"] <= one["weights_mb"]
    model = accounts.contents()["models"]["Net"]
    assert model["layers"]["Linear"] == 3 and model["layers"]["LayerNorm"] == 1
    assert model["parameters_mb"] == pytest.approx(sum(p.nbytes for p in net.parameters()) / 1e6)


def test_a_fused_row_is_of_the_chain_tier(timed):
    row = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).eval()
    with torch.no_grad():
        row(torch.randn(8, 64))
    assert account("Sequential.0")["tier"] == "chain"


def test_attention_has_an_account(timed):
    q, k, v = (torch.randn(2, 4, 64, 32) for _ in range(3))
    with torch.no_grad():
        for _ in range(5):
            torch.nn.functional.scaled_dot_product_attention(q, k, v)
    one = account("attention")
    assert (one["calls"], one["tier"], one["layer"]) == (5, "function", "scaled_dot_product_attention")


def test_seconds_are_measured_only_where_somebody_reads_them(engine):
    engine("bfloat16")
    net = Net().eval()
    with torch.no_grad():
        net(torch.randn(8, 64))
    one = account("Net.layers.0")
    assert one["calls"] == 1 and one["seconds"] is None


def test_sampled_seconds_stand_for_all_calls(monkeypatch):
    accounts.install(Settings(verbose=True))
    one = accounts.Account("Linear")
    clock = [0.0]
    monkeypatch.setattr(accounts.time, "perf_counter", lambda: clock[0])

    def run():
        clock[0] += 2.0
        return "answer"

    sampled = 0
    for _ in range(1000):
        one.calls += 1
        if one.calls == one.next_timed:
            assert accounts.timed(one, run) == "answer"
            sampled += 1
    accounts.uninstall()
    assert one.as_dict()["seconds"] == pytest.approx(2000)
    assert sampled < 100


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda layer: layer.register_forward_hook(lambda *_: None), "it has hooks"),
        (lambda layer: torch.autocast("cpu", torch.float16), "autocast"),
    ],
)
def test_a_piece_that_stands_aside_says_why(timed, prepare, sentence):
    net = Net().eval()
    with torch.no_grad():
        around = prepare(net.layers[1])
        if hasattr(around, "__enter__") and not hasattr(around, "remove"):
            with around:
                net(torch.randn(8, 64))
        else:
            net(torch.randn(8, 64))
    found = {d.what: d for d in log}["Net.layers.1: packed linear"]
    assert not found.taken and sentence in found.reason


def test_small_layers_that_record_gradients_are_named(timed):
    Net().eval()(torch.randn(8, 64))
    assert "torch.no_grad()" in {d.what: d.reason for d in log}["small layers"]
    assert account("Net.layers.0")["calls"] == 0


def test_only_deciding_leaves_the_answer_to_torch(engine):
    engine("bfloat16", decides_only=True)
    net, x = Net().eval(), torch.randn(8, 64)
    q = torch.randn(2, 4, 64, 32)
    with torch.no_grad():
        got = net(x), torch.nn.functional.scaled_dot_product_attention(q, q, q)
        y = x
        for layer in net.layers:
            y = torch.nn.functional.linear(y, layer.weight, layer.bias)
        wanted = net.norm(y), torch._C._nn.scaled_dot_product_attention(q, q, q)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert account("Net.layers.0")["calls"] == 1 and account("attention")["calls"] == 1


def test_at_once_asks_no_clock(clean):
    leaf_tier.install(Settings(dtype="bfloat16", at_once=True))
    layer = nn.Linear(256, 256).eval()
    with torch.no_grad():
        layer(torch.randn(64, 256))
    assert account("Linear")["calls"] == 1
    leaf_tier.uninstall()
    assert not guards.speed.trusting


@pytest.mark.parametrize(
    ("only", "skip", "optimized"),
    [
        ("", "", {0, 1, 2}),
        ("", "layers.1", {0, 2}),
        ("", "Net.layers.1,layers.2", {0}),
        ("layers.[01]", "", {0, 1}),
        ("Net.*", "*.0", {1, 2}),
        ("", "layers.[1]", {0, 2}),
    ],
)
def test_modules_chosen_by_name(timed, monkeypatch, only, skip, optimized):
    monkeypatch.setenv("SLIPSTREAM_ONLY", only)
    monkeypatch.setenv("SLIPSTREAM_SKIP", skip)
    with torch.no_grad():
        Net().eval()(torch.randn(8, 64))
    layers = [what for what in accounts.contents()["accounts"] if what.startswith("Net.layers.")]
    found = {int(what[len("Net.layers.")]) for what in layers}
    assert found == optimized


def test_a_member_of_a_sequential_can_be_skipped(timed, monkeypatch):
    monkeypatch.setenv("SLIPSTREAM_SKIP", "Sequential.0")
    with torch.no_grad():
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()).eval()(torch.randn(8, 64))
    assert [what.partition(":")[0] for what in accounts.contents()["accounts"]] == ["Sequential.2"]


def test_attention_can_be_skipped(clean, always_faster, monkeypatch):
    from slipstream.optimize import attention

    monkeypatch.setenv("SLIPSTREAM_SKIP", "scaled_dot_product_attention")
    before = torch.nn.functional.scaled_dot_product_attention
    attention.install(Settings(dtype="bfloat16"))
    assert torch.nn.functional.scaled_dot_product_attention is before


def test_a_thousand_exact_names_are_looked_up_not_matched():
    whole, patterns = names._read_patterns(",".join(f"Net.layer.{number}" for number in range(1000)) + ",*.bias")
    assert len(whole) == 1000 and len(patterns) == 1


def test_who_looks_on_hears_each_decision_once(capsys, monkeypatch, clean):
    import sys

    monkeypatch.setattr(process_report, "_stderr", sys.stderr)
    monkeypatch.setattr(log, "listener", process_report._say)
    for _ in range(3):
        log.note("Net.0: packed linear", True, "packed once", speedup_x=2.0)
    log.note("Net.0: packed linear", False, "not accurate enough")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "slipstream: + Net.0: packed linear: packed once (speedup_x 2)",
        "slipstream: - Net.0: packed linear: not accurate enough",
    ]

# SPDX-License-Identifier: Apache-2.0
"""Old signatures do what they did, or say what they do not do."""

import ctypes
import pickle

import pytest
import torch

from slipstream import decision
from slipstream.compat import adapters
from slipstream.errors import UsageError
from slipstream.runtime import topology


def noted(what):
    return [entry for entry in decision.log if entry.what == what]


@pytest.fixture
def optimize_model(monkeypatch):
    """In the place of the verb, a function that keeps what it was called with."""
    calls = []

    def stand_in(model, **arguments):
        calls.append((model, arguments))
        return "optimized"

    resolve = adapters._resolve
    monkeypatch.setattr(
        adapters,
        "_resolve",
        lambda target: stand_in if target.endswith(":optimize_model") else resolve(target),
    )
    return calls


def test_optimize_is_optimize_model(optimize_model):
    model = torch.nn.Linear(2, 2).eval()
    assert adapters.optimize(model, torch.bfloat16, inplace=True) == "optimized"
    assert adapters.optimize(model) == "optimized"
    assert optimize_model == [
        (model, {"dtype": torch.bfloat16, "inplace": True}),
        (model, {"dtype": None, "inplace": False}),
    ]


def test_optimize_for_real():
    pytest.importorskip("slipstream.optimize.optimize_model", reason="optimize_model is not there")
    model, x = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU()).eval(), torch.randn(4, 32)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(adapters.optimize(model)(x), expected)
        got = adapters.optimize(model, dtype=torch.bfloat16)(x)
    torch.testing.assert_close(got.float(), expected, atol=0.03, rtol=0.03)


def test_training_is_left_alone_and_said(optimize_model):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert adapters.optimize(model, optimizer=optimizer) == (model, optimizer)
    assert not optimize_model
    assert "for inference" in noted("ipex.optimize: training")[0].reason


def test_switches_are_noted_not_swallowed(optimize_model):
    decision.log.clear()
    adapters.optimize(torch.nn.Linear(2, 2), graph_mode=True, conv_bn_folding=False, sample_input=torch.ones(2, 2))
    assert {entry.what for entry in decision.log} == {
        "ipex.optimize: graph_mode",
        "ipex.optimize: conv_bn_folding",
        "ipex.optimize: sample_input",
    }
    assert not any(entry.taken for entry in decision.log)
    assert len(optimize_model) == 1


def test_level_zero_gives_the_model_back(optimize_model):
    model = torch.nn.Linear(2, 2)
    assert adapters.optimize(model, level="O0", inplace=True) is model
    copied = adapters.optimize(model, level="O0")
    assert copied is not model
    assert torch.equal(copied.weight, model.weight)
    assert not optimize_model
    with pytest.raises(UsageError, match="level O2: not one of O0, O1"):
        adapters.optimize(model, level="O2")


def test_math_modes_are_pytorchs_own():
    before = torch.get_float32_matmul_precision(), torch.backends.mkldnn.conv.fp32_precision
    try:
        for mode, precision in zip(adapters.FP32MathMode, ("highest", "high", "medium"), strict=True):
            adapters.set_fp32_math_mode(mode)
            assert torch.get_float32_matmul_precision() == precision
            assert adapters.get_fp32_math_mode() == mode
            assert (torch.backends.mkldnn.conv.fp32_precision == "bf16") == (precision == "medium")
        adapters.set_fp32_math_mode()
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.mkldnn.conv.fp32_precision = before[1]


@pytest.mark.parametrize("function", [adapters.set_fp32_math_mode, adapters.get_fp32_math_mode])
def test_math_modes_are_for_the_cpu(function):
    with pytest.raises(UsageError, match="device xpu: not one of cpu"):
        function(device="xpu")


def test_an_unknown_math_mode():
    with pytest.raises(UsageError, match="mode 7"):
        adapters.set_fp32_math_mode(7)


def printed(capfd):
    ctypes.CDLL(None).fflush(None)  # oneDNN prints through C's own buffer
    return capfd.readouterr().out


def test_verbose_prints_for_the_block_alone(capfd):
    convolution, x = torch.nn.Conv2d(16, 16, 3).eval(), torch.randn(4, 16, 32, 32)  # enough for oneDNN
    with torch.no_grad():
        with adapters.verbose(adapters.VERBOSE_ON):
            convolution(x)
        assert "onednn_verbose" in printed(capfd)
        convolution(x)
        assert printed(capfd) == ""
    with pytest.raises(UsageError, match="level 3: not one of 0, 1, 2"):
        adapters.verbose(3)


def test_onednn_fusion_is_pytorchs_switch():
    before = torch.jit.onednn_fusion_enabled()
    try:
        for enabled in (True, False):
            adapters.enable_onednn_fusion(enabled)
            assert torch.jit.onednn_fusion_enabled() is enabled
    finally:
        torch.jit.enable_onednn_fusion(before)


def test_channels_last_switches_are_noted():
    adapters.enable_auto_channels_last()
    adapters.disable_auto_channels_last()
    assert noted("ipex auto channels last: on")
    assert noted("ipex auto channels last: off")


def test_version_prints(capsys):
    adapters.version()
    assert adapters.VERSION in capsys.readouterr().out
    assert (adapters.has_cpu(), adapters.has_xpu()) == (True, False)


def test_counts_of_nodes_and_cores():
    usable = topology.read_topology()
    assert adapters.get_num_nodes() == len({cpu.node for cpu in usable.cpus})
    cores = {cpu.core for cpu in usable.cpus}
    assert len(cores) / adapters.get_num_nodes() <= adapters.get_num_cores_per_node() <= len(cores)


@pytest.fixture
def trained():
    """A BatchNorm2d whose constants are not the fresh ones."""
    norm = torch.nn.BatchNorm2d(5, eps=1e-3)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(tensor)
    torch.nn.init.uniform_(norm.running_var, 0.2, 3)
    return norm.eval()


def test_frozen_batch_norm_is_batch_norm_with_constants(trained):
    frozen, x = adapters.FrozenBatchNorm2d(5, eps=1e-3), torch.randn(2, 5, 4, 3)
    assert frozen.load_state_dict(trained.state_dict()) == ([], [])  # num_batches_tracked is left out
    torch.testing.assert_close(frozen.train()(x), trained(x))  # in training too
    assert list(frozen.parameters()) == []
    assert sorted(frozen.state_dict()) == ["bias", "running_mean", "running_var", "weight"]


def test_frozen_batch_norm_inside_a_model(trained):
    model = torch.nn.Sequential(adapters.FrozenBatchNorm2d(5, eps=1e-3))
    model.load_state_dict({f"0.{name}": value for name, value in trained.state_dict().items()})
    x = torch.randn(1, 5, 2, 2, requires_grad=True)
    model(x).sum().backward()
    expected = (trained.weight / (trained.running_var + 1e-3).sqrt()).detach().reshape(1, 5, 1, 1).expand_as(x)
    torch.testing.assert_close(x.grad, expected)
    again = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(again(x), model(x))
    assert repr(again[0]) == "FrozenBatchNorm2d(5, eps=0.001)"
    assert type(again[0]) is adapters.FrozenBatchNorm2d

# SPDX-License-Identifier: Apache-2.0
"""A captured and lowered model answers as the original does: values, dtypes, shapes, strides, structure, aliases."""

import gc

import pytest
import torch
from torch import nn

from slipstream.decision import log
from slipstream.kernels import native
from slipstream.optimize import leaf_tier, options
from slipstream.optimize.graph import background
from slipstream.optimize.graph.results import laid_out
from tests.optimize.graph.conftest import needs_native, settle
from tests.optimize.graph.models import CASES
from tests.optimize.judging import LIMIT, error

pytestmark = [needs_native, pytest.mark.filterwarnings("ignore:LSTM with projections")]


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for part in (value.values() if isinstance(value, dict) else value) for leaf in tensors(part)]


def plain(model, *args):
    with torch.inference_mode():
        return model(*args)


even_same = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@even_same
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_same_answer(at_once, case, dtype):
    model, args = CASES[case]()
    wanted = plain(model, *args)
    at_once(dtype)
    root = settle(model, *args)
    (way,) = root.ways
    assert list(way.won.values()) == [True]
    before = [argument.clone() for argument in args]
    with torch.inference_mode():
        got = model(*args)
    assert way.program.broken is None
    assert type(got) is type(wanted)
    for ours, theirs in zip(tensors(got), tensors(wanted), strict=True):
        assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
        assert error(ours, theirs) < LIMIT["bfloat16" if ours.dtype is torch.bfloat16 else dtype]
    for argument, same in zip(args, before, strict=True):
        assert torch.equal(argument, same)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        return self.second(self.first(x).relu())


def test_the_float32_matmul_precision_of_each_call_holds(at_once):
    largest = {"highest": 1e-6, "high": 2e-5, "medium": 8e-3}
    model, x = Two().eval(), torch.randn(2, 10, 64)
    wanted = plain(model.double(), x.double())
    model.float()
    try:
        with native.level(native.EMULATED), torch.inference_mode():
            at_once("float32")
            (way,) = settle(model, x).ways
            for precision in ("highest", "medium", "high", "highest"):
                background.wait()  # dynamo puts back what the precision was when a capture began
                torch.set_float32_matmul_precision(precision)
                for _ in range(3):
                    got = model(x)
                assert way.program.broken is None and way.program.is_right
                assert error(got, wanted) < largest[precision]
                assert precision == "highest" or error(got, wanted) > largest[precision] / 40
    finally:
        background.wait()
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("case", ["residual", "encoder"])
def test_what_is_fused(at_once, case):
    at_once("bfloat16")
    model, args = CASES[case]()
    graph = settle(model, *args).ways[0].program.lowered.fast.graph
    names = [str(getattr(node.target, "kind", node.target)) for node in graph.nodes if node.op.startswith("call")]
    if case == "residual":
        assert names.count("convolution") == 5
        assert (names.count("max_pool"), names.count("global_average")) == (1, 1)
        assert not any("norm" in name or "add" in name or "relu" in name for name in names)
    else:
        assert (names.count("linear"), names.count("joint_linear")) == (7, 2)
        assert (names.count("attention"), names.count("layer_norm")) == (2, 4)
        assert "gelu" not in names and "dropout" not in names


@pytest.mark.parametrize("case", ["scaled", "scaled, uneven zeros"])
def test_zeros_scales_and_permuted_sums_are_fused(at_once, case):
    at_once("bfloat16")
    model, args = CASES[case]()
    graph = settle(model, *args).ways[0].program.lowered.fast.graph
    names = {
        str(getattr(node.target, "kind", getattr(node.target, "__name__", node.target)))
        for node in graph.nodes
        if node.op.startswith("call")
    }
    assert names == {"convolution", "permute", "normed_linear", "linear", "global_average", laid_out.__name__}


@even_same
def test_padding_by_name_is_padding(at_once):
    at_once("bfloat16")
    model, args = CASES["padding by name"]()
    graph = settle(model, *args).ways[0].program.lowered.fast.graph
    names = [str(getattr(node.target, "kind", node.target)) for node in graph.nodes if node.op.startswith("call")]
    assert (names.count("convolution"), names.count("gated_pointwise")) == (5, 1)
    assert not any("norm" in name or "silu" in name or "pad" in name for name in names)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_means_of_images_are_pooling(at_once, dtype):
    at_once(dtype)
    model, args = CASES["averaged"]()
    graph = settle(model, *args).ways[0].program.lowered.fast.graph
    names = [str(getattr(node.target, "kind", node.target)) for node in graph.nodes if node.op.startswith("call")]
    assert (names.count("global_average"), names.count("mean")) == (5, 2)


@pytest.mark.parametrize(("case", "count"), [("waves", 5), ("volumes", 3)])
def test_convolutions_of_every_rank_are_fused(at_once, case, count):
    at_once("bfloat16")
    model, args = CASES[case]()
    graph = settle(model, *args).ways[0].program.lowered.fast.graph
    names = [str(getattr(node.target, "kind", node.target)) for node in graph.nodes if node.op.startswith("call")]
    assert names.count("convolution") == count
    assert not any(word in name for name in names for word in ("norm", "relu", "silu", "gelu", "tanh", "add"))
    with torch.inference_mode():
        model(*args)
        for parameter in model.parameters():
            parameter.mul_(1.1)
        (got, *_), (wanted, *_) = model(*args), model._call_impl(*args)
    assert error(got, wanted) < LIMIT["bfloat16"] * 2


def test_what_is_written_out_is_fused(at_once):
    at_once("bfloat16")
    model, args = CASES["written out"]()
    graph = settle(model, *args).ways[0].program.lowered.fast.graph
    names = [str(getattr(node.target, "kind", node.target)) for node in graph.nodes if node.op.startswith("call")]
    assert (names.count("rms_norm"), names.count("normed_linear"), names.count("linear")) == (1, 2, 4)
    normed = [node.target.linear for node in graph.nodes if getattr(node.target, "kind", "") == "normed_linear"]
    assert [(linear.kind, linear.post_op) for linear in normed] == [("joint_linear", "none"), ("linear", "gelu_tanh")]
    post_ops = sorted(node.target.post_op for node in graph.nodes if getattr(node.target, "kind", "") == "linear")
    assert post_ops == ["none", "none", "none", "silu"]
    assert not {"expand", "pow", "tanh", "chunk", "silu"} & set(names)


@pytest.mark.parametrize("case", ["lstm", "gru", "rnn"])
def test_a_recurrent_module_is_one_operator_with_bfloat16_behind_it(at_once, case):
    at_once("bfloat16")
    model, args = CASES[case]()
    graph = settle(model, *args).ways[0].program.lowered.fast.graph
    (cells,) = [node.target for node in graph.nodes if getattr(node.target, "kind", "") == "recurrent"]
    assert (cells.product, cells.out, cells.states) == (torch.bfloat16, torch.bfloat16, False)
    assert not any(getattr(node.target, "__name__", "") == "zeros" for node in graph.nodes)


@pytest.mark.parametrize("case", ["lstm", "lstm, projected", "gru, states", "rnn", "written out"])
def test_weights_that_may_not_be_packed(at_once, case):
    at_once("float32")
    model, args = CASES[case]()
    root = settle(model, *args)
    held = [parameter.data for parameter in model.parameters()]
    for factor in (0.5, 2):
        for data in held:
            data.mul_(factor)
        wanted = plain(model._call_impl, *args)
        got = plain(model, *args)
        for ours, theirs in zip(tensors(got), tensors(wanted), strict=True):
            assert error(ours, theirs) < LIMIT["float32"]
    assert root.ways[0].program.broken is None


@pytest.mark.parametrize("case", ["lstm", "written out"])
def test_packs_are_the_layers_own(at_once, case):
    at_once("bfloat16")
    model, args = CASES[case]()
    plain(model, *args)
    gc.collect()
    before = options.set_up.packed_bytes
    assert settle(model, *args).ways
    assert 0 < options.set_up.packed_bytes <= before


@pytest.mark.parametrize("case", ["gates", "gates, bfloat16"])
def test_gates_that_are_spelled_out_are_known(at_once, case):
    at_once("float32")
    model, args = CASES[case]()
    graph = settle(model, *args).ways[0].program.lowered.fast.graph
    operators = [node.target for node in graph.nodes if getattr(node.target, "kind", "") == "linear"]
    assert [operator.post_op for operator in operators] == [
        "gelu_tanh", "gelu_tanh", "gelu_erf", "silu", "quick_gelu", "none", "none",
    ]  # fmt: skip
    names = [str(getattr(node.target, "__name__", node.target)) for node in graph.nodes]
    assert (names.count("tanh"), names.count("sigmoid"), names.count("erf")) == (1, 1, 0)


def test_bfloat16_is_kept_between_operators(at_once):
    at_once("bfloat16")
    model, args = CASES["residual"]()
    graph = settle(model, *args).ways[0].program.lowered.fast.graph
    outs = [node.target.out for node in graph.nodes if getattr(node.target, "kind", "") == "convolution"]
    assert outs == [torch.bfloat16] * 5
    assert not [node for node in graph.nodes if node.op == "call_method" and node.target == "to"]


def test_the_report_says_so(at_once):
    at_once("bfloat16")
    model, args = CASES["encoder"]()
    settle(model, *args)
    (decision,) = [decision for decision in log if decision.what == "Encoder.graph: whole model"]
    assert decision.taken
    assert decision.reason == "15 fused operators"
    assert set(decision.figures) == {"speedup_x", "error_relative"}


def test_graph_mode_can_be_switched_off(at_once):
    at_once("bfloat16", graph_mode=False)
    model, args = CASES["residual"]()
    assert settle(model, *args) is None


@pytest.mark.parametrize(
    ("variable", "value", "graph"),
    [
        ("SLIPSTREAM_SKIP", "*.graph", False),
        ("SLIPSTREAM_SKIP", "stem", False),
        ("SLIPSTREAM_SKIP", "other.*", True),
        ("SLIPSTREAM_ONLY", "Residual.graph", True),
        ("SLIPSTREAM_ONLY", "stem", False),
    ],
)
def test_patterns_of_names(at_once, monkeypatch, variable, value, graph):
    monkeypatch.setenv(variable, value)
    at_once("bfloat16")
    model, args = CASES["residual"]()
    assert (settle(model, *args) is not None) is graph


def test_undone_without_a_trace(at_once):
    at_once("bfloat16")
    model, args = CASES["residual"]()
    assert settle(model, *args) is not None
    leaf_tier.uninstall()
    assert "_compiled_call_impl" not in model.__dict__


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_convolution_leaves_quick_gelu_to_torch(at_once, dtype):
    """oneDNN's convolutions lack it, and which kernel answers is found out later."""

    class Quick(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.wide = nn.Conv2d(3, 8, 3), nn.Conv1d(8, 8, 3)

        def forward(self, x):
            y = self.conv(x)
            y = self.wide((y * torch.sigmoid(1.702 * y)).flatten(2))
            return y * torch.sigmoid(1.702 * y)

    model, x = Quick().eval(), torch.randn(2, 3, 9, 9)
    with torch.inference_mode():
        wanted = model(x)
    at_once(dtype)
    assert settle(model, x).ways
    with torch.inference_mode():
        assert error(model(x), wanted) < LIMIT[dtype]


class AttendsToPixels(nn.Module):
    """As the middle of an autoencoder of images: pixels as rows, and back."""

    def __init__(self):
        super().__init__()
        self.first, self.mix, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        y = self.first(x)
        rows = self.mix(y.flatten(2).transpose(1, 2))
        image = rows.transpose(-1, -2).reshape(y.shape)
        return self.last(image), image + y, rows


@pytest.mark.parametrize("batch", [1, 2])
def test_results_lie_in_memory_as_torchs_do_where_the_capture_tells_otherwise(at_once, batch):
    """A stride along an axis of one decides in which order a convolution lays channels out."""
    model, x = AttendsToPixels().eval(), torch.randn(batch, 3, 8, 8)
    wanted = plain(model, x)
    at_once("float32")
    (way,) = settle(model, x).ways
    with torch.inference_mode():
        got = model(x)
    assert way.program.broken is None
    assert way.program.follows == (batch == 1)
    for ours, torchs in zip(got, wanted, strict=True):
        assert ours.stride() == torchs.stride()
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-5)

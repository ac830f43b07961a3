# SPDX-License-Identifier: Apache-2.0
"""Functions of torch that stand for several operations are read as those: attention layers, encoder layers, x @ weight."""

import pytest
import torch
from torch import nn

from slipstream.optimize.graph.capturing.capture import capture
from slipstream.optimize.graph.capturing.refusals import CaptureRefused
from slipstream.optimize.graph.lower import lower
from slipstream.optimize.graph.nodes import name_of
from slipstream.optimize.graph.normed.normed_linear import NormedLinear
from slipstream.optimize.graph.operators.attention import Attention
from slipstream.optimize.graph.operators.linear import Linear
from slipstream.optimize.options import Options
from tests.optimize.graph.conftest import needs_native

E, H, B, L, S = 64, 4, 3, 10, 14


class Attends(nn.Module):
    def __init__(self, call, width=E, **settings):
        super().__init__()
        self.layer = nn.MultiheadAttention(width, H, **settings)
        self.call = call

    def forward(self, x, memory):
        return self.call(self.layer, x, memory)


def hides_some(*shape):
    """A row that hides nothing is among them, and none that hides everything."""
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(3)) < 0.4
    mask[..., 0] = False
    return mask


def hides_later(_):
    return torch.ones(L, L, dtype=torch.bool).triu(1)


PADDING, EACH = hides_some(B, S), hides_some(B * H, L, S)


def lowered(model, inputs, dtype=torch.float32, *, dynamic=False):
    with torch.inference_mode():
        captured = capture(model, inputs, {}, dynamic=dynamic)
        return captured, lower(captured.graph, captured.inputs, Options(dtype), captured.own)


def operators(graph, kind):
    return [node for node in graph.fast.graph.nodes if isinstance(node.target, kind)]


def check(model, inputs, *, attentions, linears, dtype=torch.float32):
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    captured, graph = lowered(model, inputs, dtype)
    assert len(operators(graph, Attention)) == attentions
    assert len(operators(graph, Linear | NormedLinear)) == linears
    with torch.inference_mode():
        wanted, got = model(*inputs), captured.wrap(graph.fast)(model, *inputs)
    assert (got.shape, got.stride(), got.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)
    assert (got - wanted).norm() <= limit * wanted.norm()


CALLS = {
    "of itself": (lambda layer, x, _: layer(x, x, x)[0], 2),
    "of a memory": (lambda layer, x, memory: layer(x, memory, memory)[0], 3),
    "of three inputs": (lambda layer, x, memory: layer(x, memory, memory + 1)[0], 4),
    "causal": (
        lambda layer, x, _: layer(x, x, x, attn_mask=hides_later(x), is_causal=True, need_weights=False)[0], 2
    ),
    "causal, told by the mask alone": (lambda layer, x, _: layer(x, x, x, attn_mask=hides_later(x), is_causal=True)[0], 2),
    "padding": (lambda layer, x, memory: layer(x, memory, memory, key_padding_mask=PADDING)[0], 3),
    "both masks": (
        lambda layer, x, memory: layer(
            x, memory, memory, key_padding_mask=PADDING * -3.0, attn_mask=torch.linspace(-1, 1, L * S).view(L, S)
        )[0],
        3,
    ),
    "a mask for each head": (lambda layer, x, memory: layer(x, memory, memory, attn_mask=EACH)[0], 3),
}  # fmt: skip


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_attention_layers(name, batch_first, dtype):
    call, linears = CALLS[name]
    model = Attends(call, batch_first=batch_first).eval()
    x, memory = torch.randn(B, L, E), torch.randn(B, S, E)
    if not batch_first:
        x, memory = x.transpose(0, 1).contiguous(), memory.transpose(0, 1).contiguous()
    check(model, (x, memory), attentions=1, linears=linears, dtype=dtype)


@needs_native
@pytest.mark.parametrize("width", [48, 72, 144])
@pytest.mark.parametrize("name", ["of itself", "of a memory", "of three inputs"])
def test_projections_that_end_within_a_panel_of_packed_weights(name, width):
    call, linears = CALLS[name]
    model = Attends(call, width, batch_first=True).eval()
    check(model, (torch.randn(B, L, width), torch.randn(B, S, width)), attentions=1, linears=linears)


@needs_native
@pytest.mark.parametrize(
    ("call", "settings"),
    [
        (lambda layer, x, _: layer(x, x, x)[1], {}),
        (lambda layer, x, _: layer(x, x, x)[0], {"add_zero_attn": True}),
        (lambda layer, x, _: layer(x, x, x)[0], {"add_bias_kv": True}),
        (lambda layer, x, memory: layer(x, memory[..., :32], memory[..., :16])[0], {"kdim": 32, "vdim": 16}),
    ],
    ids=["weights are read", "zeros are attended to", "keys of its own", "a projection for each"],
)
def test_attention_layers_of_other_kinds_stay(call, settings):
    model = Attends(call, batch_first=True, **settings).eval()
    inputs = torch.randn(B, L, E), torch.randn(B, L, E)
    with pytest.raises(CaptureRefused, match="no operation in it is faster"):
        lowered(model, inputs)


@needs_native
def test_an_attention_layer_for_all_sizes():
    model = Attends(CALLS["of a memory"][0], batch_first=True).eval()
    inputs = torch.randn(B, L, E), torch.randn(B, S, E)
    captured, graph = lowered(model, inputs, dynamic=True)
    run = captured.wrap(graph.fast)
    with torch.inference_mode():
        for batch, queries, keys in ((B, L, S), (5, 7, 9)):
            inputs = torch.randn(batch, queries, E), torch.randn(batch, keys, E)
            torch.testing.assert_close(run(model, *inputs), model(*inputs), rtol=1e-4, atol=1e-5)


class Encodes(nn.Module):
    def __init__(self, masks=None, **settings):
        super().__init__()
        settings = {"dim_feedforward": 96, "batch_first": True, **settings}
        layer = nn.TransformerEncoderLayer(E, H, **settings)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        for number, parameter in enumerate(self.encoder.parameters()):  # a fresh encoder's layers are alike
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))
        self.masks = masks or {}

    def forward(self, x):
        return self.encoder(x, **self.masks)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation": "gelu"},
        {"norm_first": True, "layer_norm_eps": 1e-3},
        {"masks": {"mask": hides_later(None)}},
        {"masks": {"src_key_padding_mask": hides_some(B, L)}},
        {"masks": {"src_key_padding_mask": hides_some(B, L), "mask": hides_later(None)}},
        {"batch_first": False},
    ],
    ids=["relu", "gelu", "norm first", "causal", "padding", "both masks", "batch second"],
)
def test_encoder_layers(settings, dtype):
    check(Encodes(**settings).eval(), (torch.randn(B, L, E),), attentions=2, linears=8, dtype=dtype)


@needs_native
def test_decoders():
    class Decodes(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerDecoderLayer(E, H, 96, batch_first=True)
            self.decoder = nn.TransformerDecoder(layer, 2)

        def forward(self, x, memory):
            return self.decoder(x, memory, tgt_mask=hides_later(x), tgt_is_causal=True)

    model = Decodes().eval()
    check(model, (torch.randn(B, L, E), torch.randn(B, S, E)), attentions=4, linears=2 * (2 + 3 + 2))


class Multiplies(nn.Module):
    """By weights [in, out]."""

    def __init__(self, call):
        super().__init__()
        self.weight, self.back = nn.Parameter(torch.randn(E, 96) / 8), nn.Parameter(torch.randn(96, E) / 8)
        self.bias, self.back_bias = nn.Parameter(torch.randn(96)), nn.Parameter(torch.randn(E))
        self.call = call

    def forward(self, x):
        return self.call(self, x)


def as_conv1d(self, x):
    """transformers' Conv1D, twice, with what stands around it in GPT-2."""
    y = torch.addmm(self.bias, x.view(-1, E), self.weight).view(B, L, 96)
    y = nn.functional.gelu(y, approximate="tanh")
    return x + torch.addmm(self.back_bias, y.view(-1, 96), self.back).view(B, L, E)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("call", "linears"),
    [
        (as_conv1d, 2),
        (lambda self, x: torch.relu(x[:, 0] @ self.weight) + self.bias, 1),
        (lambda self, x: torch.matmul(x, self.weight), 1),
        (lambda self, x: x.flatten(0, 1).mm(self.weight), 1),
        (lambda self, x: torch.addmm(self.bias, x.flatten(0, 1), self.weight).view(L, B, 96), 1),
    ],
    ids=["as Conv1D", "a row of each", "matmul", "mm", "addmm into other axes"],
)
def test_products_with_a_transposed_weight(call, linears, dtype):
    model = Multiplies(call).eval()
    check(model, (torch.randn(B, L, E),), attentions=0, linears=linears, dtype=dtype)
    if call is as_conv1d:
        _, graph = lowered(model, (torch.randn(B, L, E),), dtype)
        assert not [node for node in graph.fast.graph.nodes if name_of(node) in ("gelu", "add", "view", "reshape")]


@needs_native
@pytest.mark.parametrize(
    "call",
    [
        lambda self, x: x @ x.transpose(1, 2),
        lambda self, x: torch.addmm(self.bias, x[0], self.weight, beta=0.5),
        lambda self, x: torch.addmm(x[0, :, :1], x[0], self.weight),
        lambda self, x: x[0] @ self.weight[:, 0],
    ],
    ids=["of two inputs", "with a factor", "with a sum of rows", "with a vector"],
)
def test_other_products_are_no_linears(call):
    model = Multiplies(call).eval()
    try:
        _, graph = lowered(model, (torch.randn(B, L, E),))
    except CaptureRefused:
        return
    assert not operators(graph, Linear)


@needs_native
def test_a_weight_that_is_read_both_ways_has_a_pack_for_each():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(E, E) / 8)

        def forward(self, x):
            return nn.functional.linear(torch.relu(x @ self.weight), self.weight)

    check(Tied().eval(), (torch.randn(B, L, E),), attentions=0, linears=2)

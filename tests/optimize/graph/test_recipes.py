# SPDX-License-Identifier: Apache-2.0
"""Patterns of einops are read by einops, and what they say is captured as any other views are."""

import einops
import einops.layers.torch
import pytest
import torch
from torch import nn

from slipstream.optimize.graph.capturing.capture import capture
from tests.optimize.graph.conftest import needs_native, settle
from tests.optimize.judging import LIMIT, error


class Attention(nn.Module):
    """As in packages of vision transformers."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(48, 144), nn.Linear(48, 48)
        self.heads, self.joined = 3, "b h n d -> b n (h d)"
        self.pool = einops.layers.torch.Reduce("b (h p) c -> b h c", "mean", p=2)

    def forward(self, image):
        x = einops.rearrange(image, "b c (h p) (w q) -> b (h w) (p q c)", p=2, q=2)
        q, k, v = (einops.rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in self.qkv(x).chunk(3, -1))
        y = (q @ k.transpose(-1, -2) * 0.25).softmax(-1) @ v
        token = einops.repeat(self.out.bias, "d -> b 1 d", b=image.shape[0])
        y = self.out(einops.rearrange(y, self.joined)) + token
        return self.pool(y), einops.reduce(y, "... c -> c", "max")


@pytest.fixture
def read_by_einops(monkeypatch):
    """A parser that can be run and not be captured."""

    class Parsed(einops.parsing.ParsedExpression):
        def __init__(self, *args, **kwargs):
            assert not torch.compiler.is_compiling(), "read letter by letter"
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(einops.einops, "ParsedExpression", Parsed)
    einops.einops._prepare_transformation_recipe.cache_clear()


@pytest.mark.parametrize("dynamic", [False, True])
def test_captured_as_it_is(read_by_einops, dynamic):
    model, image = Attention().eval(), torch.randn(2, 12, 8, 6)
    with torch.inference_mode():
        captured = capture(model, (image,), {}, dynamic=dynamic)
        got, wanted = captured.wrap(captured.graph)(model, image), model(image)
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours.shape, ours.stride()) == (theirs.shape, theirs.stride())
        torch.testing.assert_close(ours, theirs)


def test_the_capture_is_for_these_sizes_and_patterns(read_by_einops):
    model, image = Attention().eval(), torch.randn(2, 12, 8, 6)
    with torch.inference_mode():
        captured = capture(model, (image,), {}, dynamic=False)
        assert captured.holds({"self": model, "image": image})
        assert not captured.holds({"self": model, "image": torch.randn(2, 12, 8, 8)})
        for name, other in (("heads", 6), ("joined", "b h n d -> b n (d h)")):
            before = getattr(model, name)
            setattr(model, name, other)
            assert not captured.holds({"self": model, "image": image})
            setattr(model, name, before)
            assert captured.holds({"self": model, "image": image})


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers(at_once, read_by_einops, dtype):
    model = Attention().eval()
    images = [torch.randn(2, 12, 8, 6), torch.randn(3, 12, 8, 8), torch.randn(1, 12, 4, 6)]
    with torch.inference_mode():
        wanted = [model(image) for image in images]
    at_once(dtype)
    root = settle(model, images[0])
    assert root.ways
    for _ in range(3):
        for image, (pooled, most) in zip(images, wanted, strict=True):
            with torch.inference_mode():
                ours = model(image)
            assert error(ours[0], pooled) < LIMIT[dtype]
            assert error(ours[1], most) < LIMIT[dtype]


def test_a_wrong_pattern_is_the_scripts_error(at_once):
    class Wrong(Attention):
        def forward(self, image):
            return einops.rearrange(self.out(image), "b c -> b d")

    model = Wrong().eval()
    at_once("float32")
    for _ in range(4):
        with torch.inference_mode(), pytest.raises(einops.EinopsError, match="Identifiers only on one side"):
            model(torch.randn(2, 48))

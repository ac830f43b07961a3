# SPDX-License-Identifier: Apache-2.0
"""A result's way from module to module is found where the source proves it, and nowhere else."""

import inspect

import pytest
import torch
from torch import nn

from slipstream.optimize.chain import dataflow


class Block(nn.Module):
    def __init__(self, **flags):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()
        self.pool = None
        self.stored = None
        self.flag = flags.get("flag", True)


class Straight(Block):
    def forward(self, x):
        x = self.conv(x)
        x = self.bn(x)
        x = self.act(x)
        return x


class Nested(Block):
    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class OneNameEach(Block):
    def forward(self, x):
        a = self.conv(x)
        b = self.bn(a)
        return self.act(b)


class Decided(Block):
    def forward(self, x):
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        if self.pool is not None:
            x = self.pool(x)
        if self.flag:
            x = self.act(x)
        return x


class Residual(Block):
    def forward(self, x):
        y = self.conv(x)
        y = self.bn(y) + x
        return self.act(y)


class TailOnly(Block):
    def forward(self, x):
        if x.sum() > 0:
            x = self.conv(x)
            return self.bn(x)
        return x


class UsedTwice(Block):
    def forward(self, x):
        y = self.conv(x)
        z = self.bn(y)
        return self.act(z) + y


class UsedLater(Block):
    def forward(self, x):
        y = self.conv(x)
        z = self.bn(y)
        print(y.shape)
        return self.act(z)


class Undecided(Block):
    def forward(self, x):
        y = self.conv(x)
        if x.shape[0] > 1:
            y = self.bn(y)
        return self.act(y)


class Tried(Block):
    def forward(self, x):
        try:
            x = self.conv(x)
            x = self.bn(x)
        finally:
            self.stored = x
        return x


class Captured(Block):
    def forward(self, x):
        y = self.conv(x)
        show = lambda: y.shape  # noqa: E731
        y = self.bn(y)
        show()
        return y


class Stored(Block):
    def forward(self, x):
        self.stored = self.conv(x)
        return self.bn(self.stored)


class TwoTargets(Block):
    def forward(self, x):
        x = y = self.conv(x)
        x = self.bn(x)
        return x + y


class InBetween(Block):
    def forward(self, x):
        y = self.conv(x)
        x = x.add_(1)
        y = self.bn(y)
        return y


class MoreArguments(Block):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y, x)


class OtherOperandFirst(Block):
    def forward(self, x):
        y = self.conv(x)
        y = self.act(x) + self.bn(y)
        return y


class SameLineTwice(Block):
    def forward(self, x):
        return self.bn(self.conv(self.conv(x)))


class Peeping(Block):
    def forward(self, x):
        x = self.conv(x)
        x = self.bn(x)
        return locals()["x"]


class Looped(Block):
    def forward(self, x):
        for _ in range(3):
            x = self.conv(x)
            x = self.bn(x)
        return x


def followers(kind, name="conv", **flags):
    module = kind(**flags)
    code = kind.forward.__code__
    lines, first = inspect.getsourcelines(kind.forward)
    found = [dataflow.find(code, first + i, module, name) for i, text in enumerate(lines) if f"self.{name}(" in text]
    assert len(found) == 1
    return found[0].followers if found[0] else ()


@pytest.mark.parametrize("kind", [Straight, Nested, OneNameEach, Decided])
def test_whole_chain(kind):
    assert followers(kind) == ("bn", "act")


@pytest.mark.parametrize("kind", [Residual, TailOnly, Looped])
def test_chain_up_to_what_is_certain(kind):
    assert followers(kind) == ("bn",)


@pytest.mark.parametrize(
    "kind",
    [
        UsedTwice, UsedLater, Undecided, Tried, Captured, Stored, TwoTargets, InBetween, MoreArguments, OtherOperandFirst,
        SameLineTwice, Peeping,
    ],
)  # fmt: skip
def test_nothing_is_proven(kind):
    assert followers(kind) == ()


def test_branches_are_conditions():
    module = Decided()
    line = inspect.getsourcelines(Decided.forward)[1] + 1
    proof = dataflow.find(Decided.forward.__code__, line, module, "conv")
    assert proof.still_holds(module)
    module.flag = False
    assert not proof.still_holds(module)
    module.flag = True
    module.bn = None
    assert not proof.still_holds(module)
    assert followers(Decided, flag=False) == ("bn",)


def test_real_models_are_read():
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_channels=3
    )
    model = transformers.ResNetModel(config).eval()
    layer = model.encoder.stages[0].layers[0].layer[0]
    lines, first = inspect.getsourcelines(type(layer).forward)
    at = next(first + i for i, text in enumerate(lines) if "self.convolution(" in text)
    proof = dataflow.find(type(layer).forward.__code__, at, layer, "convolution")
    assert proof.followers == ("normalization", "activation")


def test_no_source_proves_nothing():
    space = {"nn": nn}
    exec("class M(nn.Module):\n    def forward(self, x):\n        return self.b(self.a(x))\n", space)
    module = space["M"]()
    module.a, module.b = nn.Linear(2, 2), nn.ReLU()
    assert dataflow.find(space["M"].forward.__code__, 3, module, "a") is None
    assert torch.is_tensor(module(torch.ones(2)))

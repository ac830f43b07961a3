# SPDX-License-Identifier: Apache-2.0
"""Small models with what graphs of real ones contain; batch norms have statistics that are not 0 and 1."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """As in ResNet: convolutions with norms, a shortcut, sums in place, pooling, a linear head."""

    def __init__(self, in_place=True, groups=1):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.narrow, self.narrow_norm = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.spread, self.spread_norm = nn.Conv2d(16, 16, 3, 2, 1, groups=groups, bias=False), nn.BatchNorm2d(16)
        self.widen, self.widen_norm = nn.Conv2d(16, 48, 1, bias=False), nn.BatchNorm2d(48)
        self.shortcut, self.shortcut_norm = nn.Conv2d(16, 48, 1, stride=2, bias=False), nn.BatchNorm2d(48)
        self.head = nn.Linear(48, 10)
        self.in_place = in_place
        shake(self)

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(x)), inplace=self.in_place)
        x = F.max_pool2d(x, 3, 2, 1)
        y = F.relu(self.narrow_norm(self.narrow(x)))
        y = F.relu6(self.spread_norm(self.spread(y)))
        y = self.widen_norm(self.widen(y))
        if self.in_place:
            y += self.shortcut_norm(self.shortcut(x))
        else:
            y = self.shortcut_norm(self.shortcut(x)) + y
        return self.head(torch.flatten(F.adaptive_avg_pool2d(F.relu(y), 1), 1))


class Block(nn.Module):
    """A transformer's: norm first or last, attention by torch's function, gated or plain feed-forward."""

    def __init__(self, width=64, heads=4, norm_first=False, gated=False):
        super().__init__()
        self.heads, self.norm_first, self.gated = heads, norm_first, gated
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gate = nn.Linear(width, 2 * width)
        self.drop = nn.Dropout(0.1)
        shake(self)

    def attend(self, x, mask):
        batch, length, width = x.shape
        q, k, v = (
            part(x).view(batch, length, self.heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.drop(self.out(y.transpose(1, 2).contiguous().view(batch, length, width)))

    def feed(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x) if self.gated else F.gelu(self.up(x)))

    def forward(self, x, mask=None):
        if self.norm_first:
            x = x + self.attend(self.first(x), mask)
            return x + self.feed(self.second(x))
        x = self.first(x + self.attend(x, mask))
        return self.second(x + self.feed(x))


class Encoder(nn.Module):
    """Tokens to blocks; the answer is a dictionary, of the last states, a pooled first one, and a view of them."""

    def __init__(self, **others):
        super().__init__()
        self.words, self.places = nn.Embedding(50, 64), nn.Embedding(32, 64)
        self.blocks = nn.ModuleList(Block(**others) for _ in range(2))
        self.pooler = nn.Linear(64, 64)

    def forward(self, ids, mask=None):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        seen = None if mask is None else mask[:, None, None, :].bool().expand(-1, 1, ids.shape[1], -1)
        for block in self.blocks:
            x = block(x, seen)
        return {"last": x, "pooled": torch.tanh(self.pooler(x[:, 0])), "first": x[:, 0]}


class ByHand(nn.Module):
    """Attention and a norm written out: softmax, powers, products of matrices, a scale on a branch."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.weight, self.scale = nn.Parameter(torch.rand(32)), nn.Parameter(torch.rand(32))

    def forward(self, x):
        y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        q, k, v = self.qkv((self.weight * y).to(x.dtype)).chunk(3, dim=-1)
        weights = torch.softmax(q @ k.transpose(-1, -2) / 32**0.5, dim=-1)
        return x + self.scale * self.out(torch.matmul(weights, v))


class WrittenOut(nn.Module):
    """As transformers' Llama, Phi-3 and T5: RMS norms and a GELU by hand, repeated heads, gate and value of one linear."""

    def __init__(self, width=64, gate="silu"):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, wide, bias=False) for wide in (width, 32, 32))
        self.both, self.down = nn.Linear(width, 4 * width), nn.Linear(2 * width, width, bias=False)
        self.wide, self.last = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.weights = nn.ParameterList(torch.rand(width) + 0.5 for _ in range(3))
        self.gate = {"silu": F.silu, "gelu": F.gelu}[gate]

    def norm(self, x, number):
        x = x.to(torch.float32)
        return self.weights[number] * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    def attend(self, x):
        q, k, v = (part(x).view(*x.shape[:2], -1, 16).transpose(1, 2) for part in (self.query, self.key, self.value))
        k, v = (
            part[:, :, None, :, :].expand(-1, -1, 2, -1, -1).reshape(x.shape[0], 4, x.shape[1], 16) for part in (k, v)
        )
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)

    def forward(self, x):
        x = x + self.attend(self.norm(x, 0))
        gate, value = self.both(self.norm(x, 1)).chunk(2, dim=-1)
        x = x + self.down(value * self.gate(gate))
        y = self.wide(self.norm(x, 2))
        y = 0.5 * y * (1.0 + torch.tanh((2.0 / torch.pi) ** 0.5 * (y + 0.044715 * torch.pow(y, 3.0))))
        return x + self.last(y)


class Sequences(nn.Module):
    """An embedding, a recurrent module, scores; the last states are part of the answer, or not."""

    def __init__(self, kind="LSTM", states=False, given=False, **others):
        super().__init__()
        self.words = nn.Embedding(50, 24)
        self.cells = getattr(nn, kind)(24, 32, **others)
        directions = 2 if self.cells.bidirectional else 1
        self.scores = nn.Linear(directions * (self.cells.proj_size or 32), 10)
        self.states = states
        count = self.cells.num_layers * directions
        self.first = nn.Parameter(torch.randn(count, 1, 32)) if given else None

    def forward(self, ids):
        x = self.words(ids)
        if self.first is None:
            y, states = self.cells(x)
        else:
            h = self.first.expand(-1, ids.shape[0 if self.cells.batch_first else 1], -1).contiguous()
            y, states = self.cells(x, (h, 2 * h) if isinstance(self.cells, nn.LSTM) else h)
        y = self.scores(y)
        return (y, states) if self.states else y


class Gates(nn.Module):
    """GELU and SiLU as scripts write them, each behind a linear layer of its own; the last two are neither."""

    ACTIVATIONS = (
        lambda x: 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0)))),
        lambda x: x * 0.5 * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))),
        lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
        lambda x: x * torch.sigmoid(x),
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: x * torch.sigmoid(1.6 * x),
        lambda x: 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044 * torch.pow(x, 3.0)))),
    )

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.steps = nn.ModuleList(nn.Linear(32, 32) for _ in self.ACTIVATIONS)
        self.to(dtype)

    def forward(self, x):
        for step, activation in zip(self.steps, self.ACTIVATIONS, strict=True):
            x = x + activation(step(x))
        return x


class Scaled(nn.Module):
    """As ConvNeXt and MobileNet: zeros around an image before a depthwise convolution, a scale, a sum behind a permutation."""

    def __init__(self, zeros=(1, 1, 1, 1), stride=1):
        super().__init__()
        self.zeros = zeros
        self.wide = nn.Conv2d(16, 16, 3, stride=stride, groups=16)
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(48, 16)
        self.scale = nn.Parameter(torch.rand(16))
        self.last = nn.Conv2d(16, 8, 3, bias=False)
        shake(self)

    def forward(self, x):
        y = self.wide(F.pad(x, self.zeros)).permute(0, 2, 3, 1)
        y = self.scale * self.down(F.gelu(self.up(self.norm(y))))
        y = y.permute(0, 3, 1, 2)
        x = x + y if y.shape == x.shape else y
        return F.adaptive_avg_pool2d(self.last(F.pad(x, (2, 2, 1, 1), "constant", 0.0)), 1)


class Named(nn.Module):
    """As EfficientNet: padding by name, activations between that are modules, channels weighted by what they hold."""

    def __init__(self):
        super().__init__()
        self.widen = nn.Conv2d(16, 48, 1, padding="same", bias=False)
        self.wide = nn.Conv2d(48, 48, 5, padding="same", groups=48, bias=False)
        self.halve = nn.Conv2d(48, 48, 3, stride=2, padding="valid", groups=48, bias=False)
        self.squeeze, self.excite = nn.Conv2d(48, 8, 1, padding="same"), nn.Conv2d(8, 48, 1, padding="same")
        self.narrow = nn.Conv2d(48, 16, 1, padding="same", bias=False)
        self.even = nn.Conv2d(16, 8, 2, padding="same")
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in (48, 48, 48, 16))
        shake(self)

    def forward(self, x):
        y = F.silu(self.norms[0](self.widen(x)))
        y = F.silu(self.norms[1](self.wide(y)))
        y = F.silu(self.norms[2](self.halve(F.pad(y, (0, 1, 0, 1)))))
        y = y * torch.sigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.even(self.norms[3](self.narrow(y)))


class Images(nn.Module):
    """Returns images: one in each memory format that torch gives, and one as a view."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.norm, self.point = nn.LayerNorm(24), nn.Linear(24, 24)
        shake(self)

    def forward(self, x):
        x = F.hardswish(self.first(x))
        y = self.second(x).permute(0, 2, 3, 1)
        y = self.point(self.norm(y))
        return x, y.permute(0, 3, 1, 2) + x, y, torch.cat([x, x], 1)[:, 3:9]


def shake(model):
    """Weights and statistics that no wrong fold survives."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)


class Averaged(nn.Module):
    """Means over an image in every spelling, and its pixels as tokens."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.token = nn.Conv2d(3, 16, 3), nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x):
        y = self.conv(x).relu()
        means = y.mean((2, 3)) + torch.mean(y, dim=[-1, -2]) + y.mean([2, 3], keepdim=True).flatten(1)
        means = means + F.adaptive_avg_pool2d(y, 1)[:, :, 0, 0] + y.mean((2, 3), True)[..., 0, 0]
        return self.head(means), self.token(y.flatten(2).transpose(1, 2)), y.mean((1, 2)), y.mean()


class Waves(nn.Module):
    """As speech models: strided, depthwise and pointwise convolutions in one dimension, steps as tokens, back again."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv1d(3, 16, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(16)
        self.wide, self.point = nn.Conv1d(16, 16, 7, padding=3, groups=16), nn.Conv1d(16, 16, 1)
        self.spread = nn.Conv1d(16, 16, 3, padding=2, dilation=2, groups=4)
        self.token, self.up = nn.Linear(16, 16), nn.ConvTranspose1d(16, 6, 4, stride=2, padding=1)
        shake(self)

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(x)))
        x = x + self.point(F.silu(self.wide(x)))
        x = self.token(F.gelu(self.spread(x)).transpose(1, 2)).transpose(1, 2)
        return torch.tanh(self.up(x)), x


class Groups(nn.Module):
    """Group and instance norms with activations behind them: of a line, as speech models begin, and of an image."""

    def __init__(self):
        super().__init__()
        self.listen, self.norm = nn.Conv1d(1, 32, 10, stride=5, bias=False), nn.GroupNorm(32, 32)
        self.shorten, self.halve = nn.Conv1d(32, 16, 3, stride=2, bias=False), nn.Conv1d(16, 16, 2, stride=2)
        self.steps, self.project = nn.LayerNorm(16), nn.Linear(16, 24)
        self.image, self.few = nn.Conv2d(4, 24, 3, padding=1), nn.GroupNorm(6, 24)
        self.each = nn.InstanceNorm2d(24, affine=True)
        self.out = nn.Conv2d(24, 8, 1)
        shake(self)

    def forward(self, wave, image):
        steps = F.gelu(self.norm(self.listen(wave)))
        steps = F.gelu(self.halve(F.gelu(self.shorten(steps)))).transpose(1, 2)
        image = self.image(image)
        image = self.out(F.relu(self.each(F.silu(self.few(image)))))
        return self.project(self.steps(steps)), image, F.group_norm(image, 2), F.instance_norm(steps)


class Volumes(nn.Module):
    """Convolutions in three dimensions, and transposed ones in two and three, with norms."""

    def __init__(self):
        super().__init__()
        self.solid, self.solid_norm = nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8)
        self.grown, self.grown_norm = nn.ConvTranspose3d(8, 6, 2, stride=2, groups=2, bias=False), nn.BatchNorm3d(6)
        self.flat, self.flat_norm = nn.ConvTranspose2d(6, 5, 3, stride=2, padding=1, output_padding=1), nn.BatchNorm2d(5)
        shake(self)

    def forward(self, x):
        x = F.relu(self.grown_norm(self.grown(F.relu(self.solid_norm(self.solid(x))))))
        return self.flat_norm(self.flat(x[:, :, 1])).relu(), x


class Spans(nn.Module):
    """Scores for the first and last token of an answer, as heads for question answering cut them out of one linear."""

    def __init__(self):
        super().__init__()
        self.body, self.scores = nn.Linear(64, 64), nn.Linear(64, 2)

    def forward(self, x):
        first, last = self.scores(self.body(x).relu()).split(1, dim=-1)
        return first.squeeze(-1).contiguous(), last.squeeze(-1), last.transpose(0, 1).contiguous()[1:]


CASES = {
    "spans": lambda: (Spans().eval(), (torch.randn(2, 12, 64),)),
    "waves": lambda: (Waves().eval(), (torch.randn(2, 3, 41),)),
    "groups": lambda: (Groups().eval(), (torch.randn(2, 1, 400), torch.randn(2, 4, 9, 11))),
    "volumes": lambda: (Volumes().eval(), (torch.randn(2, 3, 6, 5, 7),)),
    "averaged": lambda: (Averaged().eval(), (torch.randn(2, 3, 16, 18),)),
    "residual": lambda: (Residual().eval(), (torch.randn(2, 3, 32, 32),)),
    "residual, out of place": lambda: (Residual(in_place=False).eval(), (torch.randn(2, 3, 32, 32),)),
    "residual, grouped": lambda: (Residual(groups=4).eval(), (torch.randn(1, 3, 31, 33),)),
    "residual, depthwise": lambda: (Residual(groups=16).eval(), (torch.randn(1, 3, 40, 40),)),
    "residual, channels last": lambda: (
        Residual().eval(), (torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last),),
    ),
    "encoder": lambda: (Encoder().eval(), (torch.randint(0, 50, (2, 17)),)),
    "encoder, masked": lambda: (Encoder().eval(), (torch.randint(0, 50, (2, 17)), (torch.arange(17) < 11).expand(2, 17))),
    "encoder, all seen": lambda: (Encoder().eval(), (torch.randint(0, 50, (2, 17)), torch.ones(2, 17))),
    "encoder, norm first": lambda: (Encoder(norm_first=True).eval(), (torch.randint(0, 50, (3, 9)),)),
    "encoder, gated": lambda: (Encoder(gated=True, norm_first=True).eval(), (torch.randint(0, 50, (1, 20)),)),
    "by hand": lambda: (ByHand().eval(), (torch.randn(2, 12, 32),)),
    "written out": lambda: (WrittenOut().eval(), (torch.randn(2, 12, 64),)),
    "written out, gelu": lambda: (WrittenOut(gate="gelu").eval(), (torch.randn(1, 7, 64),)),
    "lstm": lambda: (
        Sequences(num_layers=2, bidirectional=True, batch_first=True, dropout=0.2).eval(), (torch.randint(0, 50, (3, 9)),),
    ),
    "lstm, states": lambda: (Sequences(states=True, given=True).eval(), (torch.randint(0, 50, (9, 3)),)),
    "lstm, projected": lambda: (Sequences(proj_size=8, states=True).eval(), (torch.randint(0, 50, (9, 2)),)),
    "gru": lambda: (Sequences("GRU", bidirectional=True, given=True).eval(), (torch.randint(0, 50, (9, 3)),)),
    "gru, states": lambda: (Sequences("GRU", states=True, batch_first=True).eval(), (torch.randint(0, 50, (2, 5)),)),
    "rnn": lambda: (Sequences("RNN", num_layers=2, bias=False).eval(), (torch.randint(0, 50, (6, 4)),)),
    "gates": lambda: (Gates().eval(), (torch.randn(2, 12, 32),)),
    "gates, bfloat16": lambda: (Gates(torch.bfloat16).eval(), (torch.randn(2, 12, 32).bfloat16(),)),
    "scaled": lambda: (Scaled().eval(), (torch.randn(2, 16, 14, 18),)),
    "scaled, uneven zeros": lambda: (Scaled((0, 1, 0, 1), stride=2).eval(), (torch.randn(2, 16, 15, 18),)),
    "padding by name": lambda: (Named().eval(), (torch.randn(2, 16, 14, 18),)),
    "images": lambda: (Images().eval(), (torch.randn(2, 3, 18, 20),)),
    "sequential": lambda: (
        nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 8), nn.Tanh()).eval(), (torch.randn(5, 40),),
    ),
}  # fmt: skip

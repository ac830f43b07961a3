# SPDX-License-Identifier: Apache-2.0
"""Models that have broken optimizers before: state, branches, aliases, views, in-place operations, odd layers."""

import dataclasses
import threading
from collections import namedtuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, rnn


class Optional(nn.Module):
    """An argument whose absence chooses the way: symbolic tracers take the wrong one without a word."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x, skip=None):
        return self.a(x) if skip is None else self.b(x)


class Counting(nn.Module):
    """Counts its calls, keeps a cache in an argument, draws random numbers: each once per call."""

    def __init__(self):
        super().__init__()
        self.fc, self.calls, self.history = nn.Linear(16, 4), 0, []

    def forward(self, x, cache=None):
        self.calls += 1
        self.history = [*self.history[-2:], self.calls]
        y = self.fc(x + torch.rand(x.shape))
        if cache is not None:
            cache.append(y)
        return y, self.calls > 0


class Scaled(nn.Module):
    """Plain attributes that matter; an answer that is also kept."""

    def __init__(self):
        super().__init__()
        self.fc, self.scale, self.last = nn.Linear(16, 4), 0.5, None

    def forward(self, x):
        self.last = self.fc(x) * self.scale
        return self.last


class Views(nn.Module):
    """`.view` behind a convolution, and several views of one tensor among the outputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 5), nn.Linear(6 * 16, 10)

    def forward(self, x):
        y = F.max_pool2d(F.relu(self.conv(x)), 2)
        flat = y.view(-1, 6 * 16)
        return self.fc(flat), y, y[:, :2], flat.t()


class InPlace(nn.Module):
    """Results of layers that are changed in place, and one that is needed before it is."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 8), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.conv(x)
        before = y.clone()
        y += 1
        y = self.bn(y)
        y.clamp_(max=2.0)
        z = self.fc(y.mean((2, 3)))
        kept = z
        z = self.relu(z)
        return before, y, z, kept, kept is z


class Peeking(nn.Module):
    """The convolution's result is used twice, so that no norm may be folded into it; the second time, it may."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.norm, self.act = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.SiLU()

    def forward(self, x):
        y = self.conv(x)
        z = self.bn(y) + y
        return self.act(self.norm(self.second(z))), self.second(z)


class Norms(nn.Module):
    """Batch norms of every kind behind linear layers and convolutions: most of them must not be folded."""

    def __init__(self):
        super().__init__()
        self.flat = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))
        self.middle = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(5), nn.ReLU())
        self.image = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm2d(3))
        self.live = nn.Sequential(nn.Conv1d(5, 5, 1), nn.BatchNorm1d(5, track_running_stats=False))
        self.bare = nn.Sequential(nn.Conv1d(5, 5, 1, bias=False), nn.BatchNorm1d(5, affine=False, eps=0.3, momentum=None))
        self.group, self.instance = nn.GroupNorm(5, 5), nn.InstanceNorm1d(5, track_running_stats=True)

    def forward(self, x):
        images = x[:, None].expand(-1, 3, -1, -1)
        return self.flat(x[:, 0]), self.middle(x), self.image(images), self.instance(self.group(self.bare(self.live(x))))


class Paddings(nn.Module):
    def __init__(self):
        super().__init__()
        modes = ("zeros", "reflect", "replicate", "circular")
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding="same", padding_mode=mode) for mode in modes)
        self.odd = nn.Conv2d(4, 4, (1, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2)
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=2)

    def forward(self, x):
        for conv in self.convs:
            x = torch.relu(conv(x))
        return self.odd(x), self.up(x), self.up(x, output_size=(x.size(2) * 2 + 2, x.size(3) * 2 + 2))


class Layouts(nn.Module):
    """Channels last, transposed, expanded, sliced, unbatched and empty inputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x):
        last = x.contiguous(memory_format=torch.channels_last)
        turned = self.conv(x.transpose(2, 3))
        ones = [self.conv(last), self.conv(x[0]), self.conv(x[:0]), self.conv(x[::2]), self.conv(x[:1].expand(3, -1, -1, -1))]
        return turned, ones, self.fc(x), self.fc(x.transpose(2, 3)), self.fc(x[0, 0, 0]), self.fc(x[:, :0])


class Locked(nn.Module):
    """Holds what cannot be copied or pickled."""

    def __init__(self):
        super().__init__()
        self.fc, self.lock, self.steps = nn.Linear(16, 4), threading.Lock(), (n for n in range(10**6))

    def forward(self, x):
        with self.lock:
            next(self.steps)
            return self.fc(x)


class OwnCall(nn.Module):
    """Replaces `__call__`, `__getattr__` and `__len__` (which makes it false), and answers a method that is not forward."""

    def __init__(self):
        super().__init__()
        self.fc, self.codes = nn.Linear(16, 4), nn.Linear(16, 4)

    def __getattr__(self, name):
        return 3.0 if name == "three" else super().__getattr__(name)

    def __len__(self):
        return 0

    def __call__(self, x):
        return super().__call__(x) * self.three, self.encode(x)

    def encode(self, x):
        return self.codes.forward(x)

    def forward(self, x):
        return self.fc(x)


Pair = namedtuple("Pair", "left right")


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    parts: tuple
    note: str = "kept"


class Records(nn.Module):
    """Keywords only; a dataclass, a named tuple, None, strings and numbers for an answer."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, *, x, scale=1.0):
        y = self.fc(input=x)
        return Answer(y, (Pair(y * scale, None), [1, "two", {"three": y.argmax(-1)}]))


class Temporary(nn.Module):
    """Makes its layers on each call, calls functions with the weights of others, and a lambda for a module's forward."""

    def __init__(self):
        super().__init__()
        self.fc, self.own = nn.Linear(16, 16), nn.Linear(16, 16)
        self.own.forward = lambda x: F.linear(x, self.own.weight) * 2

    def forward(self, x):
        fresh = nn.Linear(16, 16, bias=False).eval()
        fresh.weight = nn.Parameter(self.fc.weight.detach() * 2)
        return fresh(x), F.linear(x, self.fc.weight.t()), self.fc.weight.data.sum(), self.own(x)


class Loud(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


class Subclasses(nn.Module):
    """A layer whose forward was overridden, one with a weight that is computed, a lazy one, quiet dtypes."""

    def __init__(self):
        super().__init__()
        self.loud, self.same, self.exact = Loud(16, 8), nn.Identity(), nn.Linear(16, 4).double()
        self.normed = parametrizations.weight_norm(nn.Linear(16, 8))
        self.bilinear, self.lazy = nn.Bilinear(8, 8, 4), nn.LazyLinear(3)

    def forward(self, x):
        a, b = self.loud(x), self.same(self.normed(x))
        return self.bilinear(a, b), self.lazy(x), self.exact(x.double())


class RandomAnyway(nn.Module):
    """Draws random numbers also outside training."""

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        y = F.dropout(self.fc(x), 0.5, training=True)
        return self.out(y + torch.randn_like(y)), torch.rand(3)


class NotFinite(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.conv = nn.Linear(16, 8), nn.Conv1d(4, 4, 3)

    def forward(self, x):
        bad = x.clone()
        bad[0, 0], bad[1, 1] = float("nan"), float("inf")
        return self.fc(bad).isnan(), self.conv(bad[None, :4]).isnan(), torch.log(self.fc(x).relu())


class States(nn.Module):
    """LSTMs called in every way: states, packed, unbatched, reversed batch axis."""

    def __init__(self):
        super().__init__()
        self.plain = nn.LSTM(8, 16, 2)
        self.both, self.no_bias = nn.LSTM(8, 16, batch_first=True, bidirectional=True), nn.LSTM(8, 16, bias=False)

    def forward(self, x):
        _, state = self.plain(x)
        again, _ = self.plain(x[:1], state)
        keyword, _ = self.plain(x, hx=(state[0] * 0, state[1]))
        packed, _ = self.both(rnn.pack_padded_sequence(x.transpose(0, 1), [6, 4], batch_first=True))
        return again, keyword, packed.data, self.no_bias(x[:, 0]), self.both(x.transpose(0, 1))


class Nested(nn.Module):
    """Several modules inside, one frozen, one half precision, some never called, buffers that change."""

    def __init__(self):
        super().__init__()
        self.frozen, self.brief, self.unused = nn.Linear(16, 16), nn.Linear(16, 16).bfloat16(), nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("table", torch.randn(16), persistent=False)

    def forward(self, x):
        self.seen += 1
        y = self.brief(self.frozen(x).bfloat16() + self.table.bfloat16())
        return y, y.float(), self.seen > 0


class MasksAndQueries(nn.Module):
    """Attention as a function: every kind of mask, grouped queries, other scales, odd shapes."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x):
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, 4, 4).transpose(1, 2)
        k, v = (layer(x).view(batch, length, 2, 4).transpose(1, 2) for layer in (self.k, self.v))
        attend = F.scaled_dot_product_attention
        wide = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        hidden = torch.zeros(batch, 1, length, length)
        hidden[0, :, :, -1] = float("-inf")
        keep = torch.ones(length, length, dtype=torch.bool).tril()
        return (
            attend(q, k, v, enable_gqa=True), attend(q, *wide, is_causal=True), attend(q, *wide, attn_mask=hidden),
            attend(q, *wide, keep, scale=0.3), attend(q[:, :, :1], *wide), attend(q[0], wide[0][0], wide[1][0]),
            F.softmax(q @ wide[0].transpose(-1, -2), -1) @ wide[1],
        )  # fmt: skip


NASTIES = {
    "optional argument": lambda: (Optional(), (torch.randn(3, 16),)),
    "optional argument given": lambda: (Optional(), {"x": torch.randn(3, 16), "skip": 1}),
    "counting": lambda: (Counting(), (torch.randn(3, 16),)),
    "scaled": lambda: (Scaled(), (torch.randn(3, 16),)),
    "views": lambda: (Views(), (torch.randn(2, 3, 12, 12),)),
    "in place": lambda: (InPlace(), (torch.randn(2, 3, 8, 8),)),
    "peeking": lambda: (Peeking(), (torch.randn(2, 3, 8, 8),)),
    "norms": lambda: (Norms(), (torch.randn(4, 5, 8),)),
    "paddings": lambda: (Paddings(), (torch.randn(2, 4, 6, 7),)),
    "layouts": lambda: (Layouts(), (torch.randn(4, 3, 6, 6),)),
    "locked": lambda: (Locked(), (torch.randn(3, 16),)),
    "own call": lambda: (OwnCall(), (torch.randn(3, 16),)),
    "records": lambda: (Records(), {"x": torch.randn(3, 16), "scale": 2}),
    "temporary": lambda: (Temporary(), (torch.randn(3, 16),)),
    "subclasses": lambda: (Subclasses(), (torch.randn(3, 16),)),
    "random anyway": lambda: (RandomAnyway(), (torch.randn(3, 16),)),
    "not finite": lambda: (NotFinite(), (torch.randn(5, 16),)),
    "states": lambda: (States(), (torch.randn(6, 2, 8),)),
    "nested": lambda: (Nested(), (torch.randn(3, 16),)),
    "masks and queries": lambda: (MasksAndQueries(), (torch.randn(2, 7, 16),)),
}

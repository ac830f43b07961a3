# SPDX-License-Identifier: Apache-2.0
"""Models made of torch.nn alone, the way scripts and courses write them."""

import torch
from torch import nn
from torch.nn import functional as F


def mlp():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    return model, (torch.randn(5, 16),)


def normalized_mlp():
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Linear(32, 32), nn.LayerNorm(32), nn.SiLU())
    return model, (torch.randn(5, 16),)


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.LeakyReLU(0.1)
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.ConvTranspose2d(8, 1, 2, stride=2), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x):
        code = self.encoder(x)
        return self.decoder(code), code


class Tagger(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed, self.drop = nn.Embedding(50, 16, padding_idx=0), nn.Dropout(0.5)
        self.rnn, self.fc = kind(16, 24, 2, bidirectional=True, batch_first=True, dropout=0.2), nn.Linear(48, 5)

    def forward(self, ids):
        y, state = self.rnn(self.drop(self.embed(ids)))
        return {"scores": self.fc(y), "state": state}


class RecurrentSteps(nn.Module):
    """Cells in a Python loop, and an LSTM fed one step at a time with its own state."""

    def __init__(self):
        super().__init__()
        self.cell, self.gru, self.lstm, self.fc = nn.LSTMCell(8, 16), nn.GRUCell(16, 16), nn.LSTM(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        h = c = g = x.new_zeros(x.size(1), 16)
        state, outputs = None, []
        for step in x:
            h, c = self.cell(step, (h, c))
            g = self.gru(h, g)
            y, state = self.lstm(g[None], state)
            outputs.append(self.fc(y[0]))
        return torch.stack(outputs), state


class Translator(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(60, 32)
        self.transformer = nn.Transformer(32, 4, 1, 2, 64, 0.1, batch_first=True)
        self.out = nn.Linear(32, 60, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, source, target):
        mask = nn.Transformer.generate_square_subsequent_mask(target.size(1))
        return self.out(self.transformer(self.embed(source), self.embed(target), tgt_mask=mask, tgt_is_causal=True))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.MultiheadAttention(32, 4, batch_first=True)
        self.second = nn.MultiheadAttention(32, 4, kdim=16, vdim=16, add_bias_kv=True)

    def forward(self, x, memory):
        y, weights = self.first(x, x, x)
        z, none = self.second(y.transpose(0, 1), memory, memory, need_weights=False)
        return z, weights, none


class ClickRates(nn.Module):
    """Bags of categories beside dense features, pairwise products, as recommendation models have them (DLRM)."""

    def __init__(self):
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(40, 8, mode="sum") for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(8 + 6, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())

    def forward(self, dense, ids, offsets):
        x = self.bottom(dense)
        rows = torch.stack([x, *(bag(ids, offsets) for bag in self.bags)], 1)
        pairs = rows @ rows.transpose(1, 2)
        upper = torch.triu_indices(4, 4, 1)
        return self.top(torch.cat([x, pairs[:, upper[0], upper[1]]], 1)).squeeze(1)


class Double(nn.Sequential):
    def __init__(self, inside, outside):
        super().__init__(
            nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True),
        )  # fmt: skip


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.middle, self.pool = Double(3, 8), Double(8, 16), nn.MaxPool2d(2)
        self.up, self.join, self.head = nn.ConvTranspose2d(16, 8, 2, stride=2), Double(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        first = self.down(x)
        y = self.up(self.middle(self.pool(first)))
        return self.head(self.join(torch.cat([first, y], dim=1)))


class Wave(nn.Module):
    """Dilated one-dimensional convolutions with gates, added up."""

    def __init__(self):
        super().__init__()
        self.start = nn.Conv1d(1, 8, 1)
        self.filters = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=2**i, dilation=2**i) for i in range(3))
        self.gates = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=2**i, dilation=2**i) for i in range(3))
        self.up = nn.ConvTranspose1d(8, 2, 4, stride=2, padding=1)

    def forward(self, x):
        x = self.start(x)
        for one, gate in zip(self.filters, self.gates, strict=True):
            x = x + torch.tanh(one(x)) * torch.sigmoid(gate(x))
        return self.up(x)


def volume():
    model = nn.Sequential(
        nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2), nn.ConvTranspose3d(8, 4, 2, stride=2),
        nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    return model, (torch.randn(2, 2, 6, 6, 6),)


class Separable(nn.Module):
    """Depthwise, then pointwise, grouped, with squeeze and excitation, as functions and modules mixed."""

    def __init__(self):
        super().__init__()
        self.deep, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.point, self.bn2 = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.grouped, self.squeeze, self.excite = nn.Conv2d(16, 16, 3, groups=4), nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x):
        x = F.relu6(self.bn1(self.deep(x)))
        x = F.hardswish(self.bn2(self.point(x)))
        x = self.grouped(x)
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return x * scale


class Shared(nn.Module):
    """One layer used twice, two layers with one weight, a weight used by a function as well."""

    def __init__(self):
        super().__init__()
        self.body, self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight

    def forward(self, x):
        y = self.body(torch.relu(self.body(x)))
        z = self.second(self.first(y))
        return z, F.linear(z, self.first.weight.t()), z @ self.body.weight


class Collections(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.heads = nn.ModuleDict({"a": nn.Linear(16, 3), "b": nn.Sequential(nn.Linear(16, 8), nn.ELU(), nn.Linear(8, 2))})
        self.scales = nn.ParameterList(torch.randn(16) for _ in range(3))

    def forward(self, x, heads=("a", "b")):
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = x + F.gelu(layer(x)) * scale
        return {name: self.heads[name](x) for name in heads}


def nested():
    inner = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()))
    tail = nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.ReLU(inplace=True), nn.Sequential(nn.Linear(8, 4))))
    return nn.Sequential(inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(), tail, nn.Softmax(-1)), (torch.randn(2, 3, 8, 8),)


class Residual(nn.Module):
    """The block of torchvision's ResNet, its conv, norm and activation being attributes."""

    def __init__(self, inside=8, outside=16, stride=2):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x):
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def encoder_stack():
    layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (torch.randn(9, 2, 32),)


COMPOSITIONS = {
    "mlp": mlp,
    "normalized mlp": normalized_mlp,
    "autoencoder": lambda: (Autoencoder(), (torch.rand(2, 1, 12, 12),)),
    "lstm tagger": lambda: (Tagger(nn.LSTM), (torch.randint(0, 50, (3, 9)),)),
    "gru tagger": lambda: (Tagger(nn.GRU), (torch.randint(0, 50, (3, 9)),)),
    "recurrent steps": lambda: (RecurrentSteps(), (torch.randn(4, 2, 8),)),
    "translator": lambda: (Translator(), (torch.randint(0, 60, (2, 7)), torch.randint(0, 60, (2, 5)))),
    "attention": lambda: (Attention(), (torch.randn(2, 5, 32), torch.randn(6, 2, 16))),
    "encoder stack": encoder_stack,
    "click rates": lambda: (
        ClickRates(), (torch.randn(3, 5), torch.randint(0, 40, (10,)), torch.tensor([0, 4, 7]))
    ),
    "unet": lambda: (UNet(), (torch.randn(2, 3, 16, 16),)),
    "wave": lambda: (Wave(), (torch.randn(2, 1, 20),)),
    "volume": volume,
    "separable": lambda: (Separable(), (torch.randn(2, 8, 9, 9),)),
    "shared weights": lambda: (Shared(), (torch.randn(3, 16),)),
    "collections": lambda: (Collections(), (torch.randn(3, 16),)),
    "nested sequential": nested,
    "residual": lambda: (Residual(), (torch.randn(2, 8, 9, 9),)),
}  # fmt: skip

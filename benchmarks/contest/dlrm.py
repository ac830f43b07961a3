# SPDX-License-Identifier: Apache-2.0
"""DLRM (Naumov et al., 2019), the recommendation model, with the layers that MLPerf trains on Criteo's terabyte: 13 numbers and
26 categories a row. The tables are hashed to 20,000 rows each, 266 MB; MLPerf's largest have forty million.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

NUMBERS, TABLES = 13, 26


def _layers(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these sizes with a ReLU behind each."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class DLRM(nn.Module):
    """Numbers [B, 13], indices [26, B · k] and the offsets [26, B] at which each row's bags begin; gives [B, 1]."""

    def __init__(self, rows: int = 20_000, width: int = 128) -> None:
        super().__init__()
        self.bottom = _layers((NUMBERS, 512, 256, width))
        self.bags = nn.ModuleList(nn.EmbeddingBag(rows, width, mode="sum") for _ in range(TABLES))
        vectors = TABLES + 1
        pairs = vectors * (vectors - 1) // 2
        self.top = nn.Sequential(*_layers((width + pairs, 1024, 1024, 512, 256)), nn.Linear(256, 1), nn.Sigmoid())
        self.register_buffer("pairs", torch.tril_indices(vectors, vectors, offset=-1), persistent=False)

    def forward(self, numbers: torch.Tensor, indices: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        dense = self.bottom(numbers)
        vectors = torch.stack([dense, *(bag(indices[at], offsets[at]) for at, bag in enumerate(self.bags))], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        return self.top(torch.cat((dense, products[:, self.pairs[0], self.pairs[1]]), dim=1))


def draw(batch: int, *, rows: int = 20_000, a_bag: int = 2) -> dict[str, torch.Tensor]:
    """A random batch whose bags hold ``a_bag`` indices on average; some are empty, the last is not (OpenVINO wants that)."""
    beginnings = torch.randint(0, a_bag * batch, (TABLES, batch)).sort(dim=1).values
    beginnings[:, 0] = 0
    return {
        "numbers": torch.rand(batch, NUMBERS),
        "indices": torch.randint(0, rows, (TABLES, a_bag * batch)),
        "offsets": beginnings,
    }

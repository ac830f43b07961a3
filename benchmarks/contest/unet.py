# SPDX-License-Identifier: Apache-2.0
"""U-Net (Ronneberger et al., 2015), in the form with batch norm that segments magnetic resonance images of brains
(Buda et al., 2019): 3 × 256 × 256 in, one probability a pixel out, 7.8 million parameters at 32 channels.
"""

from __future__ import annotations

import torch
from torch import nn

LEVELS = 4


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3 × 3 convolutions that keep the size, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Images [N, channels, H, W] to probabilities [N, 1, H, W]; H and W are multiples of 16."""

    def __init__(self, channels: int = 3, width: int = 32) -> None:
        super().__init__()
        widths = [width << level for level in range(LEVELS + 1)]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip([channels, *widths[:-2]], widths[:-1], strict=True))
        self.pool = nn.MaxPool2d(2)
        self.bottom = _block(widths[-2], widths[-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.join = nn.ModuleList(_block(2 * w, w) for w in reversed(widths[:-1]))
        self.scores = nn.Conv2d(width, 1, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x, skipped = pixel_values, []
        for block in self.down:
            x = block(x)
            skipped.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat((up(x), skipped.pop()), dim=1))
        return torch.sigmoid(self.scores(x))

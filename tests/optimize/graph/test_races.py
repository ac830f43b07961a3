# SPDX-License-Identifier: Apache-2.0
"""Races cost little: of large images a part is convolved, and what is clear is decided early."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.optimize import guards
from slipstream.optimize.graph.operators import convolution
from slipstream.optimize.graph.operators.convolution import Convolution, Direct, OneDnn, Winograd, faster_of_two
from slipstream.optimize.graph.operators.convolution_ways import RACED_MACS, RACED_PIXELS, Geometry, raced_part
from slipstream.optimize.graph.program import Race

ROUNDS = Race.ROUNDS, Race.speedup
"""As they are outside the tests of this folder, whose races are settled at once."""


def outputs(geometry, weight):
    _, _, *sides = geometry.size
    return [
        (side + 2 * pad - dilation * (taps - 1) - 1) // stride + 1
        for side, pad, dilation, taps, stride in zip(
            sides, geometry.padding, geometry.dilation, weight.shape[2:], geometry.stride, strict=True
        )
    ]


@settings(deadline=None, max_examples=300)
@given(
    batch=st.integers(1, 70), height=st.integers(1, 1000), width=st.integers(1, 3000),
    channels=st.sampled_from([1, 3, 16, 64, 512]), outs=st.sampled_from([1, 32, 64, 1024]),
    taps=st.sampled_from([(1, 1), (3, 3), (1, 7), (7, 7)]), stride=st.sampled_from([(1, 1), (2, 2), (1, 3), (4, 1)]),
    dilation=st.sampled_from([(1, 1), (2, 2), (1, 6)]),
)  # fmt: skip
def test_a_part_is_enough_and_no_more(batch, height, width, channels, outs, taps, stride, dilation):
    weight = torch.empty(outs, channels, *taps, device="meta")
    whole = Geometry(stride, (0, 0), dilation, 1, (batch, channels, height, width))
    part = raced_part(weight, whole)
    assert part.size[1] == channels and all(ours <= all_ for ours, all_ in zip(part.size, whole.size, strict=True))
    assert all(side > 0 for side in outputs(part, weight)) == all(side > 0 for side in outputs(whole, weight))
    pixels, of_all = (size[0] * size[2] * size[3] / (stride[0] * stride[1]) for size in (part.size, whole.size))
    assert pixels >= min(of_all, RACED_PIXELS)
    assert weight.numel() * pixels >= min(weight.numel() * of_all, 0.99 * RACED_MACS)
    rounded_up = 4 * stride[0] * 4 * stride[1] * 40 * 8  # whole tiles, and what a window sees
    assert pixels <= 4 * max(RACED_MACS / weight.numel(), RACED_PIXELS) + rounded_up


def test_large_images_race_in_part_and_share_what_was_found(monkeypatch):
    """Verdicts are asked for by the part: images of other sizes have them too."""
    raced = []
    monkeypatch.setattr(guards.speed, "settle", lambda question, *_: raced.append(question) or guards.Verdict(True, 2.0))
    weight, owner = torch.randn(64, 64, 3, 3), Owner()
    for size in ((4, 64, 512, 512), (1, 64, 800, 512)):
        owner.geometry = Geometry((1, 1), (1, 1), (1, 1), 1, size)
        assert faster_of_two(Winograd, OneDnn, weight, None, owner) is Winograd
    assert raced[0] == raced[1]


def test_minimal_filtering_races_no_direct_kernel_that_multiplies_far_more(monkeypatch):
    """Where it wins by little the direct kernel may still be the better one, and is asked."""
    raced = []
    monkeypatch.setattr(convolution, "faster_of_two", lambda rival, way, *_: raced.append((rival, way)) or Winograd)
    gain = {}
    monkeypatch.setattr(convolution, "gain_of_filtering", lambda *_: gain["x"])
    monkeypatch.setattr(convolution, "way_for", lambda *_: Winograd)
    monkeypatch.setattr(convolution, "may_win", lambda *_: True)
    for gain["x"] in (1.2, 3.0):
        layer = Convolution(torch.float32, torch.float32, Geometry((1, 1), (1, 1), (1, 1), 1, (1, 32, 64, 64)), "none", None)
        layer.make((torch.randn(32, 32, 3, 3), None))
    assert raced == [(Winograd, OneDnn), (Direct, Winograd), (Winograd, OneDnn)]


class Owner:
    product, out, post_op, parts, geometry = torch.float32, torch.float32, "none", 1, None


@pytest.mark.parametrize(
    ("plain", "fast", "after"), [(4.0, 1.0, 2), (1.0, 4.0, 2), (1.1, 1.0, 3), (1.0, 1.1, 3), (1.0, 1.0, 3)]
)
def test_a_clear_race_is_over_after_two_rounds(monkeypatch, plain, fast, after):
    monkeypatch.setattr(Race, "ROUNDS", ROUNDS[0])
    monkeypatch.setattr(Race, "speedup", ROUNDS[1])
    race = Race()
    while race.speedup() is None:
        which = race.next()
        race.seconds[which].append((plain, fast)[which])
    assert race.speedup() == plain / fast
    assert [len(rounds) for rounds in race.seconds] == [after, after]

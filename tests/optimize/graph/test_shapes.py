# SPDX-License-Identifier: Apache-2.0
"""What a capture needs the shape of is not worked out sample by sample."""

import functools
import threading

import pytest
import torch
from torch import _decomp, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from slipstream.optimize.graph.capturing import shapes
from slipstream.optimize.graph.capturing.capture import capture

FRAMES = torch.ops.aten.unfold_backward.default


class Synthesis(nn.Module):
    """As vocoders and models that separate sources end."""

    def __init__(self, frame=64):
        super().__init__()
        self.frame = frame
        self.mask = nn.Linear(frame // 2 + 1, frame // 2 + 1)

    def forward(self, waves):
        window = torch.hann_window(self.frame)
        spectrum = torch.stft(waves, self.frame, window=window, return_complex=True)
        scaled = self.mask(spectrum.abs().transpose(1, 2)).transpose(1, 2)
        return torch.istft(spectrum * scaled, self.frame, window=window, length=waves.shape[-1])


@pytest.fixture
def long_way(monkeypatch):
    """torch's decomposition, which tells by whom it was called."""
    theirs, calls = _decomp.decomposition_table[FRAMES], []

    @functools.wraps(theirs)  # torch asks for its name
    def written_out(*args):
        calls.append(threading.get_ident())
        return theirs(*args)

    monkeypatch.setitem(_decomp.decomposition_table, FRAMES, written_out)
    return calls


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_overlapping_frames_are_not_added_up(long_way, batch, dynamic):
    model, waves = Synthesis().eval(), torch.randn(batch, 400)
    table = _decomp.decomposition_table
    with torch.inference_mode():
        captured = capture(model, (waves,), {}, dynamic=dynamic)
        got, wanted = captured.wrap(captured.graph)(model, waves), model(waves)
    assert not long_way
    assert _decomp.decomposition_table is table
    assert (got.shape, got.stride(), got.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)
    torch.testing.assert_close(got, wanted)


def test_only_for_what_captures(long_way):
    """A compiler of the script's, in another thread, has torch's own; so has whoever computes values."""
    ((_, _, table),) = shapes.instead()
    grad = torch.randn(1, 5, 8)
    torch.testing.assert_close(table[FRAMES](grad, [1, 24], 1, 8, 4), FRAMES(grad, [1, 24], 1, 8, 4))

    def elsewhere():
        with FakeTensorMode() as mode:
            table[FRAMES](mode.from_tensor(grad), [1, 24], 1, 8, 4)

    other = threading.Thread(target=elsewhere)
    other.start()
    other.join()
    assert len(long_way) == 2


def test_where_torch_has_no_such_loop(monkeypatch):
    monkeypatch.delitem(_decomp.decomposition_table, FRAMES)
    assert shapes.instead() == []

# SPDX-License-Identifier: Apache-2.0
"""A capture leaves dynamo as it was, and does not load what compilers of graphs need."""

import logging
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from torch import nn

from slipstream.optimize.graph.capturing import patience, quiet
from slipstream.optimize.graph.capturing.capture import capture
from slipstream.optimize.graph.capturing.refusals import CaptureDisturbed, CaptureRefused, CaptureTakesLong
from slipstream.optimize.graph.capturing.unheard import Unheard

LOADS = """
import sys
import torch
from torch import nn
from slipstream.optimize.graph.capturing.capture import capture
import torch._dynamo.convert_frame

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.calls = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), 0

    def forward(self, x):
        self.calls += 1
        return torch.relu(self.norm(self.first(x))).mean((2, 3))

before = set(sys.modules)
with torch.no_grad():
    captured = capture(Block().eval(), (torch.randn(2, 3, 8, 8),), {}, dynamic=False)
assert len(list(captured.graph.graph.nodes)) > 5
print(*sorted(set(sys.modules) - before))
"""

COMPILERS = {
    "networkx",
    "torch._functorch.aot_autograd",
    "torch._inductor.codecache",
    "torch.export._trace",
    "torch._dynamo.backends.debugging",
}
"""What takes half a second to load."""


class Doubling(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


class Printing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("a graph break")
        return x + x


def test_a_capture_loads_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & set(COMPILERS)


@pytest.mark.parametrize("module", [Doubling(), Printing()], ids=["captured", "refused"])
def test_dynamo_is_as_before(module: nn.Module) -> None:
    def found() -> list[Any]:
        return [vars(owner).get(name) for owner, name, _ in [*quiet.instead(), *Unheard().instead()]]

    before = found()
    assert all(value is not None for value in before), "a name that this torch does not have"
    with torch.no_grad():
        try:
            capture(module, (torch.ones(3),), {}, dynamic=False)
        except CaptureRefused:
            assert isinstance(module, Printing)
    assert found() == before


def test_errors_of_guards_are_not_written_by_the_capturing_thread(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("torch._guards")
    other = threading.Thread(target=log.error, args=("of the script's own compilation",))
    with quiet.quietly([]):
        log.error("of ours")
        other.start()
        other.join()
    log.error("afterwards")
    assert [record.getMessage() for record in caplog.records] == ["of the script's own compilation", "afterwards"]


def capture_while(monkeypatch: pytest.MonkeyPatch, script: Any) -> None:
    """Capture, and run ``script`` amid the trace, as the script's thread would."""
    from torch._dynamo import convert_frame

    reset, ran = convert_frame.reset_user_object_tracking, []

    def meanwhile() -> None:
        thread = threading.Thread(target=lambda: ran.append(script()))
        thread.start()
        thread.join()
        reset()

    monkeypatch.setattr(convert_frame, "reset_user_object_tracking", meanwhile)
    try:
        capture(Doubling().eval(), (torch.ones(3),), {}, dynamic=False)
    finally:
        assert len(ran) == 1


def test_random_numbers_that_the_script_draws_meanwhile_are_not_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    wanted = torch.rand(2, 3)
    torch.manual_seed(0)
    drawn: list[torch.Tensor] = []
    capture_while(monkeypatch, lambda: drawn.append(torch.rand(3)))
    assert torch.equal(torch.stack([*drawn, torch.rand(3)]), wanted)


def test_a_default_dtype_that_the_script_sets_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_default_dtype()
    try:
        with pytest.raises(CaptureDisturbed, match="the script changed"):
            capture_while(monkeypatch, lambda: torch.set_default_dtype(torch.float64))
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(before)


def test_a_dynamo_that_cannot_be_kept_from_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo import convert_frame

    monkeypatch.setattr(convert_frame, "trace_frame", lambda *args, **kwargs: None)
    with pytest.raises(CaptureRefused, match="random state"):
        capture(Doubling().eval(), (torch.ones(3),), {}, dynamic=False)


class Looping(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(200):
            x = x * 1.001 + 1
        return x


def test_a_capture_that_takes_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.symbolic_convert import InstructionTranslatorBase

    step = InstructionTranslatorBase.step
    monkeypatch.setattr(patience, "LEAST_S", 1e-3)
    monkeypatch.setattr(patience, "SECONDS_A_MODULE", 0.0)
    with pytest.raises(CaptureTakesLong, match="takes dynamo more than"):
        capture(Looping().eval(), (torch.ones(3),), {}, dynamic=False)
    assert InstructionTranslatorBase.step is step
    monkeypatch.undo()
    assert len(capture(Looping().eval(), (torch.ones(3),), {}, dynamic=False).graph.graph.nodes) > 400

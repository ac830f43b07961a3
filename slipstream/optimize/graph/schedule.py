# SPDX-License-Identifier: Apache-2.0
"""When a model is worth capturing: pure arithmetic on the times of its calls.

A capture is a second or more of Python beside the script, and takes a core from its calls. It is made once a graph would
have saved as much as it costs, had there been one from the start: a script that ends sooner never pays for it, one that goes
on loses at most as much again as it cannot gain (the rule of renting skis until they would have been bought). Where a graph
saves a third of each call or more it is made as soon as the script has lasted for as long as it costs. Where it was the faster
way in an earlier process, and the script went on for long enough the last time, it is made at the second call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import nn

CAPTURE_S_PER_MODULE = 0.010
"""Dynamo's time for a leaf module, and ours: 1.45 and 0.4 s for ResNet-50's 187, 1.55 and 0.7 s for BERT-base's 160, with few
collections, and nothing loaded that captures do not need."""

BESIDE = 1.4
"""What a capture takes from the calls beside it, over its own time: measured on two cores, 2.6 s for BERT-base."""

CALLS_OF_PROOF = 2
"""The call in which the graph proves itself runs the captured arithmetic as well, on operators that are not packed."""

DISPATCH_S = 15e-6
"""A graph spares each leaf module this much of Python a call: slots, gates, hooks and the operators between."""

SAVES = {torch.float32: (0.03, 0.45), torch.bfloat16: (0.05, 0.5)}
"""Share of a call that a graph saves besides, over the layers' own pieces: without convolutions, and with nothing but them,
whose images then stay channels last and, in bfloat16, short. Measured: BERT 0.02 and 0.05, ResNet-50 0.48 and 0.49."""

MUCH = 1 / 3
"""From this share of a call on a graph is worth a risk."""

RISK = 1.0
"""Of a capture's cost: so long a script has to have lasted where a graph saves much, and is then believed to go on. If it ends
just then, it has taken up to 1.4 times as long as without. With a quarter it was 1.8 times, for a second saved by those that
go on (ResNet-50, 8 images, two cores)."""

CALLS = 3
"""Calls before a capture, so that one-off uses and first calls say nothing."""

KNOWN_CALLS = 2
"""The same where an earlier process found that a graph of such a model wins, and in this script repays."""

SMALL_S = 3e-4
"""A model whose calls are shorter gains nothing: checking a capture's guards takes up to a third of this."""

SHORT_CALLS = 128
"""So many more shorter calls than longer ones had time for, and the model is not watched any more: watching costs some 3 µs a
call."""

ASK_S = 1e-5
"""Describing a leaf module, for the question to earlier processes, takes 6 to 9 µs."""

ASK_SHARE = 0.3
"""Of a call: so much may that take."""

MOST_CAPTURES = 3
"""Of one model: for other sizes, modes or branches."""


MOST_SHAPES = 64
"""Of one model's inputs: so many are told apart, and asked about what earlier processes found."""

MOST_PUT_OFF = 8
"""Captures that came to nothing and do not count: that have to be shown what values decide, or that the script disturbed."""


@dataclass
class Schedule:
    """The calls that no capture answers, and what they say about making one.

    ``modules`` are the model's leaves, ``share`` what a graph of it is expected to save of a call besides dispatch. ``early``:
    after the third call, whatever it costs. ``known``: an earlier process found that it wins for calls like the last one.
    ``repaid``: whether it repaid when the script last ran.
    """

    modules: int
    share: float
    early: bool = False
    known: bool = False
    repaid: bool | None = None
    captures: int = 0
    seconds: float = 0.0
    calls: int = 0
    spare_s: float = 0.0
    sizes: Counter[Hashable] = field(default_factory=Counter)
    refusals: set[str] = field(default_factory=set)
    put_off: int = 0

    def note(self, seconds: float, sizes: Hashable) -> None:
        """A call took this long; ``sizes`` are its tensors' shapes."""
        self.calls += 1
        self.seconds += seconds
        if len(self.sizes) < MOST_SHAPES:
            self.sizes[sizes] += 1

    def note_length(self, seconds: float) -> None:
        """Some call took this long, perhaps one that no graph may answer. A longer one outweighs as many shorter ones as fit
        into it: one among hundreds may be the collector's, or come after a rest."""
        self.spare_s = self.spare_s + SMALL_S if seconds < SMALL_S else max(0.0, self.spare_s - seconds)

    def is_hopeless(self) -> bool:
        """Whether calls have been too short for any graph for long enough."""
        return self.spare_s > (SHORT_CALLS - 0.5) * SMALL_S and self.captures == 0

    def may_ask(self, seconds: float) -> bool:
        """Whether after a call of this length it is time to ask what earlier processes found: not for a model's first call."""
        return self.calls > 0 and seconds >= SMALL_S and seconds * ASK_SHARE >= ASK_S * self.modules

    def mean_s(self) -> float:
        """Of the calls so far. Another thread may begin a capture, which forgets them, at any time."""
        calls = self.calls
        return self.seconds / calls if calls else 0.0

    def saved(self) -> float:
        """Seconds that a graph would have spared the calls so far."""
        return self.share * self.seconds + DISPATCH_S * self.modules * self.calls

    def saved_a_call(self) -> float:
        """The same for one of them."""
        return self.share * self.mean_s() + DISPATCH_S * self.modules

    def saves_much(self) -> bool:
        """Whether a graph is expected to save so much of each call that it should be there soon, whatever that takes."""
        return self.share >= MUCH

    def cost(self) -> float:
        """Seconds that a capture costs the script; a further one has to be worth more, since the last did not hold."""
        capture = BESIDE * CAPTURE_S_PER_MODULE * max(1, self.modules)
        return (capture + CALLS_OF_PROOF * self.mean_s()) * (1 + self.captures)

    def is_due(self, *, however_small: bool = False) -> bool:
        """Whether to capture now; ``however_small``: whatever little a call takes."""
        is_sure = self.known and self.repaid is True
        if self.is_over() or self.calls < (KNOWN_CALLS if is_sure and not self.captures else CALLS):
            return False
        if self.mean_s() < SMALL_S and not however_small:
            return False
        if self.early or is_sure:
            return True
        saved, cost = self.saved(), self.cost()
        is_much = saved >= MUCH * self.seconds and self.repaid is not False
        return saved >= cost or (is_much and self.seconds >= RISK * cost)

    def is_varied(self) -> bool:
        """Whether sizes change from call to call, so that the capture should hold for all of them."""
        return self.captures > 0 or len(self.sizes) > 1

    def is_over(self) -> bool:
        """Whether there will be no further capture, so that nobody needs to watch for one."""
        return self.captures >= MOST_CAPTURES

    def refuse(self, why: str, *, once_more: bool, for_good: bool) -> None:
        """The capture that was begun last came to nothing. ``once_more``: it does not count. What refuses one twice will
        refuse a third; ``for_good``: so it will at once."""
        if once_more and self.put_off < MOST_PUT_OFF:
            self.captures -= 1
            self.put_off += 1
        elif for_good or why in self.refusals:
            self.stop()
        self.refusals.add(why)

    def stop(self) -> None:
        """No further capture: it would be as wrong as the last."""
        self.captures = MOST_CAPTURES

    def begin(self) -> None:
        """A capture begins; what was noted has been used up."""
        self.captures += 1
        self.seconds, self.calls = 0.0, 0
        self.sizes.clear()


def schedule_of(model: nn.Module, dtype: torch.dtype, *, early: bool) -> Schedule:
    """Nothing noted yet, for this model computed in this dtype."""
    leaves = [module for module in model.modules() if not module._modules]
    weighty = [module for module in leaves if isinstance(module, (nn.Linear, nn.RNNBase, nn.modules.conv._ConvNd))]
    convolutions = sum(isinstance(module, nn.modules.conv._ConvNd) for module in weighty)
    least, most = SAVES[dtype]
    return Schedule(len(leaves), least + (most - least) * convolutions / max(1, len(weighty)), early)

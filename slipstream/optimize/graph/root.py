# SPDX-License-Identifier: Apache-2.0
"""Answers for the outermost module of a script's calls: plainly at first, from a captured graph once there is one.

While the script goes on, a thread of ours captures, lowers and packs. The next calls take both ways in turn, and the faster one
stays. A call for which the guards do not hold takes the old way: every layer has its own piece."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from slipstream.decision import log
from slipstream.kernels.linear import asked_precision
from slipstream.optimize import accounts, gates, guards
from slipstream.optimize.graph import autocast, background
from slipstream.optimize.graph.capturing.arguments import Arguments, alike, bucket_of, function_of, grows, shapes_of, tensors_in
from slipstream.optimize.graph.capturing.branches import OtherBranch, Outcomes, outcomes_here
from slipstream.optimize.graph.capturing.capture import Capture, capture
from slipstream.optimize.graph.capturing.refusals import BranchOnValue, CaptureRefused
from slipstream.optimize.graph.capturing.shared import is_shared, refused_as_shared
from slipstream.optimize.graph.lower import lower
from slipstream.optimize.graph.program import Program, Race, Trial
from slipstream.optimize.graph.schedule import MOST_SHAPES, Schedule, schedule_of
from slipstream.optimize.graph.way import Way
from slipstream.optimize.known_graphs import Known, Repayment
from slipstream.optimize.options import Options, clocks, elapsed, set_up
from slipstream.optimize.unrecorded.unrecorded import SLOT, Unrecorded

_frame_callback: Callable[[], Any] = torch._C._dynamo.eval_frame.get_eval_frame_callback


class RootCall:
    """In a module's own call slot. ``inner`` answers where no graph does; by default that is the module itself. Its ``family``
    says whether it may be captured now, and is told where it is no graph: then its parts may have one each."""

    def __init__(
        self, module: nn.Module, name: str, options: Options, inner: Callable[..., Any] | None = None, family: Any = None
    ) -> None:
        self.module = weakref.ref(module)
        self.what = f"{name}.graph: whole model"
        self.options, self.inner, self.family = options, inner, family
        self.unrecorded = Unrecorded(f"{name}: gradients")
        self.ways: tuple[Way, ...] = ()
        self.arguments = self._signature(module)
        self.schedule, self.known = self._schedule(module), self._known()
        self.repayment: Repayment | None = None
        self.clear_at = accounts.NEVER
        self.asked: dict[Hashable, guards.Verdict | None] = {}
        self.plain_s: dict[Hashable, float] = {}
        self.capturing = self.asks_outcomes = self.is_due = self.is_of_parts = False
        self.outcomes: Outcomes | None = None
        self.account = accounts.Account(type(module).__name__, "graph")

    def _signature(self, module: nn.Module) -> Any:
        """What binds arguments for the guards; None where no call can be captured."""
        function = function_of(module)
        return None if function is None else Arguments(function)

    def _schedule(self, module: nn.Module) -> Schedule:
        return schedule_of(module, self.options.dtype, early=self.options.early)

    def _known(self) -> Known:
        return Known(self.options)

    def _stands_aside(self, module: nn.Module) -> bool:
        """Whether this call is not one in inference of a module without hooks."""
        return module.training or torch.is_grad_enabled() or not gates.module_is_plain(module)

    def _captured(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, dynamic: bool) -> Capture:
        return capture(module, args, kwargs, dynamic=dynamic, outcomes=self.outcomes)

    def __reduce__(self) -> Any:
        """What copies and pickles a module's dictionary as it stands, as graphs of torch.fx do, finds nothing here."""
        return type(None), ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module()
        assert module is not None  # it is being called
        if torch.compiler.is_dynamo_compiling():  # it reads its way through here where a module has a forward of its own
            return module._call_impl(*args, **kwargs)
        if (
            self.arguments is None
            or self._stands_aside(module)
            or _frame_callback() is not None  # the script's own torch.compile is at work
            or not gates.call_is_plain()
        ):
            return self._stand_aside(module, args, kwargs)
        way = self._way_for(module, args, kwargs) if self.ways else None
        if way is None:
            return self._watch(module, args, kwargs)
        sizes = bucket_of(args, kwargs)
        won = way.won.get(sizes)
        if won is None:
            return self._try(way, sizes, module, args, kwargs)
        return self._run(way, module, args, kwargs) if won else self._plain(module, args, kwargs)

    def _plain(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (self.inner or module._call_impl)(*args, **kwargs)

    def _stand_aside(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that no graph may answer. Where even those are short, there is nothing to wait for."""
        start = clocks()
        recorded = torch.is_grad_enabled() and not getattr(module, "training", True)  # a frozen ScriptModule does not say
        if recorded and gates.call_is_plain() and _frame_callback() is None and not self.options.decides_only:
            plain, unrecorded = lambda: self._plain(module, args, kwargs), lambda: self(*args, **kwargs)
            result = self.unrecorded.answer(module, args, kwargs, plain, unrecorded)
        else:
            result = self._plain(module, args, kwargs)
            if self.family is not None:
                self.family.stood_aside(module, self)
        self._note_length(module, elapsed(start))
        return result

    def _note_length(self, module: nn.Module, spent: tuple[float, float]) -> None:
        """By the clock that shows less: where others are busy, one of a hundred short calls is long by the wall's."""
        self.schedule.note_length(min(spent))
        if self.schedule.is_hopeless() and not guards.speed.trusting:
            self._let_go(module)

    def _let_go(self, module: nn.Module) -> None:
        """Leave the slot to the piece that answered before, which the class's descriptor knows of, or to nobody."""
        self._leave(module)
        self._note(False, "its calls are too short for a graph to repay its guards", 0.0)

    def _give_up(self, module: nn.Module) -> None:
        """There will be no graph of the whole. Calls that record gradients may have this to thank that they need not."""
        family, self.family = self.family, None
        if family is not None:
            family.refused(module, self, self.is_of_parts)
        if not self.unrecorded.watched or self.unrecorded.is_given_up:
            self._leave(module)

    def _leave(self, module: nn.Module) -> None:
        if module.__dict__.get(SLOT) is self:
            if self.inner is None:
                module.__dict__[SLOT] = None
            else:
                del module.__dict__[SLOT]

    def _way_for(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Way | None:
        assert self.arguments is not None
        try:
            values = self.arguments.bind(module, args, kwargs)
        except TypeError:
            return None  # the original says what is wrong
        return next((way for way in self.ways if way.holds(values)), None)

    def _watch(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A plain call that is timed, and perhaps the one that sets off a capture."""
        if self.repayment is not None:
            self.repayment.others += 1
        if self.capturing:
            return self._beside_capture(module, args, kwargs)
        if self.schedule.is_over() and not self.ways:
            self._give_up(module)
            return self._plain(module, args, kwargs)
        if any(leaf.is_nested for leaf in tensors_in((args, kwargs))):
            return self._plain(module, args, kwargs)
        if self.asks_outcomes:
            return self._show_outcomes(module, args, kwargs)
        if self.options.decides_only:
            return self._look(module, args, kwargs)
        capturing = self._capturing(module, args, kwargs) if self.is_due else None
        start = clocks()
        result = self._plain(module, args, kwargs)
        seconds, _ = spent = elapsed(start)
        self._note_length(module, spent)
        try:
            if capturing is not None:
                self._capture_beside(capturing)
            else:
                self._note_call(module, args, kwargs, seconds)
        except Exception as error:  # noqa: BLE001 - a failure of ours: the script has its answer
            self._note(False, f"slipstream failed: {error!r}", 0.0)
            self.schedule.stop()
        return result

    def _note_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """A plain call took so long: perhaps it is time for a capture."""
        shapes = shapes_of(args, kwargs)
        if shapes not in self.asked and self.schedule.may_ask(seconds) and len(self.asked) < MOST_SHAPES:
            self._ask(module, shapes, bucket_of(args, kwargs), seconds)
        known = self.asked.get(shapes)
        if known is not None and not known.fast and not self.options.early:
            return
        self.schedule.known = known is not None and known.fast
        self.schedule.note(seconds, shapes)
        is_due = self.schedule.is_due(however_small=guards.speed.trusting) and not set_up.is_spent()
        if is_due and (self.family is None or self.family.lets(self)):
            if grows(args, kwargs):
                self.is_due = True  # the next call is looked at before it changes its arguments, as this one has
            else:
                self._capture_beside(self._capturing(module, args, kwargs))

    def _show_outcomes(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A plain call in which is written down what tensors' values decide, and then a capture that goes the same way."""
        self.asks_outcomes = False
        capturing = self._capturing(module, args, kwargs)
        with outcomes_here() as outcomes:
            result = self._plain(module, args, kwargs)
        self.outcomes = outcomes
        self._capture_beside(capturing)
        return result

    def _beside_capture(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A plain call on the cores that a capture leaves: each parallel loop would wait for a thread whose core that is on."""
        threads = torch.get_num_threads()
        if self._captures_gently() or not background.shares_a_core(threads):
            return self._plain(module, args, kwargs)
        with background.on_threads(threads - 1):
            return self._plain(module, args, kwargs)

    def _look(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A plain call, and behind it at once a capture, to be looked at; another one if that held only for other sizes."""
        if self.schedule.captures > 1:
            return self._plain(module, args, kwargs)
        capturing = self._capturing(module, args, kwargs)
        result = self._plain(module, args, kwargs)
        self._capture_beside(capturing)
        if not self.ways and not self.asks_outcomes:
            self._give_up(module)
        return result

    def _show(self, way: Way, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Say what a graph would bring over the original, which answers."""
        result = self._run(way, module, args, kwargs)
        program = way.program
        speedup = program.race.speedup() if isinstance(program, Trial) else None
        if speedup is not None and program.broken is None:
            self._decide(way, bucket_of(args, kwargs), guards.Verdict(speedup > 1, speedup))
        self._leave(module)
        return result

    def _ask(self, module: nn.Module, shapes: Hashable, sizes: Hashable, seconds: float) -> None:
        """What earlier processes found for calls of these shapes, of which one took so long now."""
        known = self.known.verdict(module, sizes)
        self.asked[shapes], self.plain_s[sizes] = known, seconds
        if known is not None and not known.fast:
            self._note(False, f"not captured: the layers one by one are faster here{known.when()}", 0.0)
        elif self.repayment is None:
            schedule = self.schedule
            self.repayment, schedule.repaid = self.known.repayment(schedule.cost(), schedule.saved_a_call(), self.account)
            if schedule.repaid is False:
                self._note(False, "not captured yet: when this script last ran it ended before a graph would have repaid", 0.0)

    def _capturing(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Capture]:
        """What captures for calls like this one, once it is called; noted as begun."""
        self.is_due = False
        varied, shared = self.schedule.is_varied(), is_shared(module, (args, kwargs))
        self.schedule.begin()
        args, kwargs = alike((args, kwargs))
        return refused_as_shared if shared else lambda: self._captured(module, args, kwargs, dynamic=varied)

    def _captures_gently(self) -> bool:
        """Whether a capture gives way to the script's calls."""
        return not self.options.early and not self.schedule.saves_much()

    def _capture_beside(self, capturing: Callable[[], Capture]) -> None:
        modes = autocast.state_here()
        if self.options.decides_only:
            return self._capture(capturing, modes)
        self.capturing = True
        background.start(lambda: self._capture(capturing, modes), self._lost, gently=self._captures_gently())
        if guards.speed.trusting:
            background.wait()  # what answers must not depend on the clock

    def _lost(self) -> None:
        """The capture will never be done: this is a forked child."""
        self.capturing, self.outcomes = False, None
        self.schedule.refuse("the process forked meanwhile", once_more=True, for_good=False)

    def _capture(self, capturing: Callable[[], Capture], modes: Any) -> None:
        """In a thread of ours. Whatever fails, the old way goes on."""
        start, precision = time.perf_counter(), asked_precision()
        try:
            with autocast.as_in(modes):
                captured = capturing()
                with background.on_threads(1):  # a second team would take the cores from the script's own
                    lowered = lower(captured.graph, captured.inputs, self.options, captured.own)
                    program = Trial(lowered) if self.options.decides_only else Program(lowered)
            program.reference = captured.original or program.reference
            self.ways = (Way(captured, program), *self.ways)
            then = "no call to try it on has come" if self.options.decides_only else "being tried"
            self._note(False, f"captured with {lowered.operators} fused operators, {then}", time.perf_counter() - start)
        except CaptureRefused as error:
            self.asks_outcomes = isinstance(error, BranchOnValue)
            self.is_of_parts = error.is_of_parts
            self.schedule.refuse(str(error), once_more=error.is_passing, for_good=error.is_final)
            self._note(False, f"not captured: {error}", time.perf_counter() - start)
        except Exception as error:  # noqa: BLE001 - a failure of ours: the old way goes on, the report says so
            self._note(False, f"slipstream failed: {type(error).__name__}: {error}", time.perf_counter() - start)
        finally:
            self.capturing, self.outcomes = False, None
            now = asked_precision()
            if now != precision:  # it was set meanwhile, and dynamo has put a part of it back: torch would not read it any more
                torch.set_float32_matmul_precision(now)

    def _try(self, way: Way, sizes: Hashable, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The two ways in turn. The first fast call also runs the reference, and is not timed."""
        if self.options.decides_only:
            return self._show(way, module, args, kwargs)
        if not way.program.is_right:
            return self._run(way, module, args, kwargs)
        if guards.speed.trusting:
            self._decide(way, sizes, guards.TRUST)
            return self._run(way, module, args, kwargs)
        known = self.known.verdict(module, sizes)
        if known is not None and not known.fast:
            self._decide(way, sizes, known)
            return self._plain(module, args, kwargs)
        race = way.races.setdefault(sizes, Race())
        which = race.next()
        if which:
            result = race.time(1, lambda: self._run(way, module, args, kwargs))
        else:
            result = race.time(0, lambda: self._plain(module, args, kwargs))
        if sizes not in way.won:
            self._judge(way, sizes, race, known)
        return result

    def _judge(self, way: Way, sizes: Hashable, race: Race, known: guards.Verdict | None) -> None:
        """Decide if enough is known: a win that an earlier process saw needs one call of the graph that is faster than
        one without."""
        speedup = race.speedup()
        if speedup is not None:
            verdict = guards.Verdict(speedup > 1, speedup)
            self.plain_s[sizes] = min(race.seconds[0])
            self.known.keep(sizes, verdict, min(map(len, race.seconds)), self.plain_s[sizes])
            self._decide(way, sizes, verdict)
        elif known is not None and race.confirms(self.plain_s.get(sizes, 0.0)):
            self._decide(way, sizes, known)

    def _decide(self, way: Way, sizes: Hashable, verdict: guards.Verdict) -> None:
        way.won[sizes] = verdict.fast
        way.races.pop(sizes, None)
        way.captured = None
        operators = way.program.lowered.operators
        why = (f"{operators} fused operators" if verdict.fast else "the layers one by one are faster here") + verdict.when()
        if verdict.fast:
            accounts.enter(self.what, self.account)
            self._expect_repayment(verdict.speedup_x, self.plain_s.get(sizes))
        log.note(self.what, verdict.fast, why, speedup_x=verdict.speedup_x, error_relative=way.program.error)

    def _expect_repayment(self, speedup_x: float, plain_s: float | None) -> None:
        """From what the graph was found to save of a call of the sizes that were decided first, which most calls have."""
        if self.repayment is not None and plain_s is not None and speedup_x > 1 and self.clear_at == accounts.NEVER:
            self.clear_at = self.repayment.clear_at(plain_s * (1 - 1 / speedup_x))

    def _run(self, way: Way, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """By the graph. Where that fails in a way of its own, the original answers, and the graph is dropped."""
        account = self.account
        account.calls += 1
        if account.calls == self.clear_at and self.repayment is not None:
            self.repayment.keep()
        try:
            if account.calls == account.next_timed:
                result = accounts.timed(account, lambda: way.run(module, *args, **kwargs))
            else:
                result = way.run(module, *args, **kwargs)
        except OtherBranch:
            result = self._plain(module, args, kwargs)
            self._note_otherwise(way)
        except Exception as error:
            if way.program.raised is error:
                raise
            way.program.broken = f"slipstream failed: {type(error).__name__}: {error}"
            self.schedule.stop()
            result = self._plain(module, args, kwargs)
        if way.program.broken is not None:
            self.ways = tuple(other for other in self.ways if other is not way)
            log.note(self.what, False, way.program.broken, error_relative=way.program.error)
            if way.program.is_wrong:
                self._lower_for_float32(way)
        return result

    def _note_otherwise(self, way: Way) -> None:
        """A graph found out too late that it has no answer."""
        if way.is_often_otherwise(self.account.calls):
            way.program.broken = "tensors' values decide otherwise from call to call"
            self.schedule.stop()

    def _lower_for_float32(self, way: Way) -> None:
        """The same graph, where bfloat16 is too coarse. Another capture would change nothing."""
        self.schedule.stop()
        captured = way.captured
        if captured is None or self.options.dtype is torch.float32 or self.options.decides_only or set_up.is_spent():
            return
        self.options = replace(self.options, dtype=torch.float32)
        self.known = self._known()
        self.asked.clear()
        self._capture_beside(lambda: captured)

    def _note(self, taken: bool, why: str, seconds: float) -> None:
        log.note(self.what, taken, why, setup_s=seconds)

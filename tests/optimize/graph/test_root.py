# SPDX-License-Identifier: Apache-2.0
"""The graph answers only for calls that it was captured for, sees every change, and leaves no trace in the model."""

import copy
import gc
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from slipstream.decision import log
from slipstream.optimize import accounts
from slipstream.optimize.graph import background, schedule, tier
from slipstream.optimize.graph import root as root_file
from slipstream.optimize.graph.capturing.refusals import CaptureRefused
from slipstream.optimize.graph.program import Program
from slipstream.optimize.optimize_model import optimize_model
from slipstream.optimize.options import set_up
from tests.optimize.graph.conftest import needs_native, settle
from tests.optimize.graph.models import CASES, Encoder, Residual
from tests.optimize.judging import error

pytestmark = needs_native


class Noting(nn.Module):
    """Notes in Python how many rows came, and branches on an argument."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.rows = None

    def forward(self, x, twice=False, **others):
        self.rows = x.shape[0]
        y = self.first(x).relu()
        return self.second(self.second(y)) if twice else self.second(y)


@pytest.fixture
def ready(at_once):
    """A model that its graph answers for, its input, and the bare function behind it."""
    at_once("float32")
    model, x = Noting().eval(), torch.randn(6, 64)
    root = settle(model, x)
    return model, x, root


def answers(model, *args, **kwargs):
    """The model's answer under inference mode, and the original's."""
    with torch.inference_mode():
        got = model(*args, **kwargs)
        wanted = copy.deepcopy(model)._call_impl(*args, **kwargs)
    return got, wanted


def uses(root):
    """Counts calls of the graph from here on."""
    seen = []
    (way,) = root.ways
    run = way.run
    way.run = lambda *args, **kwargs: (seen.append(1), run(*args, **kwargs))[1]
    return seen


def test_what_the_scripts_code_does_in_python_is_done(ready):
    model, x, root = ready
    seen = uses(root)
    for _ in range(2):
        model.rows = None
        with torch.inference_mode():
            model(x)
        assert model.rows == 6
    assert len(seen) == 2


def test_a_model_that_counts_its_calls_counts_right(at_once):
    class Counting(Noting):
        def forward(self, x):
            self.rows = (self.rows or 0) + 1
            return super().forward(x) if self.rows < 0 else self.first(x)

    at_once("float32")
    model, x = Counting().eval(), torch.randn(6, 64)
    settle(model, x)
    with torch.inference_mode():
        for _ in range(4):
            model(x)
    assert model.rows == 9


def test_other_arguments_take_the_old_way(ready):
    model, x, root = ready
    seen = uses(root)
    for args, kwargs in [((x,), {"twice": True}), ((x[:3],), {}), ((x.double().float()[None],), {})]:
        got, wanted = answers(model, *args, **kwargs)
        assert error(got, wanted) < 1e-5
    assert not seen
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"), torch.inference_mode():
        model()
    with pytest.raises(RuntimeError, match="mat1 and mat2"), torch.inference_mode():
        model(x[:, :5])


def test_grad_mode_training_and_hooks_take_the_old_way(ready):
    model, x, root = ready
    seen = uses(root)
    y = model(x)
    assert y.requires_grad
    y.sum().backward()
    assert model.first.weight.grad is not None
    with torch.no_grad():
        model.train()
        model(x)
        model.eval()
    assert not seen
    handle = model.register_forward_hook(lambda module, args, result: result + 1)
    with torch.inference_mode():
        shifted = model(x)
    handle.remove()
    got, wanted = answers(model, x)
    assert error(shifted - 1, wanted) < 1e-5
    assert len(seen) == 1
    inner = model.second.register_forward_hook(lambda module, args, result: result * 2)
    with torch.inference_mode():
        doubled = model(x)
    inner.remove()
    assert error(doubled, 2 * wanted) < 1e-5
    assert error(got, wanted) < 1e-5


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.first.weight.mul_(2),
        lambda model: model.first.weight.data.mul_(2),
        lambda model: setattr(model.first.weight, "data", model.first.weight.data * 2),
        lambda model: setattr(model.first, "weight", nn.Parameter(model.first.weight * 2)),
        lambda model: model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()}),
        lambda model: model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()}, assign=True),
        lambda model: setattr(model, "first", nn.Linear(64, 64).eval()),
        lambda model: model.second.bias.add_(1),
        lambda model: setattr(model.second, "bias", None),
        lambda model: model.double().float(),
    ],
)
def test_changed_weights_are_seen(ready, change):
    model, x, _ = ready
    answers(model, x)
    with torch.no_grad():
        change(model)
    for _ in range(3):
        got, wanted = answers(model, x)
        assert error(got, wanted) < 1e-5


def test_folded_norms_are_seen_to_change(at_once):
    at_once("float32")
    model, x = Residual().eval(), torch.randn(2, 3, 32, 32)
    settle(model, x)
    for tensor in (model.spread_norm.running_var, model.widen_norm.running_mean, model.narrow_norm.weight):
        with torch.no_grad():
            tensor.add_(0.5)
        got, wanted = answers(model, x)
        assert error(got, wanted) < 1e-5


def test_the_model_stays_what_it_is(ready):
    model, x, _ = ready
    got, _ = answers(model, x)
    for other in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert "_compiled_call_impl" not in other.__dict__
        with torch.inference_mode():
            assert error(other(x), got) < 1e-5
    assert set(model.state_dict()) == {"first.weight", "first.bias", "second.weight", "second.bias"}
    with pytest.deprecated_call():
        assert torch.jit.script(model.first)(x).shape == (6, 64)


def test_own_compile_export_and_trace(ready):
    model, x, _ = ready
    wanted, _ = answers(model, x)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert error(compiled(x), wanted) < 1e-5
        assert error(torch.export.export(model, (x,)).module()(x), wanted) < 1e-5
        with pytest.deprecated_call():
            traced = torch.jit.trace(model, (x,), check_trace=False)
        assert error(traced(x), wanted) < 1e-5
    outer = nn.Sequential(model, nn.ReLU()).eval()
    with torch.no_grad():
        assert error(torch.compile(outer, backend="eager", fullgraph=True)(x), wanted.relu()) < 1e-5


def test_optimize_model_captures_as_well(at_once):
    at_once("float32")
    model, x = Noting().eval(), torch.randn(6, 64)
    for graph in (True, False):
        optimized = optimize_model(model, dtype=torch.bfloat16, graph=graph)
        root = settle(optimized, x)
        assert (root is not None and bool(root.ways)) is graph
        with torch.inference_mode():
            assert error(optimized(x), model._call_impl(x)) < 2e-2


@pytest.mark.parametrize("modes", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("training", [False, True])
def test_a_model_whose_calls_stay_short_is_let_go(engine, monkeypatch, modes, training):
    monkeypatch.setattr(schedule, "SMALL_S", 1e9)
    monkeypatch.setattr(schedule, "SHORT_CALLS", 3)
    engine("float32")
    model, x = Noting().eval(), torch.randn(2, 64)
    model(x)
    assert tier.root_call(model) is not None
    model.train(training)
    with modes():
        for _ in range(3):
            model(x)
        assert model._compiled_call_impl is None
        assert torch.equal(model(x), model._call_impl(x))
    assert any("too short for a graph" in decision.reason for decision in log)


def test_short_calls_on_a_busy_machine_are_short_all_the_same(engine, monkeypatch):
    monkeypatch.setattr(schedule, "SHORT_CALLS", 3)
    monkeypatch.setattr(root_file, "elapsed", lambda start: (1.0, schedule.SMALL_S / 2))  # a second, of which others had most
    engine("float32")
    model, x = Noting().eval(), torch.randn(2, 64)
    with torch.no_grad():
        for _ in range(4):
            model(x)
    assert model._compiled_call_impl is None


def test_a_sequential_with_nothing_to_fuse_is_watched_all_the_same(at_once):
    at_once("float32")
    model, x = nn.Sequential(Noting(), Noting()).eval(), torch.randn(6, 64)
    root = settle(model, x)
    assert root is not None and root.ways and root.inner is None
    got, wanted = answers(model, x)
    assert error(got, wanted) < 1e-5


def test_sizes_that_vary_get_a_graph_for_all_of_them(at_once):
    at_once("float32")
    model = Encoder().eval()
    inputs = [torch.randint(0, 50, (2, length)) for length in (5, 9, 12, 17)]
    with torch.inference_mode():
        for ids in inputs * 2:
            model(ids)
            background.wait()
        settled = tier.root_call(model)
        assert settled.ways
        for ids in (*inputs, torch.randint(0, 50, (3, 21))):
            for _ in range(3):
                got, wanted = answers(model, ids)
                assert error(got["last"], wanted["last"]) < 1e-5
    assert settled.schedule.captures <= 3


def test_a_graph_that_is_wrong_never_answers(at_once, monkeypatch):
    at_once("float32")
    compare = Program._compare
    monkeypatch.setattr(Program, "_compare", lambda self, got, wanted: compare(self, [y * 1.01 for y in got], wanted))
    model, x = Noting().eval(), torch.randn(6, 64)
    assert settle(model, x) is None  # nobody watches it any more
    got, wanted = answers(model, x)
    assert error(got, wanted) < 1e-5
    (decision,) = [decision for decision in log if decision.what == "Noting.graph: whole model"]
    assert not decision.taken
    assert decision.reason.startswith("not accurate enough on live data")


class Cancelling(nn.Module):
    """The difference of two layers that are nearly alike, of which no 16 bits leave more than one digit."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        with torch.no_grad():
            self.second.weight.copy_(self.first.weight + 0.001 * torch.randn(64, 64) / 8)
            self.second.bias.copy_(self.first.bias)

    def forward(self, x):
        return self.first(x) - self.second(x)


def test_where_bfloat16_is_too_coarse_the_same_graph_answers_in_float32(at_once):
    at_once("bfloat16")
    torch.manual_seed(0)
    model, x = Cancelling().eval(), torch.randn(16, 64)
    settle(model, x)
    background.wait()
    root = settle(model, x)
    (way,) = root.ways
    assert way.program.dtype is torch.float32
    assert root.schedule.captures == schedule.MOST_CAPTURES  # dynamo is not asked again
    got, wanted = answers(model, x)
    assert error(got, wanted) < 1e-4
    reasons = [(one.taken, one.reason) for one in log if one.what == "Cancelling.graph: whole model"]
    assert reasons[-1][0], reasons


def test_a_graph_that_is_wrong_is_not_captured_again(at_once, monkeypatch):
    at_once("float32")
    compare, capture, captures = Program._compare, root_file.capture, []
    monkeypatch.setattr(Program, "_compare", lambda self, got, wanted: compare(self, [y * 1.01 for y in got], wanted))
    monkeypatch.setattr(root_file, "capture", lambda *args, **kwargs: captures.append(1) or capture(*args, **kwargs))
    model, x = Noting().eval(), torch.randn(6, 64)
    settle(model, x)
    for rows in (6, 7, 8, 9):
        answers(model, torch.randn(rows, 64))
        background.wait()
    assert tier.root_call(model) is None and len(captures) == 1


class CountingThreads(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.seen = nn.Linear(64, 64), []

    def forward(self, x):
        self.seen.append(torch.get_num_threads())
        return self.first(x)


@pytest.mark.parametrize("crowded", [False, True])
def test_calls_beside_a_capture_leave_it_a_core_where_there_is_none_besides(at_once, monkeypatch, crowded):
    at_once("float32")
    done = threading.Event()

    def wait(*args, **kwargs):
        done.wait(60)
        raise CaptureRefused("of this test")

    monkeypatch.setattr(root_file, "capture", wait)
    monkeypatch.setattr(root_file.Schedule, "saves_much", lambda self: True)
    monkeypatch.setattr(background, "shares_a_core", lambda threads: crowded)
    model, x = CountingThreads().eval(), torch.randn(6, 64)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with torch.inference_mode():
            model(x), model(x)
            assert tier.root_call(model).capturing
            model(x)
            done.set()
            background.wait()
            model(x)
        assert torch.get_num_threads() == 3
    finally:
        done.set()
        torch.set_num_threads(before)
    assert model.seen == [3, 3, 2 if crowded else 3, 3]


def test_a_team_of_fewer_threads_is_for_a_while_and_for_one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with background.on_threads(2):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 3
        with background.on_threads(2):
            torch.set_num_threads(4)
        assert torch.get_num_threads() == 4  # the script's own
    finally:
        torch.set_num_threads(before)
    assert not background.shares_a_core(1)
    assert background.shares_a_core(100_000)


@pytest.mark.parametrize("settled", [False, True])
def test_a_failing_graph_falls_back_and_says_so(ready, settled):
    model, x, root = ready
    wanted, _ = answers(model, x)
    (way,) = root.ways

    def fail(*inputs):
        raise RuntimeError("of ours")

    if settled:
        way.program.settling.way = lambda inputs: fail
    else:
        way.program.fast, way.program.settling.way = fail, lambda inputs: None
    got, _ = answers(model, x)
    assert error(got, wanted) < 1e-6
    assert way.program.broken == "slipstream failed: RuntimeError: of ours"


def test_a_wrapper_that_fails_falls_back_as_well(ready):
    model, x, root = ready
    wanted, _ = answers(model, x)
    (way,) = root.ways

    def fail(*args, **kwargs):
        raise NameError("of dynamo's")

    way.run = fail
    got, _ = answers(model, x)
    assert error(got, wanted) < 1e-6
    assert not root.ways


def test_models_that_are_no_graph_keep_their_layers(at_once):
    class Printing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x):
            return self.layer(x) if x.sum().item() > 0 else self.layer(-x)

    at_once("float32")
    model, x = Printing().eval(), torch.randn(6, 64)
    root = settle(model, x)
    assert not root.ways
    got, wanted = answers(model, x)
    assert error(got, wanted) < 1e-5
    (decision,) = [decision for decision in log if decision.what == "Printing.graph: whole model"]
    assert decision.reason.startswith("not captured: ")


def test_threads(ready):
    model = ready[0]
    inputs = [torch.randn(6, 64) for _ in range(6)]
    wanted = [answers(model, x)[1] for x in inputs]
    wrong = []

    def work(index):
        with torch.inference_mode():
            for _ in range(40):
                if error(model(inputs[index]), wanted[index]) > 1e-5:
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


SCRIPT = """
import torch
from slipstream.autopatch.settings import Settings
from slipstream.optimize import leaf_tier
from slipstream.optimize.graph import background, schedule
schedule.CALLS, schedule.SMALL_S = 1, 0.0
leaf_tier.install(Settings(early_graphs=True))
model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(60))).eval()
with torch.inference_mode():
    for _ in range(3):
        y = model(torch.randn(64, 256))
assert background._running, "the capture was over before the script was"
print(tuple(y.shape))
"""


def test_a_script_that_ends_meanwhile_ends():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(64, 256)\n", "")


def test_low_memory_takes_graphs_on_the_layers_own_packs(at_once):
    at_once("bfloat16", low_memory=True)
    model, args = CASES["encoder"]()
    with torch.inference_mode():
        for _ in range(4):
            model(*args)
    gc.collect()  # a capture collects rarely, and afterwards what other tests have left
    packed = set_up.packed_bytes
    root = settle(model, *args)
    settle(model, *args)
    (way,) = root.ways
    assert list(way.won.values()) == [True], [str(decision) for decision in log]
    assert set_up.packed_bytes == packed


def test_low_memory_takes_no_graph_with_packs_of_its_own(at_once):
    at_once("bfloat16", low_memory=True)
    model, args = CASES["residual"]()
    assert not settle(model, *args).ways
    assert "second copy" in {decision.what: decision.reason for decision in log}["Residual.graph: whole model"]


@pytest.mark.parametrize("calls", range(1, 6))
def test_what_would_be_done_is_told_of_graphs_and_the_original_answers(at_once, calls):
    model, args = CASES["residual"]()
    with torch.inference_mode():
        expected = model(*args)
    at_once("bfloat16", decides_only=True)
    with torch.inference_mode():
        for _ in range(calls):
            assert torch.equal(model(*args), expected)
    decision = {decision.what: decision for decision in log}["Residual.graph: whole model"]
    assert decision.taken == (calls > 2), decision
    assert ("captured" in decision.reason) == (calls < 3)
    assert (tier.root_call(model) is None) == (calls > 2), "once it has said so it is out of the way"
    assert calls < 3 or 0 < decision.figures["error_relative"] < 5e-2


def test_where_sizes_vary_what_would_be_done_is_a_graph_for_all(at_once):
    at_once("float32", decides_only=True)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).eval()
    with torch.inference_mode():
        for rows in (3, 4, 5, 6, 7):
            model(torch.randn(rows, 64))
    decision = {decision.what: decision for decision in log}["Sequential.graph: whole model"]
    assert decision.taken


def test_a_graph_that_would_be_refused_is_told_why(at_once):
    class Breaking(nn.Sequential):
        def forward(self, x):
            y = super().forward(x)
            return y if float(y.sum()) > 0 else -y

    model, x = Breaking(nn.Linear(64, 64)).eval(), torch.randn(4, 64)
    with torch.inference_mode():
        expected = model(x)
        at_once("bfloat16", decides_only=True)
        for _ in range(4):
            assert torch.equal(model(x), expected)
    decision = {decision.what: decision for decision in log}["Breaking.graph: whole model"]
    assert not decision.taken and decision.reason.startswith("not captured")
    assert tier.root_call(model) is None


def test_a_run_that_must_repeat_captures_at_its_third_call(engine):
    engine("float32", at_once=True)
    model, x = Noting().eval(), torch.randn(6, 64)
    with torch.inference_mode():
        for _ in range(8):
            model(x)
    root = tier.root_call(model)
    (way,) = root.ways
    assert list(way.won.values()) == [True]
    assert accounts.contents()["accounts"]["Noting.graph: whole model"]["calls"] >= 2


class Swapped(nn.Module):
    """A part whose forward is exchanged on the instance, as ultralytics' models do when they fuse their norms."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x):
        return self.layer(x)

    def another(self, x):
        return self.layer(x).relu()


def test_a_part_with_a_forward_of_its_own_that_was_called_alone_is_read_through(at_once):
    part = Swapped()
    part.forward = part.another
    model, x = nn.Sequential(part, nn.Linear(64, 8), nn.Flatten()).eval(), torch.randn(6, 64)
    with torch.inference_mode():
        wanted = model(x)
    at_once("float32")
    with torch.inference_mode():
        part(x)
    assert tier.root_call(part) is not None
    root = settle(model, x)
    (way,) = root.ways
    assert way.program.lowered.operators == 2
    with torch.inference_mode():
        torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)


class Backend:
    """Not a module, as those of detectors are not that serve several runtimes."""

    def __init__(self, model):
        self.model = model

    def forward(self, x):
        return self.model(x)


class Serving(nn.Module):
    """Holds its model where no module is looked for, and a layer of its own where they are."""

    def __init__(self, model, norm):
        super().__init__()
        self.backend, self.hidden, self.norm = Backend(model), [model], norm

    def forward(self, x):
        return self.hidden[0](self.norm(self.backend.forward(x)))


@pytest.mark.parametrize("norm", [nn.Identity(), nn.LayerNorm(64)], ids=["nothing of its own", "a layer of its own"])
def test_a_model_that_its_caller_hides_gets_the_graph(at_once, norm):
    at_once("float32")
    model, x = Noting().eval(), torch.randn(6, 64)
    serving = Serving(model, norm).eval()
    assert settle(serving, x) is None or isinstance(norm, nn.LayerNorm)
    root = tier.root_call(model)
    assert root.ways and root.account.calls
    with torch.inference_mode():
        assert error(serving(x), model._call_impl(norm(model._call_impl(x)))) < 1e-5


def test_random_numbers_are_the_scripts_while_a_capture_runs_beside(at_once):
    at_once("float32")
    model, x = Noting().eval(), torch.randn(6, 64)
    drawn = []
    torch.manual_seed(0)
    with torch.inference_mode():
        for _ in range(3):
            model(x)
        while background._running:
            drawn.append(torch.rand(3))
            model(x)
    assert drawn
    torch.manual_seed(0)
    assert torch.equal(torch.stack(drawn), torch.stack([torch.rand(3) for _ in drawn]))


def test_a_failure_of_ours_between_calls_is_not_the_scripts(at_once, monkeypatch):
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval(), torch.randn(2, 8)
    at_once("float32")
    monkeypatch.setattr(root_file.Schedule, "note", lambda *_: 1 / 0)
    with torch.inference_mode():
        for _ in range(4):
            assert model(x).shape == (2, 8)
    assert any("slipstream failed: ZeroDivisionError" in decision.reason for decision in log)

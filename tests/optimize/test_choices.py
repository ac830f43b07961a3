# SPDX-License-Identifier: Apache-2.0
"""What one process measured spares the next its trials: of speed alone, only what was clear, and never for good."""

import math
import random
import subprocess
import sys
import time

import pytest
import torch
from judging import LIMIT, decisions, error
from torch import nn

from slipstream import env
from slipstream.autopatch.settings import Settings
from slipstream.decision import log
from slipstream.optimize import choices, guards, leaf_tier, options
from slipstream.optimize.choices import Memory, as_text, is_believed
from slipstream.optimize.guards import SpeedGuard
from slipstream.runtime import choice_file
from slipstream.runtime.choice_file import Choice

NEVER_AGAIN = 10**12
NOW = 1_800_000_000.0
QUESTION = (("linear", (8, 8), torch.bfloat16), (torch.float32, 4), "", 1)


def memory(again=NEVER_AGAIN):
    return Memory(again)


def measured(speedup, rounds=4, guard=None, question=QUESTION, margin=1.0):
    """A guard of a process that finds this; it has closed its file, as a process that ends."""
    guard = guard or SpeedGuard(memory())
    for _ in range(rounds):
        guard.saw(question, False, (speedup, speedup), 1.0, margin)
        guard.saw(question, True, (1.0, 1.0), 1.0, margin)
    guard.clear()


def said():
    return next(decision for decision in log if decision.what == choices.WHAT)


@pytest.fixture(autouse=True)
def fresh(clean):
    return


@pytest.mark.parametrize(
    ("choice", "believed"),
    [
        (Choice("ours", 1.5, 1.0, 4, 1e-11, int(NOW)), True),
        (Choice("ours", 1.05, 1.0, 4, 1e-11, int(NOW)), False),
        (Choice("ours", 1.15, 1.1, 4, 1e-11, int(NOW)), False),
        (Choice("original", 0.8, 1.0, 4, 1e-11, int(NOW)), True),
        (Choice("original", 0.95, 1.0, 4, 1e-11, int(NOW)), False),
        (Choice("original", 1.5, 1.0, 4, 1e-11, int(NOW)), False),
        (Choice("ours", 1.5, 1.0, 4, 1e-11, int(NOW), contested=True), False),
        (Choice("ours", 1.5, 1.0, 4, 1e-11, int(NOW - choices.OLD_S) - 1), False),
        (Choice("ours", 1.5, 1.0, 4, 1e-11, int(NOW + choices.AHEAD_S) + 1), False),
        (Choice("ours", math.inf, 1.0, 4, 1e-11, int(NOW)), False),
        (Choice("ours", math.nan, 1.0, 4, 1e-11, int(NOW)), False),
        (Choice("original", -1.0, 1.0, 4, 1e-11, int(NOW)), False),
        (Choice("neither", 2.0, 1.0, 4, 1e-11, int(NOW)), False),
    ],
)
def test_what_is_believed(choice, believed):
    assert is_believed(choice, NOW) is believed


def test_questions_that_mean_nothing_elsewhere_have_no_text():
    assert as_text(QUESTION) == "(('linear' (8 8) bfloat16) (float32 4) '' 1)"
    assert as_text((1, object())) is None and as_text(nn.Linear) is None
    different = [(1,), ("1",), (None,), ("None",), (True,), ((1,),), (), (torch.float32,), ("float32",), (1, 1), ("1 1",)]
    assert len({as_text(question) for question in different}) == len(different)


def test_a_clear_choice_is_known_to_the_next_process_and_one_that_was_not_is_measured_again():
    measured(2.0)
    verdict = SpeedGuard(memory()).known(QUESTION)
    assert verdict is not None and verdict.fast and verdict.earlier and verdict.speedup_x == pytest.approx(2.0, rel=1e-3)
    assert said().taken and said().figures == {"read": 1, "used": 1, "measured": 0}
    measured(1.05)
    assert SpeedGuard(memory()).known(QUESTION) is None


def test_a_loss_is_remembered_as_well():
    measured(0.4)
    verdict = SpeedGuard(memory()).known(QUESTION)
    assert verdict is not None and not verdict.fast and verdict.earlier


def test_a_loss_that_no_kernel_can_have_made_is_measured_again():
    measured(0.04)
    assert SpeedGuard(memory()).known(QUESTION) is None


def test_what_the_original_takes_is_remembered_with_it():
    measured(2.0)
    guard = SpeedGuard(memory())
    guard.known(QUESTION)
    assert guard.expected_s(QUESTION, 3.0) == pytest.approx(6.0)


def test_one_in_so_many_is_measured_again_and_heals_once_two_agree():
    measured(2.0)
    again = SpeedGuard(memory(again=1))
    assert again.known(QUESTION) is None and again.known(QUESTION) is None
    measured(0.4, guard=again)
    assert SpeedGuard(memory()).known(QUESTION) is None, "measured twice, with two answers"
    measured(0.4)
    assert SpeedGuard(memory()).known(QUESTION).fast is False


def test_another_thread_count_or_matmul_precision_is_another_question():
    measured(2.0)
    torch.set_float32_matmul_precision("medium")
    try:
        assert SpeedGuard(memory()).known(QUESTION) is None
    finally:
        torch.set_float32_matmul_precision("highest")
    assert SpeedGuard(memory()).known((*QUESTION[:-1], 2)) is None


@pytest.mark.parametrize("name", ["cpu", "level", "torch", "slipstream", "native", "libraries", "malloc"])
def test_other_surroundings_know_nothing(monkeypatch, name):
    measured(2.0)
    other = {**choices.surroundings(), name: "another"}
    monkeypatch.setattr(choices, "surroundings", lambda: other)
    assert SpeedGuard(memory()).known(QUESTION) is None


def test_switched_off_nothing_is_kept_and_one_decision_says_so(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(env.CACHE, "off")
    guard = SpeedGuard(memory())
    assert guard.known(QUESTION) is None
    measured(2.0, guard=guard)
    assert list(tmp_path.iterdir()) == [] and not said().taken and env.CACHE in said().reason


def test_a_folder_that_cannot_be_is_one_decision_and_no_failure(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(env.CACHE, str(tmp_path / "file" / "cache"))
    guard = SpeedGuard(memory())
    for number in range(3):
        question = (*QUESTION, number)
        for fast in (False, True) * 4:
            guard.saw(question, fast, (1.0 if fast else 2.0,) * 2, 1.0)
        assert guard.known(question).fast
    assert not said().taken and "not kept" in said().reason


def test_no_room_on_the_disk_is_one_decision_and_no_failure(monkeypatch):
    monkeypatch.setattr(choice_file.os, "write", lambda file, content: 0)
    measured(2.0)
    assert not said().taken and "No space left" in said().reason


def test_a_folder_that_is_slow_is_written_to_at_the_end(monkeypatch):
    monkeypatch.setattr(choices, "SLOW_S", -1.0)
    kept = memory()
    for name in ("first", "second", "third"):
        kept.keep((name,), True, 2.0, 1.0, 2, 1e-11)
    assert len(kept._file.read()) == 1
    kept.flush()
    assert len(kept._file.read()) == 3


def test_the_scripts_random_numbers_are_its_own():
    before = random.getstate(), torch.get_rng_state()
    measured(2.0)
    SpeedGuard(memory()).known(QUESTION)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def start(**others):
    """The engine, with all the time it wants: what is tested is not the clock."""
    leaf_tier.install(Settings(dtype="bfloat16", **others))
    options.set_up.allowance.share = math.inf


@torch.no_grad()
def remembered_linear(monkeypatch, speedup, rows=5):
    """A model and an input, of whose layer an earlier process found this; and the engine as in a new process."""
    monkeypatch.setattr(guards, "SMALL_MACS", 0)
    monkeypatch.setattr(choices.memory, "again", NEVER_AGAIN)
    asked = []
    known = guards.speed.known
    model, x = nn.Linear(24, 16).eval(), torch.randn(rows, 24)
    with monkeypatch.context() as spied:
        spied.setattr(guards.speed, "known", lambda question: asked.append(question) or known(question))
        start()
        model(x)
    for fast in (False, True) * 6:
        guards.speed.saw(asked[0], fast, (1.0 if fast else speedup,) * 2, 1e15)  # beyond what the call itself took
    leaf_tier.uninstall()
    log.clear()
    return nn.Linear(24, 16).eval(), x


@torch.no_grad()
def test_a_win_of_an_earlier_process_answers_without_a_trial(monkeypatch):
    model, x = remembered_linear(monkeypatch, 2.0)
    start()
    monkeypatch.setattr(guards.speed, "saw", lambda *arguments: None)
    wanted = model.forward(x)
    answers = [model(x) for _ in range(3)]
    assert all(error(y, wanted) <= LIMIT["bfloat16"] for y in answers)
    assert list(decisions().values()) == ["bfloat16 weights, packed once, measured earlier"]
    assert said().figures["used"] == 1


@torch.no_grad()
def test_a_loss_of_an_earlier_process_leaves_the_layer_alone_at_once(monkeypatch):
    model, x = remembered_linear(monkeypatch, 0.4)
    start()
    assert torch.equal(model(x), model.forward(x))
    assert list(decisions().values()) == ["the original is faster here, measured earlier"]


@torch.no_grad()
def test_accuracy_is_seen_in_each_process(monkeypatch):
    model, x = remembered_linear(monkeypatch, 2.0)
    monkeypatch.setitem(guards.LIMITS, torch.bfloat16, 1e-9)
    start()
    assert all(torch.equal(model(x), model.forward(x)) for _ in range(3))
    assert list(decisions().values()) == ["not accurate enough on live data"]


@torch.no_grad()
def test_who_inspects_has_everything_measured(monkeypatch):
    model, x = remembered_linear(monkeypatch, 2.0)
    start(decides_only=True)
    model(x)
    assert all("earlier" not in reason for reason in decisions().values())
    assert said().figures["used"] == 0 and said().figures["measured"] == 1


def test_a_forked_child_leaves_its_parents_rows_to_the_parent():
    code = (
        "import os, time\nfrom slipstream.optimize import choices\nchoices.SLOW_S = -1.0\n"
        "for name in 'abc':\n    choices.memory.keep((name,), True, 2.0, 1.0, 2, 1e-11)\n"
        "child = os.fork()\nif child == 0:\n    raise SystemExit\nos.waitpid(child, 0)\n"
        "print(len(choices.memory._file.read()))\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("1\n", "")


SCRIPT = """
import torch
from slipstream.autopatch.settings import Settings
from slipstream.decision import log
from slipstream.optimize import choices, leaf_tier
torch.manual_seed(0)
torch.set_num_threads(1)
leaf_tier.install(Settings(dtype="float32"))
model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(4))).eval()
x = torch.randn(64, 256)
with torch.no_grad():
    for _ in range(12):
        y = model(x)
figures = {d.what: d.figures for d in log}.get(choices.WHAT, {"read": 0})
print(int(figures["read"]), float(y.double().sum()))
"""


def test_real_processes_hand_choices_on_and_answer_the_same(tmp_path):
    answers = []
    for _ in range(3):
        known = sum(choice_file.count(path) for path in choice_file.files(str(tmp_path / "cache")))
        done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        read, total = done.stdout.split()
        assert int(read) == known
        answers.append(float(total))
    assert answers == pytest.approx([answers[0]] * 3, rel=1e-4)


def test_what_is_written_says_when():
    measured(2.0)
    kept = memory()
    choice = kept.recall(QUESTION)
    assert choice is not None and abs(choice.at - time.time()) < 60

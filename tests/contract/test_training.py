# SPDX-License-Identifier: Apache-2.0
"""Training is plain to the last bit, before and after evaluations, whatever evaluations do."""

import pytest
import torch
from zoo import LIMIT, MODELS, NOT_COPYABLE, call, check_same, fresh, made, parts

TRAINABLE = [name for name in MODELS if name not in NOT_COPYABLE]


def step(model, inputs, seed):
    """One step of training; all parameters and buffers after it. A fused optimizer counts no versions."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    answer = parts(call(model, inputs, seed))[0]
    losses = [y.float().nan_to_num(0, 1, -1).square().mean() for y in answer if y.requires_grad]
    if losses:
        sum(losses).backward()
        optimizer.step()
    state = [value.detach().clone() for value in (*model.parameters(), *model.buffers())]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return [y.detach().clone() for y in answer], gradients, state


def evaluation(model, inputs):
    model.eval()
    with torch.no_grad():
        return call(model, inputs)


def epochs(model, inputs):
    """Train, evaluate, train, evaluate."""
    if hasattr(model, "seen"):
        model.seen.zero_()
    first = step(model, inputs, seed=5)
    middle = evaluation(model, inputs)
    return first, step(model, inputs, seed=6), middle, evaluation(model, inputs)


@pytest.mark.parametrize("name", TRAINABLE)
def test_training_steps_give_the_same_bits_and_evaluations_between_them_agree(engine, name):
    made(name)
    model, inputs = fresh(name)
    wanted = epochs(model, inputs)
    engine("float32")
    model, inputs = fresh(name)
    evaluation(model, inputs)
    if name == "counting":  # the extra evaluation is one of its calls
        model.calls, model.history = 0, []
    got = epochs(model, inputs)
    check_same(got[0], wanted[0], 0)
    check_same(got[1], wanted[1], 0)
    check_same(got[2:], wanted[2:], 3 * LIMIT["float32"])


@pytest.mark.parametrize("name", ["bert", "resnet", "gpt2", "lstm tagger", "unet", "mlp"])
def test_training_is_plain_also_when_evaluations_are_bfloat16(engine, name):
    model, inputs = fresh(name)
    wanted = step(model, inputs, seed=5)
    engine("bfloat16")
    model, inputs = fresh(name)
    evaluation(model, inputs)
    check_same(step(model, inputs, seed=5), wanted, 0)

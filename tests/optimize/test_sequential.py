# SPDX-License-Identifier: Apache-2.0
"""Rows in nn.Sequential are fused exactly where they are what the modules compute."""

import pytest
import torch
from judging import LIMIT, decisions, error
from torch import nn

from slipstream.autopatch.settings import Settings
from slipstream.optimize import leaf_tier
from slipstream.optimize.graph.schedule import SHORT_CALLS
from slipstream.optimize.pieces.piece import PATIENCE


def randomize(model):
    """Batch norms with statistics as after a training: fresh ones would hide a wrong fold."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 3.0)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


ROWS = {
    "conv1d": (lambda: [nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), nn.ReLU()], (2, 6, 17)),
    "conv2d": (lambda: [nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)], (2, 6, 9, 9)),
    "grouped": (lambda: [nn.Conv2d(6, 12, 3, groups=3), nn.BatchNorm2d(12, affine=False), nn.SiLU()], (2, 6, 9, 9)),
    "conv3d": (lambda: [nn.Conv3d(6, 8, 3), nn.BatchNorm3d(8), nn.Sigmoid()], (2, 6, 5, 6, 7)),
    "transposed": (lambda: [nn.ConvTranspose2d(6, 8, 3, groups=2), nn.BatchNorm2d(8)], (2, 6, 9, 9)),
    "hard": (lambda: [nn.Conv2d(6, 8, 3), nn.Hardswish(), nn.Conv2d(8, 4, 1), nn.LeakyReLU(0.2)], (2, 6, 9, 9)),
    "linear": (lambda: [nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4), nn.GELU("tanh")], (5, 3, 6)),
    "norm2": (lambda: [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()], (5, 6)),
    "norm3": (lambda: [nn.Linear(6, 8), nn.BatchNorm1d(3), nn.ReLU()], (5, 3, 6)),
    "norm3, as many features as rows": (lambda: [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()], (5, 8, 6)),
    "linear, 2d norm": (lambda: [nn.Linear(6, 8), nn.BatchNorm2d(3)], (5, 3, 4, 6)),
    "no statistics": (lambda: [nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)], (2, 6, 9, 9)),
    "norm first": (lambda: [nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)], (2, 6, 9, 9)),
    "dropout between": (lambda: [nn.Linear(6, 8), nn.Dropout(), nn.ReLU(), nn.Tanh()], (5, 6)),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_rows(engine, row, dtype):
    make, shape = ROWS[row]
    model = randomize(nn.Sequential(*make()))
    x = torch.randn(shape)
    wanted = model(x)
    engine(dtype)
    for _ in range(3):
        got = model(x)
        assert (got.dtype, got.shape, got.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
        assert error(got, wanted) < LIMIT[dtype]
    assert not any("slipstream failed" in reason for reason in decisions().values())


@torch.no_grad()
def test_a_row_is_one_piece_in_the_report(engine):
    model = randomize(nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    engine("float32")
    model(torch.randn(2, 6, 9, 9))
    assert list(decisions(taken=True)) == ["Sequential.0: prepacked convolution + BatchNorm2d + ReLU"]


def changes():
    def statistics(model):
        model[1].running_mean.add_(1.0)

    def epsilon(model):
        model[1].eps = 0.5

    def weight(model):
        model[0].weight.mul_(2.0)

    def affine(model):
        model[1].weight.mul_(-1.0)

    def training(model):
        model[1].train()

    def member(model):
        model[2] = nn.Sigmoid()

    def appended(model):
        model.append(nn.Tanh())

    def slope(model):
        model[2].negative_slope = 0.7

    def hook(model):
        model[0].register_forward_hook(lambda module, args, y: y * 3)

    def own_forward(model):
        model[2].forward = torch.cos

    return [statistics, epsilon, weight, affine, training, member, appended, slope, hook, own_forward]


@pytest.mark.parametrize("change", changes(), ids=lambda change: change.__name__)
@torch.no_grad()
def test_a_change_is_seen_by_the_next_call(engine, change):
    model = randomize(nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.LeakyReLU(0.1)))
    twin = randomize(nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.LeakyReLU(0.1)))
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 6, 9, 9)
    change(twin)
    wanted = twin(x)
    engine("float32")
    before = model(x)
    change(model)
    got = model(x)
    assert error(got, wanted) < 1e-5
    assert error(got, before) > 1e-3


@torch.no_grad()
def test_rows_that_never_win_cost_nothing_in_the_end(clean):
    leaf_tier.install(Settings(dtype="bfloat16"))
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4), nn.Tanh()).eval(), torch.randn(1, 8)
    for _ in range(PATIENCE + SHORT_CALLS):
        assert torch.equal(model(x), model[3].forward(model[2].forward(model[0].forward(x).relu())))
    assert [vars(module).get("_compiled_call_impl", 0) for module in (model, model[0], model[2])] == [None] * 3

# SPDX-License-Identifier: Apache-2.0
"""A weight that changes, by whatever means, is seen by the next call."""

import copy
import gc
import pickle

import pytest
import torch
from judging import decisions, error
from torch import nn
from torch.nn.utils import parametrizations, vector_to_parameters, weight_norm

from slipstream.autopatch.settings import Settings
from slipstream.optimize import leaf_tier, packs
from slipstream.optimize.options import set_up


def layer():
    return nn.Linear(24, 16).eval()


def in_place(model):
    model.weight.mul_(2)


def through_data(model):
    model.weight.data.mul_(2)


def through_detach(model):
    model.weight.detach().mul_(2)


def data_assigned(model):
    model.weight.data = model.weight.data * 2


def state_dict(model):
    model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()})


def state_dict_assigned(model):
    model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()}, assign=True)


def optimizer_step(model):
    for parameter in model.parameters():
        parameter.grad = -parameter.detach().clone()
    torch.optim.SGD(model.parameters(), lr=1.0).step()


def fused_step(model):
    for parameter in model.parameters():
        parameter.grad = -parameter.detach().clone()
    torch.optim.SGD(model.parameters(), lr=1.0, fused=True).step()  # counts no versions


def new_parameter(model):
    model.weight = nn.Parameter(model.weight * 2)


def from_a_vector(model):
    vector_to_parameters(torch.cat([2 * parameter.flatten() for parameter in model.parameters()]), model.parameters())


def initialized(model):
    nn.init.constant_(model.weight, 0.5)


def swapped(model):
    torch.utils.swap_tensors(model.weight, nn.Parameter(model.weight * 2))


def cast_and_back(model):
    model.weight.mul_(1.001)
    model.bfloat16().float()


MEANS = [
    in_place, through_data, through_detach, data_assigned, state_dict, state_dict_assigned, optimizer_step, fused_step,
    new_parameter, from_a_vector, initialized, swapped, cast_and_back,
]  # fmt: skip


@pytest.mark.parametrize("change", MEANS, ids=lambda change: change.__name__)
@torch.no_grad()
def test_the_next_call_sees_it(engine, change):
    engine("bfloat16")
    model, x = layer(), torch.randn(5, 24)
    for _ in range(3):
        model(x)
    for _ in range(2):
        change(model)
        assert error(model(x), nn.functional.linear(x, model.weight, model.bias)) < 1e-2
        assert error(model(x), nn.functional.linear(x, model.weight, model.bias)) < 1e-2


HARMLESS = {
    "to its own device": lambda model: model.to("cpu"),
    "to its own dtype": lambda model: model.float(),
    "cpu and eval": lambda model: model.cpu().eval(),
    "requires_grad_": lambda model: model.requires_grad_(False),
    "zero_grad": lambda model: model.zero_grad(),
    "state_dict": lambda model: model.state_dict(),
    "sizes and dtypes": lambda model: [(p.shape, p.dtype, p.device, p.numel()) for p in model.parameters()],
}
"""What scripts do before each call, and what changes no weight."""


@pytest.mark.parametrize("does", HARMLESS.values(), ids=HARMLESS)
@torch.no_grad()
def test_what_changes_nothing_costs_no_pack(engine, does):
    engine("bfloat16")
    model, x = layer(), torch.randn(5, 24)
    model(x)
    held = list(packs._packs.values())
    for _ in range(3):
        does(model)
        assert error(model(x), nn.functional.linear(x, model.weight, model.bias)) < 1e-2
    assert held and all(pack.valid for pack in held) and list(packs._packs.values()) == held


def test_a_step_retires_the_packs_of_its_own_parameters_and_no_others(engine):
    engine("float32")
    mine, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    mine.grad = torch.ones(3)
    optimizer = torch.optim.SGD([mine], lr=1.0, fused=True)
    packed = [packs.make("test", lambda: (None, 0), parameter) for parameter in (mine, other)]
    for _ in range(2):
        optimizer.step()
        assert [pack.valid for pack in packed] == [False, True]
        packed[0] = packs.make("test", lambda: (None, 0), mine)
        assert packed[0].fits((mine,))


def test_a_step_while_weights_are_being_packed_makes_a_pack_that_does_not_fit(engine):
    engine("float32")
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)

    def build():
        optimizer.step()
        return None, 0

    assert not packs.make("test", build, weight).fits((weight,))
    assert packs.make("test", lambda: (None, 0), weight).fits((weight,))


@torch.no_grad()
def test_an_alias_of_the_data_that_is_held(engine):
    engine("bfloat16")
    model, x = layer(), torch.randn(5, 24)
    view = model.weight.data.view(-1)[:200]
    for factor in (2.0, -1.0, 3.0):
        model(x)
        view.mul_(factor)
        assert torch.equal(model(x), nn.functional.linear(x, model.weight, model.bias))
    assert "holds weight.data" in " ".join(decisions(taken=False).values())
    del view
    model(x)
    assert not torch.equal(model(x), nn.functional.linear(x, model.weight, model.bias))  # packed in bfloat16 again


@torch.no_grad()
def test_tied_weights_share_a_pack_also_with_two_biases(engine):
    engine("bfloat16")
    first, second, x = layer(), layer(), torch.randn(5, 24)
    second.weight = first.weight
    before = set_up.packed_bytes
    for _ in range(3):
        first(x), second(x)
    assert set_up.packed_bytes - before <= 32 * 32 * 2 + 32 * 4  # in float16 each column has a scale
    assert error(second(x), nn.functional.linear(x, first.weight, second.bias)) < 1e-2


@torch.no_grad()
def test_weight_norm_and_parametrizations_keep_working(engine):
    engine("bfloat16")
    for wrap in (parametrizations.weight_norm, parametrizations.spectral_norm):
        model, x = wrap(layer()), torch.randn(5, 24)
        for _ in range(4):
            model.parametrizations.weight.original0.mul_(1.5) if wrap is parametrizations.weight_norm else None
            assert torch.equal(model(x), nn.functional.linear(x, model.weight, model.bias))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_old_weight_norm_keeps_working(engine):
    engine("bfloat16")
    model, x = weight_norm(layer()), torch.randn(5, 24)
    for _ in range(4):
        model.weight_g.mul_(1.5)
        y = model(x)
        assert torch.equal(y, nn.functional.linear(x, model.weight, model.bias))


@torch.no_grad()
def test_weights_that_change_on_each_call_are_no_longer_packed(engine):
    engine("bfloat16")
    model, x = layer(), torch.randn(5, 24)
    for _ in range(12):
        model.weight.mul_(1.1)
        assert error(model(x), nn.functional.linear(x, model.weight, model.bias)) < 1e-2
    assert "too often" in " ".join(decisions(taken=False).values())


@torch.no_grad()
def test_layers_made_for_one_call_stop_being_packed(engine):
    engine("bfloat16")
    x = torch.randn(5, 24)
    exact = [torch.equal(model(x), nn.functional.linear(x, model.weight, model.bias)) for model in map(_new, range(8))]
    assert exact[:2] == [False, False]
    assert all(exact[3:])


def _new(_):
    return layer()


@torch.no_grad()
def test_packs_go_with_their_weights(engine):
    engine("bfloat16")
    model, x = layer(), torch.randn(5, 24)
    model(x)
    assert set_up.packed_bytes > 0
    del model
    gc.collect()
    assert set_up.packed_bytes == 0
    assert not packs._packs and not packs._by_tensor


@torch.no_grad()
def test_a_copy_answers_with_its_own_weights(engine):
    engine("bfloat16")
    model, x = layer(), torch.randn(5, 24)
    model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)):
        assert "_compiled_call_impl" not in vars(other)
    other = copy.deepcopy(model)
    other.weight.zero_()
    assert error(other(x), other.bias.expand(5, 16)) < 1e-2
    assert error(model(x), nn.functional.linear(x, model.weight, model.bias)) < 1e-2


def test_inference_parameters_are_left_alone(engine):
    engine("bfloat16")
    with torch.inference_mode():
        model, x = layer(), torch.randn(5, 24)
        for _ in range(3):
            assert torch.equal(model(x), nn.functional.linear(x, model.weight, model.bias))
            model.weight.mul_(2)
    assert "inference mode" in " ".join(decisions(taken=False).values())


@torch.no_grad()
def test_a_parametrized_layer_answers_while_set_up_waits(clean):
    """Wav2Vec2's convolution over positions: no parameter of it is called weight, and nothing is earned for set-up yet."""

    class Calling(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = parametrizations.weight_norm(nn.Conv1d(64, 64, 5))

        def forward(self, x):
            return self.layer(x)

    leaf_tier.install(Settings())
    model, x = Calling().eval(), torch.randn(2, 64, 100)
    for _ in range(3):
        assert torch.equal(model(x), model.layer._call_impl(x))

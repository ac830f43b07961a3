# SPDX-License-Identifier: Apache-2.0
"""The zoo's models take the inputs that are drawn for them; those written here compute what their papers say."""

import inspect

import pytest
import torch

from benchmarks.contest import dlrm, models
from benchmarks.contest.unet import UNet


@pytest.mark.parametrize("name", models.CASES)
def test_a_model_names_every_input_that_is_drawn_for_it(name):
    """On the meta device, where nothing is computed."""
    with torch.device("meta"):
        model, inputs = models.build(name)
    assert not model.training
    assert inputs and all(isinstance(value, torch.Tensor) for value in inputs.values())
    assert set(inputs) <= set(inspect.signature(model.forward).parameters)


def test_no_batch_norm_keeps_statistics_that_would_hide_a_wrong_folding():
    model, _ = models.build("unet")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean.abs().max() > 0 and (module.running_var - 1).abs().max() > 0


def test_each_u_net_level_sees_what_was_skipped():
    torch.manual_seed(0)
    model = UNet(width=2).eval()
    image = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        whole = model(image)
        assert whole.shape == (1, 1, 32, 48) and whole.min() > 0 and whole.max() < 1
        for block in model.join:
            weight = block[0].weight
            weight[:, weight.shape[1] // 2 :] *= 2  # what comes over the bridge, not from below
            assert not torch.equal(model(image), whole)
            weight[:, weight.shape[1] // 2 :] /= 2


def test_dlrm_pairs_every_vector_with_every_other_once():
    torch.manual_seed(0)
    model = dlrm.DLRM(rows=50, width=16).eval()
    inputs = dlrm.draw(4, rows=50)
    seen = []
    model.top[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        model(**inputs)
        dense = model.bottom(inputs["numbers"])
        vectors = [dense]
        for bag, indices, offsets in zip(model.bags, inputs["indices"], inputs["offsets"], strict=True):
            ends = [*offsets[1:].tolist(), len(indices)]
            rows = [bag.weight[indices[begin:end]].sum(0) for begin, end in zip(offsets.tolist(), ends, strict=True)]
            vectors.append(torch.stack(rows))
        products = [(vectors[i] * vectors[j]).sum(1) for i in range(27) for j in range(i)]
    torch.testing.assert_close(seen[0], torch.cat([dense, torch.stack(products, dim=1)], dim=1), rtol=1e-4, atol=1e-4)

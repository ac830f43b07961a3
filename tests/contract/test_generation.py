# SPDX-License-Identifier: Apache-2.0
"""`generate()` in float32 gives the same tokens: greedy, sampled with a seed, and by beams."""

import pytest
import torch
from judging import decisions
from zoo import GENERATORS, made

from slipstream.kernels import native

WAYS = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 1.3, "top_k": 20},
    "beams": {"num_beams": 3, "do_sample": False},
    "sampled beams": {"num_beams": 2, "do_sample": True},
}


def tokens(model, inputs):
    given = {name: value for name, value in inputs.items() if not name.startswith("decoder")}
    found = {}
    for way, flags in WAYS.items():
        torch.manual_seed(3)
        result = model.generate(
            **given, **flags, max_new_tokens=8, min_new_tokens=8, return_dict_in_generate=True, output_scores=True
        )
        found[way] = result.sequences, torch.get_rng_state()
    return found


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_generation_gives_the_same_tokens(engine, name):
    model, inputs = made(name)
    wanted = tokens(model, inputs)
    engine("float32")
    for _ in range(2):
        got = tokens(model, inputs)
        for way in WAYS:
            assert torch.equal(got[way][0], wanted[way][0]), way
            assert torch.equal(got[way][1], wanted[way][1]), way
    assert decisions(taken=True) or not native.available()
    assert not any("failed" in reason for reason in decisions().values())

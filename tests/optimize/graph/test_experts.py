# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts: groups of rows are multiplied by packed weights, whatever rows each gets, in models of transformers."""

import pytest
import torch
import transformers
from torch import nn

from slipstream.optimize.graph.experts.grouped_linear import GroupedLinear
from tests.optimize.graph.conftest import needs_native, settle
from tests.optimize.judging import LIMIT, error

SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 99, "intermediate_size": 96}


def mixtral():
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4))


def qwen():
    config = transformers.Qwen3MoeConfig(**SMALL, num_key_value_heads=2, num_experts=8, moe_intermediate_size=32, head_dim=16)
    return transformers.Qwen3MoeForCausalLM(config)


def gpt_oss():
    config = transformers.GptOssConfig(**SMALL, num_key_value_heads=2, num_local_experts=4, head_dim=16)
    return transformers.GptOssForCausalLM(config)


def answers(model, tokens):
    with torch.inference_mode():
        return model(tokens, use_cache=False).logits


@needs_native
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("build", [mixtral, qwen, gpt_oss])
def test_models_of_transformers(at_once, build, dtype):
    torch.manual_seed(0)
    model = build().eval()
    inputs = [torch.randint(5, 99, (2, 24)) for _ in range(3)]
    wanted = [answers(model, tokens) for tokens in inputs]
    at_once(dtype)
    root = settle(model, inputs[0], use_cache=False)
    (way,) = root.ways
    assert sum(isinstance(node.target, GroupedLinear) for node in way.program.lowered.fast.graph.nodes) == 2
    # where two experts are nearly as good as each other, rounding may choose the other one: most tokens are as they were
    for tokens, right in zip(inputs, wanted, strict=True):
        rows = zip(answers(model, tokens).flatten(0, 1), right.flatten(0, 1), strict=True)
        assert sum(error(got, one) < LIMIT[dtype] for got, one in rows) >= 44
    assert root.account.calls


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ends", [(3, 3, 9, 10), (0, 0, 0, 0), (0, 0, 0, 10), (2, 5, 5, 7), (10, 10, 10, 10)])
def test_rows_of_each_group(dtype, ends, transposed):
    torch.manual_seed(0)
    weight, x = nn.Parameter(torch.randn(4, 24, 40)), torch.randn(10, 40)
    given = nn.Parameter(weight.detach().transpose(1, 2).contiguous()) if transposed else weight
    operator = GroupedLinear(dtype, torch.float32, 2, transposed=transposed)
    wanted, begin = torch.zeros(10, 24), 0
    for end, matrix in zip(ends, weight.detach(), strict=True):
        wanted[begin:end] = x[begin:end] @ matrix.t()
        begin = end
    with torch.no_grad():
        got = operator(x, None, torch.tensor(ends, dtype=torch.int32), given)
        answer, _ = operator.settle((given,))
        assert torch.equal(answer(x, None, torch.tensor(ends), given), got)
    assert got.shape == wanted.shape and got.dtype == torch.float32
    assert error(got, wanted) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_no_rows_and_a_changed_weight():
    weight = nn.Parameter(torch.randn(3, 8, 16))
    operator = GroupedLinear(torch.float32, torch.float32, 1, transposed=False)
    with torch.no_grad():
        assert operator(torch.empty(0, 16), None, torch.zeros(3, dtype=torch.int32), weight).shape == (0, 8)
        x, ends = torch.randn(4, 16), torch.tensor([1, 1, 4])
        before = operator(x, None, ends, weight)
        weight.mul_(2)
        torch.testing.assert_close(operator(x, None, ends, weight), before * 2)

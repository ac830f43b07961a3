# SPDX-License-Identifier: Apache-2.0
"""Every operator gives the dtype that was chosen for it, and products get two operands of one."""

import pytest
import torch
from torch import fx, nn

from slipstream.optimize.graph.capturing.capture import capture
from slipstream.optimize.graph.lower import lower
from slipstream.optimize.graph.operators.operator import Operator
from slipstream.optimize.options import Options
from tests.optimize.graph.conftest import needs_native
from tests.optimize.graph.models import CASES

pytestmark = [needs_native, pytest.mark.filterwarnings("ignore")]


class Watching(fx.Interpreter):
    def __init__(self, module):
        super().__init__(module)
        self.given: dict[Operator, torch.dtype] = {}

    def run_node(self, n):
        result = super().run_node(n)
        if isinstance(n.target, Operator) and isinstance(result, torch.Tensor):
            self.given[n.target] = result.dtype
        return result


def watched(model, args):
    with torch.inference_mode():
        captured = capture(model, args, {}, dynamic=False)
        lowered = lower(captured.graph, captured.inputs, Options(torch.bfloat16), captured.own)
        watching = Watching(lowered.fast)
        watching.run(*captured.inputs)
    return watching.given


@pytest.mark.parametrize("case", CASES)
def test_operators_give_the_dtype_that_was_chosen(case):
    model, args = CASES[case]()
    given = watched(model.eval(), args)
    others = {operator.__name__: dtype for operator, dtype in given.items() if not operator.follows and dtype != operator.out}
    assert not others


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 64)
        self.weight = nn.Parameter(torch.randn(1, 64, 32))

    def forward(self, x):
        y = self.norm(self.first(x)).unflatten(-1, (4, -1)).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(y, y, y).transpose(1, 2).flatten(2)
        pooled = self.norm(self.last(y) + x)[:, 0]
        return torch.relu(torch.matmul(pooled[:, None], self.weight))


def test_norms_and_attention_are_bfloat16_between_products():
    given = watched(Transformer().eval(), (torch.randn(3, 8, 64),))
    kinds = {operator.kind: dtype for operator, dtype in given.items()}
    assert kinds["layer_norm"] == kinds["attention"] == torch.bfloat16


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv3d(4, 8, 3, padding=1), nn.Conv3d(8, 4, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.last(nn.functional.avg_pool3d(self.first(x), 2)))


def test_pools_that_torch_has_in_float32_only_stay_there():
    assert watched(Pooled().eval(), (torch.randn(2, 4, 8, 8, 8),))

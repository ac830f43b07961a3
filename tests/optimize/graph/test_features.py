# SPDX-License-Identifier: Apache-2.0
"""Features that are looked up, picked and put side by side are as the script has them, also from tables held in bfloat16."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slipstream.decision import log
from slipstream.kernels.concatenate import Kind
from slipstream.optimize.graph.features import concatenation
from slipstream.optimize.graph.features.concatenation import Concatenation, column_numbers
from tests.optimize.graph.conftest import needs_native, settle
from tests.optimize.judging import LIMIT, error

pytestmark = needs_native

FEATURES, WIDTH = 4, 24


class Bags(nn.Module):
    """As DLRM: bags stacked behind what a layer makes, their products with each other, and picked pairs of those."""

    def __init__(self, mode="sum", flat=False):
        super().__init__()
        self.dense = nn.Linear(13, WIDTH)
        self.bags = nn.ModuleList(nn.EmbeddingBag(50, WIDTH, mode=mode) for _ in range(FEATURES))
        self.register_buffer("pairs", torch.tril_indices(FEATURES + 1, FEATURES + 1, offset=-1), persistent=False)
        self.head = nn.Linear(WIDTH + FEATURES * (FEATURES + 1) // 2, 3)
        self.flat = flat

    def forward(self, numbers, indices, offsets):
        dense = self.dense(numbers).relu()
        all_of_them = [dense, *(bag(indices[at], offsets[at]) for at, bag in enumerate(self.bags))]
        if self.flat:
            vectors = torch.cat(all_of_them, dim=1).view(numbers.shape[0], -1, WIDTH)
        else:
            vectors = torch.stack(all_of_them, dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        return self.head(torch.cat((dense, products[:, self.pairs[0], self.pairs[1]]), dim=1))


class Columns(nn.Module):
    """As DeepFM and Wide & Deep: a table for each column of a matrix of categories, also over sequences."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20 + at, 8 + at, padding_idx=0) for at in range(FEATURES))
        self.head = nn.Linear(sum(8 + at for at in range(FEATURES)) + 5, 6)

    def forward(self, numbers, categories):
        looked_up = [table(categories[..., at]) for at, table in enumerate(self.tables)]
        return self.head(torch.cat([*looked_up, numbers], -1))


class Shared(nn.Module):
    """What is looked up has a second reader; a table comes twice; what is picked stands alone, from the end."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(30, 16), nn.Linear(32, 16)
        self.register_buffer("order", torch.tensor([-1, 0, 3, 3, -16]))

    def forward(self, categories):
        first, second = self.table(categories[:, 0]), self.table(categories[:, 1])
        y = self.head(torch.cat((first, second), dim=1)) + first
        return y[:, self.order]


def bags_inputs(batch, entries=60):
    offsets = torch.randint(0, entries, (FEATURES, batch)).sort(dim=1).values
    offsets[:, 0] = 0
    return torch.rand(batch, 13), torch.randint(0, 50, (FEATURES, entries)), offsets


def shake_tables(model):
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            nn.init.normal_(module.weight)
    return model.eval()


MODELS = {
    "bags": (Bags, bags_inputs),
    "means of bags, flat": (lambda: Bags("mean", flat=True), bags_inputs),
    "columns": (Columns, lambda n: (torch.randn(n, 5), torch.randint(0, 20, (n, FEATURES)))),
    "sequences": (Columns, lambda n: (torch.randn(n, 3, 5), torch.randint(0, 20, (n, 3, FEATURES)))),
    "shared": (Shared, lambda n: (torch.randint(0, 30, (n, 2)),)),
}
KINDS = {
    "bags": [[Kind.ROWS, *[Kind.BAG_SUM] * FEATURES], [Kind.ROWS, Kind.PICKED]],
    "means of bags, flat": [[Kind.ROWS, *[Kind.BAG_MEAN] * FEATURES], [Kind.ROWS, Kind.PICKED]],
    "columns": [[*[Kind.EMBEDDING] * FEATURES, Kind.ROWS]],
    "sequences": [[*[Kind.EMBEDDING] * FEATURES, Kind.ROWS]],
    "shared": [[Kind.ROWS, Kind.EMBEDDING], [Kind.PICKED]],
}


def operators_of(root):
    return [node.target for node in root.ways[0].program.lowered.fast.graph.nodes if isinstance(node.target, Concatenation)]


def answer(model, given):
    with torch.inference_mode():
        return model(*given)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_features_are_as_before(at_once, name, dtype):
    build, draw = MODELS[name]
    model, inputs = shake_tables(build()), draw(9)
    expected = [(given, answer(model, given)) for given in (inputs, draw(1), draw(33))]
    at_once(dtype)
    root = settle(model, *inputs)
    assert [list(operator.kinds) for operator in operators_of(root)] == KINDS[name]
    for given, wanted in expected:
        for _ in range(3):
            assert error(answer(model, given), wanted) <= LIMIT[dtype]


def test_tables_are_held_short_where_the_result_is(at_once):
    model, inputs = shake_tables(Bags()), bags_inputs(9)
    at_once("bfloat16")
    looked_up, picked = operators_of(settle(model, *inputs))
    assert looked_up.out is picked.out is torch.bfloat16 and picked.pack is None
    assert [table.dtype for table in looked_up.pack.content] == [torch.bfloat16] * FEATURES
    assert looked_up.pack.life.bytes == FEATURES * 50 * WIDTH * 2


def test_a_table_is_seen_changing(at_once):
    model, inputs = shake_tables(Bags()), bags_inputs(9)
    before = answer(model, inputs)
    at_once("bfloat16")
    root = settle(model, *inputs)
    with torch.no_grad():
        model.bags[2].weight.mul_(-3)
    after = answer(model, inputs)
    twin = Bags().eval()
    twin.load_state_dict(model.state_dict())
    wanted = twin.forward(*inputs)
    assert operators_of(root) and error(after, wanted) <= LIMIT["bfloat16"] < error(before, wanted)


@pytest.mark.parametrize("available, fits", [(4 * FEATURES * 50 * WIDTH * 2, True), (4 * FEATURES * 50 * WIDTH * 2 - 8, False)])
def test_copies_take_a_quarter_of_what_is_available_at_most(at_once, monkeypatch, available, fits):
    monkeypatch.setattr(concatenation, "available_bytes", lambda: available)
    model, inputs = shake_tables(Bags()), bags_inputs(9)
    expected = answer(model, inputs)
    at_once("bfloat16")
    looked_up, _ = operators_of(settle(model, *inputs))
    assert (looked_up.pack is not None) is fits
    assert error(answer(model, inputs), expected) <= LIMIT["bfloat16"]
    decision = next(d for d in log if d.what == f"{FEATURES} embedding tables in bfloat16")
    assert decision.taken is fits and "a quarter" in decision.reason


def test_low_memory_copies_no_table(at_once):
    model, inputs = shake_tables(Columns()), (torch.randn(9, 5), torch.randint(0, 20, (9, FEATURES)))
    expected = answer(model, inputs)
    at_once("bfloat16", low_memory=True)
    root = settle(model, *inputs)
    assert all(operator.pack is None for way in root.ways for operator in operators_of(root) if way)
    assert error(answer(model, inputs), expected) <= LIMIT["bfloat16"]


def test_numbers_out_of_range_raise_what_torch_raises_and_the_graph_goes_on(at_once):
    model, inputs = shake_tables(Bags()), bags_inputs(9)
    wrong = [inputs[0], inputs[1].clone(), inputs[2]]
    wrong[1][1, 7] = 50
    with pytest.raises(RuntimeError) as plain:
        answer(model, wrong)
    at_once("bfloat16")
    root = settle(model, *inputs)
    for _ in range(2):
        with pytest.raises(RuntimeError) as ours:
            answer(model, wrong)
        assert str(ours.value) == str(plain.value)
    assert root.ways[0].program.broken is None


@pytest.mark.parametrize("change", [
    {"mode": "max"}, {"padding_idx": 3}, {"max_norm": 1.0}, {"include_last_offset": True}, {"per_sample_weights": True},
])  # fmt: skip
def test_other_bags_stay_torchs(at_once, change):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Parameter(torch.randn(50, 16)), nn.Linear(32, 8)

        def forward(self, x, index, offsets, scales):
            options = {**change, "per_sample_weights": scales} if "per_sample_weights" in change else change
            bags = F.embedding_bag(index, self.table, offsets, **{"mode": "sum", **options})
            return self.head(torch.cat((x[: len(bags)], bags), dim=1))

    model = Other().eval()
    inputs = torch.randn(9, 16), torch.randint(0, 50, (40,)), torch.arange(0, 36, 4), torch.rand(40)
    expected = answer(model, inputs)
    at_once("float32")
    assert not operators_of(settle(model, *inputs))
    assert error(answer(model, inputs), expected) <= LIMIT["float32"]


def test_an_empty_batch_has_an_empty_answer():
    none, table = torch.zeros(0, dtype=torch.long), torch.randn(7, 8)
    bags = Concatenation(torch.float32, torch.float32, [Kind.ROWS, Kind.BAG_SUM], stacked=True)
    assert bags(torch.zeros(0, 8), none, none, table).shape == (0, 2, 8)
    flat = Concatenation(torch.float32, torch.float32, [Kind.EMBEDDING, Kind.ROWS], stacked=False)
    assert flat(none.view(0, 3), torch.zeros(0, 3, 5), table).shape == (0, 3, 13)
    picked = Concatenation(torch.float32, torch.float32, [Kind.PICKED], stacked=False)
    assert picked(torch.zeros(0, 3, 4), torch.tensor([1, 11], dtype=torch.int32)).shape == (0, 2)


def test_column_numbers_are_torchs_own():
    x = torch.randn(2, 3, 4, 5)
    indices = [torch.tensor([0, -1, 2]), torch.tensor([3, -4, 1]), torch.tensor([-5, 4, 0])]
    picked = x.flatten(1)[:, column_numbers((3, 4, 5), *indices).long()]
    assert torch.equal(picked, x[:, indices[0], indices[1], indices[2]])
    for wrong in (3, -4):
        with pytest.raises(IndexError, match="size 3"):
            column_numbers((3,), torch.tensor([0, wrong]))

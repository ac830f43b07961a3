# SPDX-License-Identifier: Apache-2.0
"""More of what scripts do beside computing: what they draw, hand on, and call with other arguments."""

import collections
import dataclasses
import enum
import itertools
import math
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.optimize.graph.meanings import CALLS, batch, given, meaning, repeated, without_graph

# What is drawn --------------------------------------------------------------------------------------------


@without_graph
def numbers_of_python(call):
    return repeated(call, given(lambda self, x: self.layers(x) * random.random())), random.random()


@without_graph
def numbers_of_numpy(call):
    model = given(lambda self, x: self.layers(x) + torch.from_numpy(np.random.rand(16)).float())
    return repeated(call, model), np.random.rand()


@without_graph
def numbers_of_a_generator(call):
    generator = torch.Generator().manual_seed(3)
    model = given(lambda self, x: self.layers(x) + torch.rand(16, generator=generator))
    return repeated(call, model), torch.rand(2, generator=generator)


# What is handed on ----------------------------------------------------------------------------------------


@meaning
def its_input_and_its_weight(call):
    model, x = given(lambda self, x: (x, self.layers(x), x, self.layers[0][0].weight)), batch()
    return [y[0] is x and y[2] is x and y[3] is model.layers[0][0].weight for y in (call(model, x) for _ in range(CALLS))]


@meaning
def one_thing_twice(call):
    def forward(self, x):
        y = self.layers(x)
        return [y, y, {"again": y}]

    return [y[0] is y[1] and y[2]["again"] is y[0] for y in repeated(call, given(forward))]


@meaning
def views_of_one_another(call):
    def forward(self, x):
        y = self.layers(x)
        return y, y[:, :5], y.t()

    return [len({part.data_ptr() for part in y}) for y in repeated(call, given(forward))]


@meaning
def constants_that_the_script_changes(call):
    constants = []
    for y in repeated(call, given(lambda self, x: (self.layers(x), torch.arange(4), torch.zeros(3)))):
        constants.append([part.clone() for part in y[1:]])
        y[1].add_(1), y[2].fill_(5)
    return constants


@meaning
def a_buffers_rows_that_the_script_changes(call):
    model = given(lambda self, x: (self.layers(x) + self.table[: x.shape[0]], self.table[: x.shape[0]]))
    model.register_buffer("table", torch.arange(8.0).reshape(8, 1).repeat(1, 16))
    answers = []
    for number in range(CALLS):
        y, rows = call(model, batch(number))
        answers.append(y.clone())
        rows.add_(1)
    return answers, model.table


@meaning
def answers_that_are_kept(call):
    return repeated(call, given(lambda self, x: self.layers(x)))


Pair = collections.namedtuple("Pair", "first second")
Mode = enum.Enum("Mode", "SUM MEAN")


@dataclasses.dataclass
class Result:
    value: torch.Tensor
    rows: int


@meaning
def forms_of_its_own(call):
    def forward(self, pair, mode):
        return Pair(self.layers(pair.first), mode), Result(pair.second * mode.value, pair.first.shape[0])

    model = given(forward)
    found = [call(model, Pair(batch(), batch(1)), list(Mode)[number % 2]) for number in range(CALLS)]
    return [(type(y[0]).__name__, y[0].first, y[0].second, type(y[1]).__name__, y[1].value, y[1].rows) for y in found]


@without_graph
def numbers_of_a_type(call):
    model = given(lambda self, x: (self.layers(x), np.float64(2) * np.sqrt(x.shape[0])))
    return [(type(y[1]), y[1]) for y in repeated(call, model)]


# What is called otherwise ---------------------------------------------------------------------------------


@meaning
def arguments_of_many_kinds(call):
    def forward(self, *parts, scale=1, **others):
        return sum(self.layers(part) for part in parts) * scale + sum(others.values())

    model, kinds = given(forward), [{}, {"scale": 2}, {"shift": 3, "more": 1}]
    return [call(model, *[batch(number)] * (1 + number % 3), **kinds[number % 3]) for number in range(2 * CALLS)]


@without_graph
def numbers_that_vary(call):
    model = given(lambda self, x, t, k: self.layers(x[:k]).repeat(k % 3 + 1, 1) * math.sin(t))
    return [call(model, batch(number), number * 0.1, 1 + number % 4) for number in range(2 * CALLS)]


@meaning
def sizes_that_vary(call):
    model = given(lambda self, x: self.layers(x) * (x.shape[0] ** 0.5) + int(x.shape[0] / 3))
    return [call(model, torch.full((rows, 16), 0.1)) for rows in (4, 5, 0, 1, 7, 4, 2, 1, 0, 9)]


@without_graph
def an_iterator_that_is_used_up(call):
    model, answers = given(lambda self, parts: self.layers(next(parts))), []
    for number in range(CALLS):
        parts = iter([batch(number), batch(number + 1)])
        answers.append((call(model, parts), len(list(parts))))
    return answers


@meaning
def layers_that_come_and_go(call):
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    model = given(forward)
    changes = {2: lambda: model.layers.append(nn.Linear(16, 16)), 4: lambda: model.layers.__delitem__(0)}
    torch.manual_seed(2)
    return repeated(call, model, lambda number: changes.get(number, int)())


@meaning
def a_function_among_its_attributes(call):
    model = given(lambda self, x: self.bent(self.layers(x)), bent=lambda x: x * 2)
    return repeated(call, model, lambda number: setattr(model, "bent", F.softplus) if number == 3 else None)


@meaning
def a_loop_that_values_end(call):
    def forward(self, x):
        rounds = itertools.count()
        while x.abs().max() > 1:
            x, done = self.layers(x) * 0.5, next(rounds)
        return x, done

    return repeated(call, given(forward))

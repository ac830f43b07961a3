# SPDX-License-Identifier: Apache-2.0
"""What scripts do beside computing, each in a model of its own: keep state, read what others set, change what is called.

A case is given ``call``, calls models by it, and returns what the script has then: it has to be the same with graphs.
"""

import collections
import contextvars
import os
import threading
import time
import weakref

import numpy as np
import torch
from torch import nn

MEANINGS = {}
WITHOUT_GRAPH = set()
"""Those whose whole is no graph, or one that never answers because each call is another: graphs are of their parts."""

CALLS = 6


def meaning(function):
    MEANINGS[function.__name__.replace("_", " ")] = function
    return function


def without_graph(function):
    WITHOUT_GRAPH.add(function.__name__.replace("_", " "))
    return meaning(function)


def given(forward, **attributes):
    """A model with this forward and a few layers."""
    model = type("Given", (nn.Module,), {"forward": forward})()
    model.layers = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(3)))
    for name, value in attributes.items():
        setattr(model, name, value)
    return model.eval()


def batch(number=0):
    return torch.randn(4, 16, generator=torch.Generator().manual_seed(number))


def repeated(call, model, after=None, calls=CALLS):
    """Answers of some calls; ``after`` is what the script does behind each."""
    answers = []
    for number in range(calls):
        answers.append(call(model, batch(number)))
        if after is not None:
            after(number)
    return answers


# What a forward keeps -------------------------------------------------------------------------------------


@meaning
def a_class_attribute(call):
    def forward(self, x):
        type(self).mean = self.layers(x).mean()
        return self.layers(x)

    model = given(forward)
    return repeated(call, model), model.mean


KEPT = {}


@meaning
def a_dictionary_of_the_file(call):
    def forward(self, x):
        KEPT["last"] = y = self.layers(x)
        return y + 1

    model = given(forward)
    return [torch.equal(call(model, batch(number)), KEPT["last"] + 1) for number in range(CALLS)]


@meaning
def a_counter_of_a_part(call):
    def part_forward(self, x):
        self.calls += 1
        return self.layers(x) + self.calls

    part = given(part_forward, calls=0)
    return repeated(call, given(lambda self, x: self.part(self.part(self.layers(x))), part=part)), part.calls


@without_graph
def a_buffer_that_moves(call):
    def forward(self, x):
        y = self.layers(x)
        self.mean.mul_(0.9).add_(y.mean(0), alpha=0.1)
        return y - self.mean

    model = given(forward)
    model.register_buffer("mean", torch.zeros(16))
    return repeated(call, model), model.mean


@meaning
def a_buffer_that_is_assigned(call):
    def forward(self, x):
        y = self.layers(x)
        self.mean = self.mean * 0.9 + y.mean(0) * 0.1
        return y - self.mean

    model = given(forward)
    model.register_buffer("mean", torch.zeros(16))
    return repeated(call, model), model.mean, list(model.state_dict())


@without_graph
def a_deque_of_the_last_answers(call):
    def forward(self, x):
        y = self.layers(x)
        self.recent.append(y.mean(0))
        return y + sum(self.recent)

    model = given(forward, recent=collections.deque(maxlen=2))
    return repeated(call, model), len(model.recent)


@meaning
def a_list_that_is_given(call):
    def forward(self, x, log):
        log.append(self.layers(x))
        return log[-1]

    model, log = given(forward), []
    return [call(model, batch(), log) is log[-1] for _ in range(CALLS)], len(log)


@meaning
def a_default_that_changes(call):
    def forward(self, x, seen=[]):  # noqa: B006 - that is the case
        seen.append(1)
        return self.layers(x) + len(seen)

    return repeated(call, given(forward))


@meaning
def an_attribute_on_the_answer(call):
    def forward(self, x):
        y = self.layers(x)
        y.rows = x.shape[0]
        return y

    return [y.rows for y in repeated(call, given(forward))]


@without_graph
def an_attribute_on_the_input(call):
    def forward(self, x):
        x.seen = getattr(x, "seen", 0) + 1
        return self.layers(x) + x.seen

    model, x = given(forward), batch()
    return [call(model, x) for _ in range(CALLS)], x.seen


@without_graph
def an_input_in_place(call):
    def forward(self, x):
        x.mul_(2)
        y = self.layers(x)
        x[:, 0] = 7
        return y

    model, inputs = given(forward), [batch(number) for number in range(CALLS)]
    return [call(model, x) for x in inputs], inputs


@meaning
def an_attribute_for_a_moment(call):
    def forward(self, x):
        self.held = x
        y = self.layers(self.held)
        del self.held
        return y

    model = given(forward)
    return repeated(call, model), hasattr(model, "held")


@without_graph
def the_hour(call):
    def forward(self, x):
        self.times.append(time.perf_counter())
        return self.layers(x)

    model = given(forward, times=[])
    repeated(call, model)
    return model.times == sorted(set(model.times)), len(model.times)


# What it reads --------------------------------------------------------------------------------------------

SETTING = contextvars.ContextVar("setting", default=1.0)
LOCAL = threading.local()


@without_graph
def a_context_variable(call):
    SETTING.set(1.0)
    return repeated(call, given(lambda self, x: self.layers(x) * SETTING.get()), lambda number: SETTING.set(number // 3 + 1.0))


@without_graph
def a_threads_own_value(call):
    LOCAL.scale = 1.0
    return repeated(
        call, given(lambda self, x: self.layers(x) * LOCAL.scale), lambda number: setattr(LOCAL, "scale", number // 3 + 2.0)
    )


@meaning
def the_environment(call):
    os.environ.pop("MEANING_SCALE", None)
    model = given(lambda self, x: self.layers(x) * float(os.environ.get("MEANING_SCALE", "1")))
    answers = repeated(call, model, lambda number: os.environ.update(MEANING_SCALE=str(number // 3 + 2)))
    os.environ.pop("MEANING_SCALE")
    return answers


@meaning
def a_variable_around_it(call):
    scale = 1.0

    def forward(self, x):
        return self.layers(x) * scale

    answers, model = [], given(forward)
    for number in range(CALLS):
        scale = number // 3 + 1.0
        answers.append(call(model, batch()))
    return answers


@without_graph
def an_array_that_changes(call):
    array = np.ones(16, np.float32)

    def after(number):
        array[:] = number // 3 + 2

    return repeated(call, given(lambda self, x: self.layers(x) * torch.from_numpy(self.array), array=array), after)


@without_graph
def a_number_of_numpys(call):
    model = given(lambda self, x: self.layers(x) * self.scale, scale=np.float32(1.5))
    return repeated(call, model, lambda number: setattr(model, "scale", np.float32(1.5 + number // 3)))


@meaning
def a_reference_that_dies(call):
    part = nn.Linear(16, 16)
    model = given(lambda self, x: self.layers(x) + (0 if self.part() is None else self.part().bias), part=weakref.ref(part))
    holder = [part]
    del part
    return repeated(call, model, lambda number: holder.clear() if number == 3 else None)


@meaning
def the_default_dtype(call):
    model = given(lambda self, x: (self.layers(x.float()), torch.zeros(2).dtype))
    answers = repeated(call, model, lambda number: torch.set_default_dtype([torch.float32, torch.float64][number > 2]))
    torch.set_default_dtype(torch.float32)
    return answers

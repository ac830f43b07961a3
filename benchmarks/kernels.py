# SPDX-License-Identifier: Apache-2.0
"""Our kernels against torch's own, in turn for each shape: packed linear here, against prepacked oneDNN, and MKL for float32;
the other families' shapes and rivals stand in kernel_families.py.

With one thread, turns are timed by the thread's own CPU time, which other programs on the machine do not lengthen.

Weights of small batches come from memory, as they do in a model whose layers take turns: several copies are cycled
through. With one copy the weight would stay in the cache, and the figure would hold for no model.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import ceilings, kernel_families, machine, progress, spread, tables
from benchmarks.kernel_means import family_means, geometric_means
from benchmarks.options import KernelOptions
from slipstream.kernels import linear

SHAPES = {  # (K, N) of the linear layers: attention's projections, then the feed-forward's two or three
    "bert-base": ((768, 768), (768, 3072), (3072, 768)),
    "vit-l": ((1024, 1024), (1024, 4096), (4096, 1024)),
    "llama-1b": ((2048, 2048), (2048, 256), (2048, 5632), (5632, 2048)),
}
COLD_UP_TO_ROWS = 64
COLD_BYTES = 128 << 20  # beyond the last-level cache of nearly all machines
TURN_S = 0.04
LARGEST_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the largest value; bfloat16 outputs round to 2^-9

Call = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Shape:
    rows: int
    k: int
    n: int
    dtype: torch.dtype

    @property
    def operations(self) -> int:
        return 2 * self.rows * self.k * self.n

    def copies(self) -> int:
        if self.rows > COLD_UP_TO_ROWS:
            return 1
        return max(1, math.ceil(COLD_BYTES / (self.k * self.n * self.dtype.itemsize)))


def run(options: KernelOptions) -> int:
    """Measure, print, write; 1 where ours gives a wrong result."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    facts, figures = machine.describe(options.isa), ceilings.measure(options.threads, level=options.isa)
    tables.show_machine(facts, figures)
    sizes = list(dict.fromkeys(itertools.chain.from_iterable(SHAPES[model] for model in options.models)))
    dtypes = [getattr(torch, name) for name in options.dtypes]
    shapes = [Shape(rows, k, n, dtype) for dtype in dtypes for k, n in sizes for rows in options.rows]
    shapes = shapes if "linear" in options.families else []
    others = [
        (name, dtype, sizes)
        for name in options.families if name != "linear"
        for dtype in dtypes
        for sizes in kernel_families.FAMILIES[name].shapes
    ]  # fmt: skip
    rows, family_rows = [], []
    with progress.bar("kernels", len(shapes) + len(others)) as advance, torch.inference_mode():
        for shape in shapes:
            advance(f"{shape.dtype} {shape.rows} × {shape.k} × {shape.n}")
            rows.append(measure(shape, rounds=options.rounds))
        for name, dtype, sizes in others:
            advance(f"{name} {dtype} {sizes}")
            family_rows += measure_case(name, dtype, sizes, rounds=options.rounds)
    if rows:
        tables.show_kernels(rows, geometric_means(rows))
    if family_rows:
        tables.show_families(family_rows, family_means(family_rows))
    if options.json:
        report = {"machine": facts, "ceilings": figures, "rows": rows, "families": family_rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    wrong = any(not row["error"] <= LARGEST_ERROR[getattr(torch, row["dtype"])] for row in rows)
    return int(wrong or any(not row["error"] <= row["bound"] for row in family_rows))


def measure_case(family: str, dtype: torch.dtype, sizes: Sequence[Any], *, rounds: int) -> list[dict[str, Any]]:
    """One row: ours and the rival in turn; none where torch has no such operator here."""
    case = kernel_families.FAMILIES[family].make(dtype, *sizes)
    if case is None:
        return []
    theirs = case.theirs().double()
    error = float((case.ours().double() - theirs).abs().max() / theirs.abs().max())
    samples: dict[str, list[list[float]]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        samples["ours"].append([seconds_per_call(case.ours)])
        samples["theirs"].append([seconds_per_call(case.theirs)])
    ratio = spread.ratio_by_round(samples["theirs"], samples["ours"])
    ours_us = spread.quartiles([each[0] * 1e6 for each in samples["ours"]]).median
    return [
        {
            "family": family, "dtype": str(dtype).split(".")[-1], "sizes": list(sizes), "rival": case.rival,
            "ours_us": ours_us, "rate": case.work / ours_us * 1e-3, "unit": case.unit, "over": ratio.value,
            "over_low": ratio.low, "over_high": ratio.high, "error": error, "bound": case.bound, "samples_s": samples,
        }
    ]  # fmt: skip


def measure(shape: Shape, *, rounds: int) -> dict[str, Any]:
    """Time ours and every rival on one shape, A B C A B C."""
    x = torch.randn(shape.rows, shape.k).to(shape.dtype)
    bias = torch.randn(shape.n).to(shape.dtype)
    weights = [(torch.randn(shape.n, shape.k) / math.sqrt(shape.k)).to(shape.dtype)] * shape.copies()
    exact = torch.nn.functional.linear(x.double(), weights[0].double(), bias.double())
    calls = {name: cycle for name, make in CONTESTANTS.items() if (cycle := make(x, weights, bias, shape)) is not None}
    error = float((calls["ours"]().double() - exact).abs().max() / exact.abs().max())
    seconds: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _, (name, call) in itertools.product(range(rounds), calls.items()):
        seconds[name].append([seconds_per_call(call)])
    row: dict[str, Any] = {"rows": shape.rows, "k": shape.k, "n": shape.n, "dtype": str(shape.dtype).split(".")[-1]}
    for name, samples in seconds.items():
        row[f"{name}_us"] = spread.quartiles([each[0] * 1e6 for each in samples]).median
        if name != "ours":
            ratio = spread.ratio_by_round(samples, seconds["ours"])
            row |= {f"over_{name}": ratio.value, f"over_{name}_low": ratio.low, f"over_{name}_high": ratio.high}
    row["tflops"] = shape.operations / row["ours_us"] * 1e-6
    row["weight_gb_per_s"] = shape.k * shape.n * shape.dtype.itemsize / row["ours_us"] * 1e-3
    return row | {"copies": shape.copies(), "error": error, "samples_s": seconds}


def seconds_per_call(call: Call) -> float:
    """The mean over a turn of at least TURN_S, after two calls that do not count."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    call(), call()
    count, begin = 0, clock()
    while True:
        call()
        count += 1
        elapsed = clock() - begin
        if elapsed >= TURN_S:
            return elapsed / count


def cycle(calls: Iterable[Call]) -> Call:
    """A call that takes the next of ``calls`` each time, round and round."""
    turn = itertools.cycle(list(calls))

    def call_next() -> torch.Tensor:
        return next(turn)()

    return call_next


def ours(x: torch.Tensor, weights: Sequence[torch.Tensor], bias: torch.Tensor, shape: Shape) -> Call:
    packed = [linear.pack(weight, dtype=shape.dtype) for weight in weights]
    return cycle(lambda each=each: linear.linear(x, each, bias) for each in packed)


def onednn(x: torch.Tensor, weights: Sequence[torch.Tensor], bias: torch.Tensor, shape: Shape) -> Call | None:
    """torch's own prepacked linear, the one that torch.compile with freezing calls."""
    if not torch.backends.mkldnn.is_available():
        return None
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight, shape.rows) for weight in weights]
    call = torch.ops.mkldnn._linear_pointwise
    return cycle(lambda each=each: call(x, each, bias, "none", [], "") for each in packed)


def mkl(x: torch.Tensor, weights: Sequence[torch.Tensor], bias: torch.Tensor, shape: Shape) -> Call | None:
    """F.linear: what an unmodified script gets. In bfloat16 this is oneDNN again, with a plain weight."""
    if shape.dtype is not torch.float32:
        return None
    copies = [weight.clone() for weight in weights]
    return cycle(lambda each=each: torch.nn.functional.linear(x, each, bias) for each in copies)


CONTESTANTS = {"ours": ours, "onednn": onednn, "mkl": mkl}

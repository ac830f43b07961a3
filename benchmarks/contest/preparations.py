# SPDX-License-Identifier: Apache-2.0
"""How each contestant makes a model ready: (model, inputs, dtype, threads) -> a call that runs it once.

A contestant gets what its own documentation tells its users to do. `eager` is also what ours gets: the codeless engine
comes from the environment, not from here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Run = Callable[[], Any]
Inputs = dict[str, torch.Tensor]


def eager(model: torch.nn.Module, inputs: Inputs, dtype: torch.dtype, threads: int) -> Run:
    """The model as it is; for bfloat16 weights and inputs are cast, which is faster than autocast."""
    model = model.to(dtype)
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}

    def run() -> Any:
        with torch.inference_mode():
            return model(**inputs)

    return run


def autocast(model: torch.nn.Module, inputs: Inputs, dtype: torch.dtype, threads: int) -> Run:
    def run() -> Any:
        with torch.inference_mode(), torch.autocast("cpu", dtype):
            return model(**inputs)

    return run


def compiled(model: torch.nn.Module, inputs: Inputs, dtype: torch.dtype, threads: int) -> Run:
    """torch.compile with freezing: weights become constants of the compiled graph."""
    import torch._inductor.config

    torch._dynamo.reset()
    torch._inductor.config.freezing = True
    graph = torch.compile(model)

    def run() -> Any:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            return graph(**inputs)

    return run


def ipex(model: torch.nn.Module, inputs: Inputs, dtype: torch.dtype, threads: int) -> Run:
    """Intel Extension for PyTorch: optimize, then trace and freeze."""
    import intel_extension_for_pytorch

    if "pixel_values" in inputs:
        model = model.to(memory_format=torch.channels_last)
    model = intel_extension_for_pytorch.optimize(model, dtype=dtype)
    low = dtype is torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low, cache_enabled=False):
        graph = torch.jit.freeze(torch.jit.trace(model, example_kwarg_inputs=inputs, strict=False))

    def run() -> Any:
        with torch.no_grad():
            return graph(**inputs)

    return run


def openvino(model: torch.nn.Module, inputs: Inputs, dtype: torch.dtype, threads: int) -> Run:
    """OpenVINO's CPU plug-in, set for latency."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if dtype is torch.bfloat16 else "f32",
    }
    graph = openvino.Core().compile_model(openvino.convert_model(model, example_input=inputs), "CPU", settings)
    arrays = {name: value.numpy() for name, value in inputs.items()}

    def run() -> Any:
        return torch.from_numpy(next(iter(graph(arrays).values())))

    return run


BY_NAME = {"eager": eager, "autocast": autocast, "compiled": compiled, "ipex": ipex, "openvino": openvino}


def first_tensor(output: Any) -> torch.Tensor:
    """The scores, out of whatever a contestant returns: a tensor, a tuple, or a mapping."""
    if isinstance(output, torch.Tensor):
        return output
    return next(iter(output.values() if isinstance(output, dict) else output))

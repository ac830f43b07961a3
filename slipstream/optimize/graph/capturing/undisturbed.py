# SPDX-License-Identifier: Apache-2.0
"""The state of the process, which is the script's to change while a thread of ours captures.

Around each trace dynamo keeps the generator's state, the default dtype, whether algorithms are to be deterministic, and puts
them back when it is done. Beside a running script that draws its random numbers once more, and ends the
`torch.set_default_dtype` of whoever is just making a model. A trace on tensors without values changes none of it, so that
nothing has to be put back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from slipstream.optimize.graph.capturing.refusals import CaptureDisturbed


def instead() -> list[tuple[Any, str, Any]]:
    """Whose attribute of which name is what during a capture. Raises RuntimeError where dynamo is built otherwise."""
    from torch._dynamo import convert_frame

    bare = getattr(convert_frame.trace_frame, "_torchdynamo_orig_backend", None)
    if bare is None:
        raise RuntimeError("this version of dynamo puts back the script's random state")
    return [(convert_frame, "trace_frame", functools.partial(_trace, bare))]


def _trace(bare: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """With what dynamo keeps of this thread's state, and notices of what a graph depends on and the script has changed."""
    from torch._dynamo import convert_frame

    graph_module: Any = torch.fx.graph_module
    guards, gradients, compiled = convert_frame.GlobalStateGuard(), torch.is_grad_enabled(), graph_module._forward_from_src
    with (
        torch._C._PreserveDispatchKeyGuard(),
        convert_frame.maybe_disable_inference_mode(),
        convert_frame.maybe_disable_inference_mode_for_fake_prop(),
    ):
        inference = torch.is_inference_mode_enabled()
        graph_module._forward_from_src = convert_frame.fx_forward_from_src_skip_result
        convert_frame.reset_user_object_tracking()
        try:
            return bare(*args, **kwargs)
        finally:
            torch._C._set_grad_enabled(gradients)
            torch.autograd.grad_mode._enter_inference_mode(inference)
            graph_module._forward_from_src = compiled
            if not guards.check():
                raise CaptureDisturbed(f"the script changed {guards.reason().strip()} meanwhile")

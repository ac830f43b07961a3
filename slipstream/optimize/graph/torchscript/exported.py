# SPDX-License-Identifier: Apache-2.0
"""Answers for `ExportedProgram.module()`, whose forward is Python that torch.fx has written: dynamo reads it as any other."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slipstream.optimize import gates
from slipstream.optimize.graph.capturing.capture import Capture
from slipstream.optimize.graph.root import RootCall

MAKER = "torch.export._unlift"
"""Where the class of such modules is, and their hooks, which look whether a call is one that was exported."""


class ExportedCall(RootCall):
    """In such a module's own call slot. It counts as in training for ever, and holds what it was exported with."""

    def _stands_aside(self, module: nn.Module) -> bool:
        if torch.is_grad_enabled() or gates.has_global_hooks() or module._backward_hooks or module._backward_pre_hooks:
            return True
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        return any(hook.__module__ != MAKER for hook in hooks)

    def _captured(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, dynamic: bool) -> Capture:
        """For these sizes, which torch's hooks have let through; of others they have to be asked."""
        return super()._captured(module, args, kwargs, dynamic=False)

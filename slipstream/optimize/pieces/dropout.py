# SPDX-License-Identifier: Apache-2.0
"""Dropout outside training returns its very input; here it does so without the way through the operator."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from slipstream.optimize import gates
from slipstream.optimize.options import Options

RANKS: dict[type[nn.Module], tuple[int, ...] | None] = {
    nn.Dropout: None,
    nn.AlphaDropout: None,
    nn.Dropout1d: (3,),
    nn.Dropout2d: (4,),
    nn.Dropout3d: (5,),
}
"""Class → ranks of input for which it neither warns nor raises; None: any."""


class DropoutPiece:
    """Answers with the input itself, which is what torch answers; gradients pass through by themselves."""

    def __init__(self, module: nn.Module, name: str, options: Options) -> None:
        self.module = weakref.ref(module)
        self.ranks = next(RANKS[kind] for kind in type(module).__mro__ if kind in RANKS)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module()
        assert module is not None  # it is being called
        if len(args) == 1 and not kwargs and gates.module_is_plain(module):
            x = args[0]
            if not gates.tensor_is_plain(x) or not gates.call_is_plain():
                return module._call_impl(*args, **kwargs)
            if self.ranks is None or x.dim() in self.ranks:
                return x
        return module._call_impl(*args, **kwargs)

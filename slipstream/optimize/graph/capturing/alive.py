# SPDX-License-Identifier: Apache-2.0
"""Guards that ask whether something is a certain object compare addresses, of which the next object may have a dead one's.

Dynamo has each such object tell when it dies, the finalizer keeping the guards for as long as it lives, which for a class is
for ever, and what it tells is of use to dynamo's own cache alone. Here it ends the capture.
"""

from __future__ import annotations

import weakref
from typing import Any


class Alive:
    """What the guards of one capture know by address."""

    def __init__(self) -> None:
        self.all = True
        self._references: list[weakref.ref[Any]] = []

    def instead(self) -> list[tuple[Any, str, Any]]:
        """Whose attribute of which name is what during the capture."""
        from torch._dynamo.guards import CheckFunctionManager

        def id_ref(manager: Any, given: Any, _: str) -> int:
            if id(given) not in manager._weakrefs:
                try:
                    manager._weakrefs[id(given)] = weakref.ref(given)
                    self._references.append(weakref.ref(given, self._died))
                except TypeError:  # as numbers are, of which there is one each
                    pass
            return id(given)

        return [(CheckFunctionManager, "id_ref", id_ref)]

    def _died(self, _: Any) -> None:
        self.all = False

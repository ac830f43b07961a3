# SPDX-License-Identifier: Apache-2.0
"""Alone on PYTHONPATH: arm the codeless engine, then give way to the sitecustomize that this file shadows.

Parsable by any Python; acts only where slipstream can run. The folder leaves sys.path before anything else,
so that a script sees the path that it always had. If no other sitecustomize exists, the ImportError that
`site` expects goes on to `site`; if the other one raises, its error does: in both cases just as without us.
"""

import os
import sys


def _arm():
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != here]
    sys.path_importer_cache.pop(here, None)
    if sys.version_info < (3, 10):  # noqa: UP036 - any Python of the user's may find this file
        return
    package = os.path.dirname(os.path.dirname(here))
    beside = os.path.dirname(package)
    sys.path.insert(0, beside)  # the package that this file belongs to, wherever it is installed
    try:
        from slipstream.autopatch.activate import activate

        activate()
    finally:
        sys.path.remove(beside)
        sys.path_importer_cache.pop(beside, None)


try:  # noqa: SIM105 - contextlib is an import that every process would pay for
    _arm()
except BaseException:  # noqa: BLE001 - anything that left here would kill the interpreter at its start
    pass

del sys.modules[__name__]
import sitecustomize  # noqa: E402, F401 - the one that this file shadows

# SPDX-License-Identifier: Apache-2.0
"""Alone on PYTHONPATH when the launcher preloads a library: put LD_PRELOAD and PYTHONPATH back as they were.

The library stays in this process; programs that it starts do not get it. Then the sitecustomize that this
file shadows has its turn, or the ImportError that `site` expects goes on to it. Parsable by any Python.
"""

import os
import sys


def _restore() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != here]
    sys.path_importer_cache.pop(here, None)
    if sys.version_info < (3, 10):  # noqa: UP036 - any Python of the user's may find this file
        return
    beside = os.path.dirname(os.path.dirname(os.path.dirname(here)))
    sys.path.insert(0, beside)  # the package that this file belongs to, wherever it is installed
    try:
        from slipstream import env

        before = env.read(env.PRELOAD_BEFORE)
        env.remove(env.PRELOAD_BEFORE)
        env.write("LD_PRELOAD", before or "")
        entries = (env.read("PYTHONPATH") or "").split(os.pathsep)
        env.write("PYTHONPATH", os.pathsep.join(entry for entry in entries if entry != here))
    finally:
        sys.path.remove(beside)
        sys.path_importer_cache.pop(beside, None)


try:  # noqa: SIM105 - contextlib is an import that every process would pay for
    _restore()
except BaseException:  # noqa: BLE001 - anything that left here would kill the interpreter at its start
    pass

del sys.modules[__name__]
import sitecustomize  # noqa: E402, F401 - the one that this file shadows

# SPDX-License-Identifier: Apache-2.0
"""Start: old import names keep working where the old package is not installed.

Importing this package is the switch: from then on `import intel_extension_for_pytorch` is answered from the table
in `names/`, unless the real package is there. No torch at import.
"""

from __future__ import annotations

from slipstream.compat import finder

finder.install()

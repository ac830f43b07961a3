# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks demo|zoo|kernels|ceilings`."""

import sys

from benchmarks.cli import main

sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""Measurements: the demo, the zoo of models against peers, the kernels, the machine's ceilings.

`python -m benchmarks --help`. Imports nothing by itself: a peer's interpreter, which has none of our packages,
runs `benchmarks.contest.worker` out of this folder.
"""

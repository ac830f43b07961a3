# SPDX-License-Identifier: Apache-2.0
"""The zoo's contestants: who they are, what they run, and the processes they live in.

`worker`, `models` and `preparations` run in a peer's interpreter and import nothing of slipstream.
"""

# SPDX-License-Identifier: Apache-2.0
"""The operators of a lowered graph: each a callable with its settings in it, that takes tensors."""

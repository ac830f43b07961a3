# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts: rows sorted by group, each group multiplied by a weight of its own."""

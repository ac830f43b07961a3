# SPDX-License-Identifier: Apache-2.0
"""Linears of normalized rows."""

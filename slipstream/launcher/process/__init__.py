# SPDX-License-Identifier: Apache-2.0
"""Processes: what happens in a child before exec, who cleans up after a killed launcher, where output goes."""

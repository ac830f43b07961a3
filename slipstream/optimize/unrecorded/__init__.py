# SPDX-License-Identifier: Apache-2.0
"""Inference that forgot `torch.no_grad()`: whole calls run without recording, and a backward computes them again."""

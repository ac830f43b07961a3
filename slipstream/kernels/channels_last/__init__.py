# SPDX-License-Identifier: Apache-2.0
"""The kernels on images that lie channels last, on both sides."""

# SPDX-License-Identifier: Apache-2.0
"""The order of rows: windows of images, rolls, patches that are merged."""

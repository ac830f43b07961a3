# SPDX-License-Identifier: Apache-2.0
"""Looking at running instances: figures that they print, what the kernel says of them, the live table."""

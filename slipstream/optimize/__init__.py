# SPDX-License-Identifier: Apache-2.0
"""Model: what is done to a module so that it runs faster, one pass a file."""

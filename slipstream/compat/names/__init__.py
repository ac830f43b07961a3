# SPDX-License-Identifier: Apache-2.0
"""One table for each old package: what its names are now, or why there is nothing in their place."""

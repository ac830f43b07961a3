# SPDX-License-Identifier: Apache-2.0
"""The chain tier: fusions across modules that nobody put into a Sequential, where the source proves them right."""

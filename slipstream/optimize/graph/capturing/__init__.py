# SPDX-License-Identifier: Apache-2.0
"""A module's forward as one graph that holds for calls like the one it was captured for."""

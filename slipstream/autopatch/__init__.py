# SPDX-License-Identifier: Apache-2.0
"""Start: the codeless engine's way into an unmodified script. No torch until the script imports it."""

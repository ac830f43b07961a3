# SPDX-License-Identifier: Apache-2.0
"""Start: from a command line to pinned, clean processes. Never imports torch."""

# SPDX-License-Identifier: Apache-2.0
"""Machine: what this process runs on, and where in it. No torch at import."""

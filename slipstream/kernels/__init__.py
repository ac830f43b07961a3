# SPDX-License-Identifier: Apache-2.0
"""Machine: the Python face of csrc, one op family a file."""

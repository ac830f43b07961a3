# SPDX-License-Identifier: Apache-2.0
"""What people see of a search: progress on a terminal, the verdict as table and files, the picture."""

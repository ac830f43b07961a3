# SPDX-License-Identifier: Apache-2.0
"""`slipstream tune`: search launch configurations and print the winning command line.

Being written by the tune engineer; the launcher imports nothing from here except through
the `slipstream` command's table of subcommands.
"""

# SPDX-License-Identifier: Apache-2.0
"""`slipstream tune`: search launch configurations and print the winning command line.

Values flow: `request` (what was asked) → `space`, `screening` (what may be tried) → `search` (what is tried, pure) →
`verdict` → `show`. Effects are behind `trial.Runner`: `launch_trial` starts ipexrun, `record` keeps what it saw.
"""

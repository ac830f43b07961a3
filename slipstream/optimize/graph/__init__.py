# SPDX-License-Identifier: Apache-2.0
"""The graph tier: a model captured whole by dynamo, lowered to our fused operators, and swapped in when ready.

`capture` gets the graph without running anything; `lower` rewrites it, pass by pass (`mutation`, `simplify`,
`makers`, `fuse`, `precision`, `join`, `results`); `program` checks the result on live data; `root` decides when to
capture and which way answers.
"""

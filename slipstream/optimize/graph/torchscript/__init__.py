# SPDX-License-Identifier: Apache-2.0
"""ScriptModules get a graph as well: theirs, walked through node by node, in the place of one that dynamo reads."""

# SPDX-License-Identifier: Apache-2.0
"""What finds an operator's row of operations and puts the operator there: a family of operators a file."""

# SPDX-License-Identifier: Apache-2.0
"""Functions of torch that stand for several operations become those, which makers know."""

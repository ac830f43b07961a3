# SPDX-License-Identifier: Apache-2.0
"""The pieces: what answers for one kind of layer each, and what they share."""

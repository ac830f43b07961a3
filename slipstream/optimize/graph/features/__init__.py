# SPDX-License-Identifier: Apache-2.0
"""What recommendation models make their features of: tables that are looked up, and pairs that are picked."""

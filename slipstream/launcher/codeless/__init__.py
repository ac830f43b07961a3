# SPDX-License-Identifier: Apache-2.0
"""The codeless engine seen from outside: run a script with and without it, compare, inspect, find what changed an answer."""

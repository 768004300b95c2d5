"""Benchmarks: every figure next to its rival's, measured in the same run. docs/benchmarks.md says how to read them."""

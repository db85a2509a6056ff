"""Benchmarks: one file a question, the peers beside us in the same run."""

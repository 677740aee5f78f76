"""Benchmarks. Each checks its result before it times anything, and writes its figures as JSON into bench/results."""

"""A deep encoder distilled, pruned and rounded: see `python -m benchmarks.distill --help`."""

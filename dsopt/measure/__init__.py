"""Measure what a build is worth: what a program holds, whether an artifact agrees with its model, how fast it runs."""

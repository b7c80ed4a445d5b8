"""Triton functions. They are compiled by Triton, not run by Python: their arguments have no types."""

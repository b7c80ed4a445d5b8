"""Kernels for cores with MVE ("Helium"): 16 products of bytes in an instruction, results and their scales four lanes at a time."""

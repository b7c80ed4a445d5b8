"""CUDA artifacts on hardware, in two steps: `pack` compiles where there is no GPU, `run` runs and compares where there is one."""

"""Sparse attention against dense: work, fidelity on real text, tasks, retrieval and speed."""

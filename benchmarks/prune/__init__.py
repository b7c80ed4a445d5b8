"""What the prune pass does to whole architectures, whether what is left computes the same, and how much faster it is."""

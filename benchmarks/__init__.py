"""What produces the numbers of the README: one script a claim, each with the peer's figure from the same run."""

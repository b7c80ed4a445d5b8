"""What quantisation costs in accuracy, whether all that runs a quantised network agrees, and how long quantising takes."""

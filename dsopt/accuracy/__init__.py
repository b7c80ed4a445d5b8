"""What quantisation costs: samples and metrics, statistics of layers, and the search for layers to keep at higher precision."""

"""From a model to a Program: modules, exported programs, .pt2, .onnx, .pt and factories; files are taken from strangers."""

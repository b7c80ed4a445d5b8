"""Read ONNX files from strangers into torch modules that torch.export captures as the networks they were."""

from dsopt.frontend.onnx_reader.module import OnnxModule
from dsopt.frontend.onnx_reader.reader import OnnxModel, read_onnx
from dsopt.frontend.onnx_reader.registry import supported_operators
from dsopt.frontend.onnx_reader.sources import keeping_node_names, name_sources

__all__ = ["OnnxModel", "OnnxModule", "keeping_node_names", "name_sources", "read_onnx", "supported_operators"]

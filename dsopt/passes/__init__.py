"""The passes by name, imported when asked for. A new pass is one file and one line here."""

PASSES: dict[str, str] = {
    "adaptive-rounding": "dsopt.passes.quantize.adaptive_rounding:AdaptiveRounding",
    "bias-correction": "dsopt.passes.quantize.bias_correction:BiasCorrection",
    "canonicalize": "dsopt.passes.canonicalize:Canonicalize",
    "cascade": "dsopt.passes.patch.cascade:Cascade",
    "cross-layer-equalization": "dsopt.passes.quantize.equalization:CrossLayerEqualization",
    "fold-batch-norm": "dsopt.passes.fold_batch_norm:FoldBatchNorm",
    "fold-constants": "dsopt.passes.fold_constants:FoldConstants",
    "fold-padding": "dsopt.passes.quantize.fold_padding:FoldPadding",
    "fuse-activation": "dsopt.passes.fuse_activation:FuseActivation",
    "fuse-attention": "dsopt.passes.fuse_attention:FuseAttention",
    "fuse-residual": "dsopt.passes.quantize.fuse_residual:FuseResidual",
    "lower-integer": "dsopt.passes.quantize:LowerInteger",
    "patch": "dsopt.passes.patch:Patch",
    "prune": "dsopt.passes.prune:Prune",
    "quantize": "dsopt.passes.quantize:Quantize",
    "quantize-convert": "dsopt.passes.quantize:QuantizeConvert",
    "quantize-dynamic": "dsopt.passes.quantize:QuantizeDynamic",
    "quantize-prepare": "dsopt.passes.quantize:QuantizePrepare",
    "remove-blocks": "dsopt.passes.remove_blocks:RemoveBlocks",
    "remove-dead-code": "dsopt.passes.remove_dead_code:RemoveDeadCode",
    "sparse-attention": "dsopt.passes.sparse_attention:SparseAttention",
}
"""Pass name -> "module:Class"."""

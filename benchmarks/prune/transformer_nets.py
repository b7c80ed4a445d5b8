"""Small networks of the `transformers` package: an architecture a line, with random weights."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import dsopt

WIDTH, LAYERS, HEADS, HIDDEN, WORDS, PLACES = 32, 2, 4, 64, 100, 64

_SIZES: dict[str, Any] = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": HIDDEN,
}  # fmt: skip
_TEXT: dict[str, Any] = {
    **_SIZES, "vocab_size": WORDS, "max_position_embeddings": PLACES, "num_labels": 3, "pad_token_id": 0,
}  # fmt: skip
_CAUSAL: dict[str, Any] = {**_TEXT, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}
_PATCHES: dict[str, Any] = {**_SIZES, "image_size": 32, "patch_size": 8, "num_labels": 5}
_STEPS: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_labels": 5}

ARCHITECTURES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "albert": ("Albert", "ForSequenceClassification", "ids", {**_TEXT, "embedding_size": 16}),
    "bert": ("Bert", "ForSequenceClassification", "ids", _TEXT),
    "deberta_v2": ("DebertaV2", "ForSequenceClassification", "ids", {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "distilbert": ("DistilBert", "ForSequenceClassification", "ids", {
        "dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": HIDDEN, "vocab_size": WORDS, "max_position_embeddings": PLACES}),
    "electra": ("Electra", "ForSequenceClassification", "ids", {**_TEXT, "embedding_size": 16}),
    "fnet": ("FNet", "ForSequenceClassification", "ids", _TEXT),
    "mpnet": ("MPNet", "ForSequenceClassification", "ids", _TEXT),
    "roberta": ("Roberta", "ForSequenceClassification", "ids", _TEXT),
    "t5": ("T5", "EncoderModel", "ids", {
        "d_model": WIDTH, "d_kv": 8, "d_ff": HIDDEN, "num_layers": LAYERS, "num_heads": HEADS, "vocab_size": WORDS}),
    "xlnet": ("XLNet", "ForSequenceClassification", "ids", {
        "d_model": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "d_inner": HIDDEN, "vocab_size": WORDS}),
    "bloom": ("Bloom", "ForCausalLM", "ids", {
        "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": WORDS, "use_cache": False}),
    "gemma": ("Gemma", "ForCausalLM", "ids", {**_CAUSAL, "head_dim": 8}),
    "gemma2": ("Gemma2", "ForCausalLM", "ids", {**_CAUSAL, "head_dim": 8}),
    "gpt2": ("GPT2", "LMHeadModel", "ids", {
        "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": WORDS, "n_positions": PLACES, "use_cache": False}),
    "gpt_neox": ("GPTNeoX", "ForCausalLM", "ids", _CAUSAL),
    "llama": ("Llama", "ForCausalLM", "ids", _CAUSAL),
    "mamba": ("Mamba", "ForCausalLM", "ids", {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": WORDS, "state_size": 8, "use_cache": False}),
    "mistral": ("Mistral", "ForCausalLM", "ids", _CAUSAL),
    "opt": ("OPT", "ForCausalLM", "ids", {
        **_CAUSAL, "ffn_dim": HIDDEN, "word_embed_proj_dim": WIDTH}),
    "phi": ("Phi", "ForCausalLM", "ids", _CAUSAL),
    "phi3": ("Phi3", "ForCausalLM", "ids", _CAUSAL),
    "qwen2": ("Qwen2", "ForCausalLM", "ids", _CAUSAL),
    "qwen3": ("Qwen3", "ForCausalLM", "ids", {**_CAUSAL, "head_dim": 8}),
    "beit": ("Beit", "ForImageClassification", "32", _PATCHES),
    "clip_vision": ("CLIPVision", "ModelWithProjection", "32", {**_PATCHES, "projection_dim": 16}),
    "convnextv2": ("ConvNextV2", "ForImageClassification", "64", _STEPS),
    "deit": ("DeiT", "ForImageClassification", "32", _PATCHES),
    "mobilevit": ("MobileViT", "ForImageClassification", "64", {"image_size": 64, "num_labels": 5}),
    "poolformer": ("PoolFormer", "ForImageClassification", "64", _STEPS),
    "segformer": ("Segformer", "ForImageClassification", "64", {**_STEPS, "num_attention_heads": [1, 2, 3, 4]}),
    "swinv2": ("Swinv2", "ForImageClassification", "32", {
        "image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "num_labels": 5}),
    "vit": ("ViT", "ForImageClassification", "32", _PATCHES),
    "wav2vec2": ("Wav2Vec2", "ForSequenceClassification", "sound", {
        **_SIZES, "conv_dim": [16, 16], "conv_stride": [5, 4], "conv_kernel": [10, 8], "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}),
}  # fmt: skip
"""Name -> (what the classes begin with, how the model's ends, what it takes, options of the configuration)."""


class _Plain(nn.Module):
    """A network called with one tensor, which gives one."""

    def __init__(self, network: nn.Module, argument: str) -> None:
        super().__init__()
        self.network, self._argument = network, argument

    def forward(self, x: Tensor) -> Tensor:
        out = self.network(**{self._argument: x})
        logits: Tensor = out.logits if hasattr(out, "logits") else out[0]
        return logits


def transformers_package() -> ModuleType | None:
    """Import transformers, or return None."""
    try:
        return importlib.import_module("transformers")
    except ImportError:
        return None


def transformer_spec(package: ModuleType, name: str) -> dsopt.ModelSpec:
    """Return an architecture with its example."""
    prefix, suffix, takes, options = ARCHITECTURES[name]
    model = getattr(package, prefix + suffix)(getattr(package, f"{prefix}Config")(**options))
    if takes == "ids":
        return dsopt.ModelSpec(_Plain(model.eval(), "input_ids"), (torch.randint(5, WORDS, (2, 12)),))
    if takes == "sound":
        return dsopt.ModelSpec(_Plain(model.eval(), "input_values"), (torch.randn(2, 800),))
    side = int(takes)
    return dsopt.ModelSpec(_Plain(model.eval(), "pixel_values"), (torch.rand(2, 3, side, side),))

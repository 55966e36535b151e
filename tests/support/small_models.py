"""Small models of Hugging Face with random weights, saved as a person would save theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

# modules of adapters beside a Llama, which take seconds to import
PARTS = ("peft", "transformers.models.llama.modeling_llama", "transformers.models.vit.modeling_vit")
LLAMA_SIZES = {"hidden_size": 64, "intermediate_size": 256}


def save(folder: Path, kind: str, **changes: Any) -> Path:
    """Save a model of the kind `gpt2`, `llama`, `bert` or `vit` into the folder, and return the folder."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    made: dict[str, Any] = {
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                **{"vocab_size": 20, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2} | changes
            )
        ),
        "llama": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                **sizes | {"vocab_size": 20, "num_key_value_heads": 1, "max_position_embeddings": 16} | changes
            )
        ),
        "bert": lambda: transformers.BertForMaskedLM(
            transformers.BertConfig(
                **sizes
                | {"vocab_size": 40, "max_position_embeddings": 64, "hidden_size": 64, "hidden_dropout_prob": 0.0}
                | {"initializer_range": 0.1}
                | changes
            )
        ),
        "vit": lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(**sizes | {"image_size": 8, "patch_size": 4, "num_channels": 1} | changes)
        ),
    }
    made[kind]().save_pretrained(folder)
    if kind == "vit":
        values = {"image_mean": [0.4], "image_std": [0.3], "size": {"height": 8, "width": 8}}
        transformers.ViTImageProcessor(**values).save_pretrained(folder)
    return folder

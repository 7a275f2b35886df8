"""Fields that other servers' clients send beside OpenAI's, and those of their values that ask for what is done anyway.

Any other value is refused by its name. Sources: vLLM's and SGLang's OpenAI-compatible servers, llama.cpp's server,
Mistral's and OpenRouter's APIs; of embeddings and rerankings also Cohere's, Jina's and Voyage's APIs and Infinity.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

CHANGE_NOTHING: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        # vLLM
        "add_special_tokens": (False,),
        "allowed_token_ids": ([],),
        "bad_words": ([],),
        "best_of": (1,),
        "documents": ([],),
        "echo": (False,),
        "include_reasoning": (True,),
        "include_stop_str_in_output": (False,),
        "length_penalty": (1,),
        "return_token_ids": (False,),
        "return_tokens_as_token_ids": (False,),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True,),
        "use_beam_search": (False,),
        # SGLang
        "no_stop_trim": (False,),
        "return_hidden_states": (False,),
        "separate_reasoning": (True,),
        "stream_reasoning": (True,),
        # llama.cpp, and what is built on it
        "cache_prompt": (True,),
        "dry_multiplier": (0,),
        "dynatemp_range": (0,),
        "id_slot": (-1,),
        "mirostat": (0,),
        "n_keep": (0,),
        "n_predict": (-1,),
        "n_probs": (0,),
        "parse_tool_calls": (True,),
        "post_sampling_probs": (False,),
        "reasoning_format": ("auto", "deepseek"),
        "repeat_penalty": (1,),
        "return_progress": (False,),
        "tfs_z": (1,),
        "timings_per_token": (False,),
        "typical_p": (1,),
        "xtc_probability": (0,),
        # Mistral
        "safe_prompt": (False,),
        # OpenRouter
        "plugins": ([],),
        "top_a": (0,),
        "transforms": ([],),
    }
)
OF_EMBEDDINGS: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        # vLLM
        "add_special_tokens": (True,),
        "priority": (0,),
        "truncate_prompt_tokens": (-1,),
        # Jina
        "embedding_type": ("float",),
        "late_chunking": (False,),
        # Voyage
        "output_dtype": ("float",),
        "truncation": (True,),
        # Infinity
        "modality": ("text",),
    }
)
OF_RERANKINGS: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        # Cohere, vLLM
        "priority": (0,),
        "truncate_prompt_tokens": (-1,),
        # Voyage
        "truncation": (True,),
    }
)

"""Decoder-only language models: Llama, SmolLM2, Qwen2, Qwen2.5 and Qwen3; generation, tokenizers, chat templates."""

from vdit.lazy import exports

# Imported on first use: chat templates and tokenizers need no jax.
_HOMES = {
    "ChatTemplate": "chat",
    "Decoding": "generate",
    "Generated": "generate",
    "KVCache": "model",
    "LMConfig": "config",
    "LMOutput": "model",
    "LMTokenizer": "tokenizer",
    "LanguageModel": "model",
    "Prompts": "generate",
    "extend": "generate",
    "generate": "generate:generate",
    "lm_preset": "config",
    "load_lm_tokenizer": "tokenizer",
    "pad_prompts": "generate",
    "start": "generate",
    "train_lm_tokenizer": "tokenizer",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = exports(__name__, _HOMES)

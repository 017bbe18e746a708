"""Model files: families and their configs, Hugging Face folders, GGUF, ``.nemo`` archives, tokenizers. No layers."""

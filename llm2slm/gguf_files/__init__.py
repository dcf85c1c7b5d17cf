"""GGUF files (llama.cpp's single-file model format): names, headers, tokenizers and partial reading."""

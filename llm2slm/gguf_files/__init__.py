"""GGUF files, llama.cpp's format of a model in one file: their names, their headers, and reading a part of one."""

"""Pretrained models: found by name, loaded in part or whole, cut to fewer blocks, fitted to a tokenizer."""

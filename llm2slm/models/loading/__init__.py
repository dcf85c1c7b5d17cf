"""Loading of pretrained models: resolving names, partial loading, layer cuts, vocabulary changes, GGUF weights."""

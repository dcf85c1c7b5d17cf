"""Built-in corpora and the built-in LLM, for work without a network."""

"""From corpora to batches: rows, tasks, tokenizers, collation, loaders. Imports no model."""

"""Quality metrics: scores of texts against references, with signatures, per-row statistics and quality by length."""

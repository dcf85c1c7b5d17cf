"""Results as tables, plots, one self-contained page, and a model card."""

"""Corpora as rows of text: built-in ones, local files, data sets of the Hub, mixtures, labels of an LLM."""

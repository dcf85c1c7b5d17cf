"""Evaluation by an LLM judge: clients, the log of replies, verdicts and their statistics, tables."""

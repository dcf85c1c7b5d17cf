"""Stores of LLM representations: file format, writer and reader."""

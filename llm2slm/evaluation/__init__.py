"""Judging systems: quality metrics, latency and cost, and the report of both."""

"""Latency, throughput, peak memory and analytic costs of systems, timed interleaved in one process."""

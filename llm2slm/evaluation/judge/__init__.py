"""An LLM as a judge of answers: its client, the log of its replies, its verdicts."""

"""The method: frozen LLM encoder, projector, conditioning, SLM, and the hybrid that joins them."""

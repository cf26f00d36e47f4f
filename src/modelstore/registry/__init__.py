"""Registries of models: Ollama's, and any that speaks the OCI distribution protocol."""

"""How an engine wants a model on disk: one module per arrangement."""

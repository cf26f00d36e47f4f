"""Readers of the headers of weight files, with bounds: one module per format. Nothing is executed or unpickled."""

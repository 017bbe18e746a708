"""Engines: what runs a model's layers, batches, samples and scores. Knows no HTTP."""

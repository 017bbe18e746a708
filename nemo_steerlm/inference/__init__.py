"""Engines: they run a model's layers, batch, sample and score. No HTTP here."""

"""Engines: the only part of ``serving`` that imports torch and transformers."""

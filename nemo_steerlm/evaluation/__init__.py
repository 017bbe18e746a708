"""How well a model reads and writes attributes: agreement, control metrics, judges, the report. No HTTP, no models."""

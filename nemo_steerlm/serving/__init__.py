"""One ASGI app over an ``Engine``: attribute scoring, the OpenAI endpoints with an ``attributes`` field, and upstream's ``PUT /generate``.

``app`` assembles routes (``attributes``, ``openai``, ``generate``) around a ``Scheduler``, the one thread that drives the engine. Model
code lives in ``engines`` only: importing anything else here does not import torch.
"""

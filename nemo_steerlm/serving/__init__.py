"""One ASGI app over a ``Model``: attribute scoring, the OpenAI endpoints with an ``attributes`` field, and upstream's ``PUT /generate``.

``app`` assembles routes (``attributes``, ``openai``, ``generate``) around a ``Scheduler``, the one thread that drives an engine of the
room ``inference``, or around a model that another server has. Nothing here imports torch.
"""

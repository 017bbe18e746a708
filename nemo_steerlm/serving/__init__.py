"""One ASGI app over a ``Model``: attribute scoring, the OpenAI endpoints with an ``attributes`` field, and upstream's ``PUT /generate``.

``app`` assembles the routes (``attributes``, ``openai``, ``generate``) around a ``Model``: a ``Scheduler``, the one thread that drives an
engine of the room ``inference``, or a ``RemoteModel``, whose weights another server has. Nothing here imports torch.
"""

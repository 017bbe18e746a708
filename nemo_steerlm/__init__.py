"""SteerLM: read attributes from rated conversations, then write under them.

``core`` holds the vocabulary (attributes, conversations, the prompt template), ``data`` reads and writes records, ``megatron``
trains with NeMo, ``serving`` answers over HTTP, ``annotation`` labels through a server, ``pipeline`` runs the stages in order and
``cli`` is the command ``steerlm``. Importing this package imports none of them, and nothing heavy.
"""

__version__ = "0.1.0"

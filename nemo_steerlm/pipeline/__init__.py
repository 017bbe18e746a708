"""One declarative SteerLMPipeline: its manifest, its stages, their artifacts, the local executor, evaluation and the report.

Stages run as processes; nothing here imports torch, NeMo, Megatron or transformers. The operator shares ``manifest`` and ``stages``.
"""

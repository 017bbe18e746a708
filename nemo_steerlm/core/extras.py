"""Libraries that come with an extra of this package only: what is said where one is missing."""

from __future__ import annotations

import importlib.util

from nemo_steerlm.core.errors import ConfigError

_LIBRARIES = {
    "nemo": ("nemo", "megatron", "lightning", "hydra", "omegaconf", "gguf", "tensorboard"),
    "serve": ("torch", "transformers", "fastapi", "starlette", "uvicorn", "prometheus_client"),
    "openvino": ("openvino",),
    "report": ("jinja2", "langdetect", "matplotlib", "pyphen", "scipy", "sklearn", "vaderSentiment"),
    "data": ("pyarrow",),
    "remote": ("fsspec", "s3fs", "gcsfs", "adlfs"),
    "operator": ("kopf", "steerlm_operator"),
}
EXTRAS = {library: extra for extra, libraries in _LIBRARIES.items() for library in libraries}
"""Which extra brings a module; ``pyproject.toml`` lists its packages."""


def missing_extra(error: ModuleNotFoundError) -> ConfigError | None:
    """One line for a library that is not installed because its extra is not; None for every other module."""
    library = (error.name or "").partition(".")[0]
    if library not in EXTRAS or importlib.util.find_spec(library) is not None:
        return None
    return ConfigError(f"this needs {library}, which is not installed: pip install 'nemo_steerlm[{EXTRAS[library]}]'")

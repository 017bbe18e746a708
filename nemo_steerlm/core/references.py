"""What a manifest's references may begin with."""

from __future__ import annotations

import re
from typing import Any

from nemo_steerlm.core.errors import shown

SCHEMES = ("s3", "gs", "az", "https")
"""Object stores and web servers that files and folders may come from."""

_PATH = r"(?:[^:\x00-\x1f]|:(?::|/:)*(?:[^:/\x00-\x1f]|/[^:/\x00-\x1f]))*(?::(?::|/:)*/?)?"
PATTERN = rf"^(?:(?:{'|'.join(SCHEMES)})://[^\x00-\x1f]+|{_PATH})$"
"""An address of a known scheme, or text without ``://``. An API server's expressions have no other way to say *not*."""


def check_scheme(value: Any) -> Any:
    """``value`` as it is. Raises ValueError for an address of an unknown scheme, in a sentence that ``PATTERN`` could not say."""
    scheme = re.match(r"([^/]*?)://", value) if isinstance(value, str) else None
    if scheme and scheme[1] not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(f"unknown scheme {shown(scheme[1])}; write {known}, hf:, pypi: or a path")
    return value

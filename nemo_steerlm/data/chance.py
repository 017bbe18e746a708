"""Choices that follow from a record alone, so that changing one record moves no other."""

from __future__ import annotations

import hashlib


def chance(*key: object) -> float:
    """A number in [0, 1) that depends on ``key`` alone."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56

"""Sources of data, read from files that a test writes."""

from __future__ import annotations

import collections
import gzip
import json
from pathlib import Path

import pyarrow
from pyarrow import parquet

from nemo_steerlm.core.attributes import Attribute, AttributeSchema
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.data.rejects import Rejects
from nemo_steerlm.data.sources import SOURCES
from nemo_steerlm.data.sources.source import SourceContext

SCHEMA = AttributeSchema(attributes=(Attribute(name="quality"), Attribute(name="honesty", low=1, high=5, default=1)))
RATINGS = {"quality": {"key": "scores.overall", "range": [1, 5]}}


def written(folder: Path, rows: list[object], form: str = "jsonl") -> Path:
    """A file of rows: ``jsonl``, ``gz``, ``json`` or ``parquet``."""
    path = folder / f"data.{form}"
    if form == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif form == "json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8-sig")
    else:
        data = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if form == "gz" else data)
    return path


def read(
    kind: str,
    folder: Path,
    rows: list[object],
    form: str = "jsonl",
    on_error: str = "fail",
    system: str | None = None,
    left_out: collections.Counter[str] | None = None,
    **fields: object,
):
    """What a source of a kind makes of rows. ``fields`` are the manifest's."""
    left_out = collections.Counter() if left_out is None else left_out
    path = written(folder, rows, form)
    source = SOURCES[kind].model_validate({"path": str(path), **fields})
    with Rejects(folder / "out", on_error) as rejects:
        reading = SourceContext(
            resolve=Path, schema=SCHEMA, rejects=rejects, folder=folder, tokens=ChatTokens(), system=system, left_out=left_out
        )
        return list(source.read(reading))


def told(placed):
    """Turns as (speaker, text, label) of each conversation."""
    return [[(turn.speaker, turn.text, turn.label) for turn in place.conversation.turns] for place in placed]


MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}]},
    {"role": "assistant", "content": "Bye."},
]
TURNS = [("User", "Hi", None), ("Assistant", "Hello.", None), ("User", "And now?", None), ("Assistant", "Bye.", "quality:4")]


def read_again(path: Path) -> None:
    """Read a file of messages for its errors."""
    source = SOURCES["messages"].model_validate({"path": str(path), "ratings": RATINGS})
    with Rejects(path.parent / "out") as rejects:
        list(source.read(SourceContext(resolve=Path, schema=SCHEMA, rejects=rejects, folder=path.parent)))

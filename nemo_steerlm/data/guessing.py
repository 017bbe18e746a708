"""What a file of ratings seems to be: which source reads it, which columns are prompt, answer and ratings, on which scale."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from nemo_steerlm.core.attributes import Attribute, AttributeSchema, preset
from nemo_steerlm.core.conversation import USER
from nemo_steerlm.core.errors import DataError, UsageError, Where, nearest
from nemo_steerlm.data.columns import Cells, GuessedRating, number_of, rating_columns, text_columns
from nemo_steerlm.data.objects import read_objects
from nemo_steerlm.data.rejects import Rejects
from nemo_steerlm.data.sources.helpsteer import refuse_helpsteer3, refuse_helpsteer3_folder
from nemo_steerlm.data.sources.messages import ROLES
from nemo_steerlm.data.tables import read_rows

SAMPLE = 2000
"""Rows that are looked at."""


class Guess(msgspec.Struct, frozen=True, kw_only=True):
    """How a file can be read."""

    kind: str
    """The field of ``spec.data``."""
    fields: dict[str, Any]
    """What the manifest says of the source, besides ``path`` and ``ratings``."""
    ratings: tuple[GuessedRating, ...] = ()
    preset: str | None = None
    """The attributes where the source itself has them."""
    notes: tuple[str, ...] = ()
    """What a person should look at."""

    @property
    def schema(self) -> AttributeSchema:
        """The attributes that the pipeline will have."""
        return preset(self.preset) if self.preset else AttributeSchema(attributes=tuple(rating.attribute for rating in self.ratings))

    def source(self, path: str) -> dict[str, Any]:
        """What the manifest says of the source."""
        columns: dict[str, Any] = {}
        key = "column" if self.kind == "ratedText" else "key"
        for rating in self.ratings:
            columns[rating.attribute.name] = {key: rating.key, **({"range": list(rating.range)} if rating.range else {})}
        ratings = {"ratings": columns} if columns and not self.preset and self.kind != "ultrafeedback" else {}
        if self.kind == "ratedText":
            fields = {name: value for name, value in self.fields.items() if name not in ("prompt", "promptColumn", "systemColumn")}
            file = {name: self.fields[name] for name in ("prompt", "promptColumn", "systemColumn") if name in self.fields}
            return {"files": [{"path": path, **file}], **fields, **ratings}
        return {"path": path, **self.fields, **ratings}


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What a person said instead of what would be guessed."""

    prompt: str | None = None
    answer: str | None = None
    ratings: tuple[str, ...] = ()


def guess(path: Path, wishes: Wishes | None = None) -> Guess:
    """How the file or folder can be read. Raises UsageError or DataError where nothing in it looks like rated text."""
    wishes = wishes or Wishes()
    if path.is_dir():
        if any(path.glob("train.jsonl*")) and any(path.glob("validation.jsonl*")):
            return Guess(kind="helpsteer", fields={}, preset="helpsteer")
        refuse_helpsteer3_folder(path)
        raise UsageError(f"{path}: a folder without train.jsonl and validation.jsonl; give one file: {_listed(path)}")
    rows, header = _rows(path)
    if not rows:
        raise DataError(f"{path}: no row that can be read")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    for wish in (wishes.prompt, wishes.answer):
        if wish is not None and wish not in keys:
            raise UsageError(f"{path}: no column {wish!r}; {nearest(wish, keys)}found: {', '.join(keys)}")
    refuse_helpsteer3(rows[0], Where(file=str(path)))
    shape = _by_shape(rows, keys, wishes)
    if shape is not None:
        return shape
    return _table(path, rows, keys, wishes, header=header)


def _rows(path: Path) -> tuple[list[Mapping[str, Any]], bool]:
    """The first rows, and whether the first line of the file names columns."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if not any(suffix in suffixes for suffix in (".csv", ".tsv", ".txt")):
        with tempfile.TemporaryDirectory() as folder, Rejects(Path(folder) / "rows", "skip") as rejects:
            return [row.value for row in itertools.islice(read_objects(path, rejects), SAMPLE)], True
    with_names = list(itertools.islice(read_rows(path), SAMPLE))
    names = list(with_names[0].cells) if with_names else []
    if len(names) == 1 and ";" in names[0]:
        raise UsageError(f"{path}: its columns are separated by ';'; save it with commas, or with tabs as .tsv")
    if names and any(number_of(name) is not None for name in names):
        return [row.cells for row in itertools.islice(read_rows(path, header=False), SAMPLE) if not row.error], False
    return [row.cells for row in with_names if not row.error], True


def _listed(folder: Path) -> str:
    files = [
        str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix in (".jsonl", ".parquet", ".csv", ".gz")
    ]
    return ", ".join(files[:8]) + (" …" if len(files) > 8 else "") if files else "it has none"


def _by_shape(rows: Sequence[Cells], keys: Sequence[str], wishes: Wishes) -> Guess | None:
    """A guess for data whose keys say what it is."""
    if "message_tree_id" in keys:
        return Guess(kind="oasst", fields={}, preset="oasst")
    if "completions" in keys or "score_chosen" in keys:
        return _ultrafeedback(binarized="score_chosen" in keys)
    if argilla := _argilla(rows, wishes):
        return argilla
    found = _conversations(rows, keys)
    if found is None and {"instruction", "output"} <= set(keys) and not (wishes.prompt or wishes.answer):
        found = "alpaca", {}
    if found is None:
        return None
    return Guess(kind=found[0], fields=found[1], ratings=_required(rating_columns(rows, wishes.ratings, bins=False), keys))


def _ultrafeedback(*, binarized: bool) -> Guess:
    names = ("quality",) if binarized else ("helpfulness", "honesty", "truthfulness", "instruction_following", "quality")
    high = 10 if binarized else 5
    attributes = [Attribute(name=name, low=1, high=high, default=high) for name in names]
    return Guess(
        kind="ultrafeedback",
        fields={},
        ratings=tuple(GuessedRating(key=a.name, attribute=a, range=(1, high), share=1.0) for a in attributes),
    )


def _conversations(rows: Sequence[Cells], keys: Sequence[str]) -> tuple[str, dict[str, Any]] | None:
    """The kind of data that has whole conversations, and its fields."""
    if "generations" in keys or {"generation", "instruction"} <= set(keys):
        return "distilabel", {}
    for key in keys:
        turns = next((row[key] for row in rows if isinstance(row.get(key), list) and row[key] and isinstance(row[key][0], dict)), None)
        if turns is not None and {"role", "content"} <= turns[0].keys():
            if ROLES.get(str(turns[-1].get("role") if isinstance(turns[-1], dict) else "").lower()) == USER:
                continue  # a question of several turns, whose answer is in another column
            return "messages", {} if key == "messages" else {"messages": key}
        if turns is not None and key == "conversations" and {"from", "value"} <= turns[0].keys():
            if any("label" in turn for turn in turns):
                raise UsageError("these are conversation records already: name them as train and validation under spec.data.records")
            return "sharegpt", {}
    return None


def _argilla(rows: Sequence[Cells], wishes: Wishes) -> Guess | None:
    """Argilla 2's nested and flat records, and those of Argilla 1."""
    answered = [responses for row in rows if (responses := _responses(row))]
    questions = list(dict.fromkeys(name for responses in answered for name in responses))
    if not questions:
        return None
    inner = [row["fields"] if isinstance(row.get("fields"), dict) else row for row in rows]
    no_texts = {*questions, *(f"{name}.suggestion" for name in questions)}
    prompt, answer, system = text_columns(inner, wishes.prompt, wishes.answer, without=no_texts)
    if prompt is None or answer is None:
        return None
    fields = {"promptField": prompt, "answerField": answer, **({"systemField": system} if system else {})}
    ratings = _required(rating_columns(answered, wishes.ratings, bins=False), questions)
    return Guess(kind="argilla", fields=fields, ratings=ratings)


def _responses(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    nested = row.get("responses")
    if isinstance(row.get("fields"), dict) and isinstance(nested, dict):
        return {name: [one["value"] for one in given if _is_response(one)] for name, given in nested.items() if isinstance(given, list)}
    found: dict[str, list[Any]] = {}
    for key, value in row.items():
        if key.endswith(".responses"):
            found[key.removesuffix(".responses")] = value if isinstance(value, list) else []
        elif isinstance(value, list) and value and isinstance(value[0], dict) and {"user_id", "value"} <= value[0].keys():
            found[key] = [one["value"] for one in value if _is_response(one)]
        elif isinstance(value, dict) and {"user_id", "value"} <= value.keys() and isinstance(value["value"], list):
            found[key] = value["value"]
    return found


def _is_response(one: object) -> bool:
    return isinstance(one, dict) and "value" in one


def _required(ratings: tuple[tuple[GuessedRating, ...], list[str]], keys: Sequence[str]) -> tuple[GuessedRating, ...]:
    if not ratings[0]:
        why = f" ({'; '.join(ratings[1])})" if ratings[1] else ""
        raise UsageError(f"no column of ratings found{why}; name one with --rating; found: {', '.join(keys)}")
    return ratings[0]


def _table(path: Path, rows: Sequence[Cells], keys: Sequence[str], wishes: Wishes, *, header: bool) -> Guess:
    prompt, answer, system = text_columns(rows, wishes.prompt, wishes.answer, without=set(wishes.ratings))
    if answer is None:
        raise UsageError(f"{path}: no column of texts found; name it with --text-column; found: {', '.join(keys)}")
    fields: dict[str, Any] = {} if header else {"header": False}
    notes = []
    if prompt is None:
        fields["prompt"] = f"Write a {answer}." if answer in ("review", "comment", "tweet", "reply", "answer") else "Write a text."
        notes.append(f"no column of prompts found: every text answers {fields['prompt']!r}; change it to what these texts are")
    else:
        fields["promptColumn"] = prompt
    if system:
        fields["systemColumn"] = system
    fields["textColumn"] = answer
    found, said = rating_columns(rows, wishes.ratings, bins=True)
    _required((found, said), keys)
    return Guess(kind="ratedText", fields=fields, ratings=found, notes=(*notes, *said))

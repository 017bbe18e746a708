"""Tables of rated text become records whose labels follow the ratings, split so that nothing leaks."""

from __future__ import annotations

import collections
import gzip
import json
import random
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from pydantic import ValidationError

from nemo_steerlm.core.attributes import Attribute, AttributeSchema
from nemo_steerlm.core.errors import DataError, UsageError
from nemo_steerlm.core.spec import from_plain
from nemo_steerlm.data.rejects import Rejects
from nemo_steerlm.data.sources.rated_text import RatedTextSource
from nemo_steerlm.data.sources.source import SourceContext

SCHEMA = AttributeSchema(attributes=(Attribute(name="positivity"), Attribute(name="verbosity")))


def read(source: dict[str, object], folder: Path, on_error="fail", system=None):
    """Records with their part: a split, and whether the label is hidden."""
    with Rejects(folder / "out", on_error) as rejects:
        reading = SourceContext(resolve=Path, schema=SCHEMA, rejects=rejects, folder=folder, system=system)
        placed = from_plain(RatedTextSource, source).read(reading)
        return [(f"{'' if each.teaches else 'hidden_'}{each.split}", each.conversation.to_record()) for each in placed]


def table(folder: Path, rows: int = 400, name: str = "t.tsv") -> Path:
    """id, mean rating from -4 to 4, text; no header, as vaderSentiment's ground truth."""
    made = random.Random(1)
    lines = [f"{i}\t{made.uniform(-4, 4):.4f}\t{'word ' * made.randint(1, 40)}no {name} {i}\r\n" for i in range(rows)]
    (folder / name).write_text("".join(lines))
    return folder / name


def described(path: Path, **more: object) -> dict[str, object]:
    return {
        "files": [{"path": str(path), "prompt": "Write a review."}],
        "textColumn": "2",
        "header": False,
        "ratings": {"positivity": {"column": "1"}},
        "computed": {"verbosity": {"measure": "words"}},
        **more,
    }


def label_of(record) -> tuple[int, int]:
    turn = record["conversations"][1]
    parsed = SCHEMA.parse(turn.get("label") or turn["gt_label"]).values
    return parsed["positivity"], parsed["verbosity"]


def test_bins_fill_equally_and_follow_the_ratings(tmp_path):
    path = table(tmp_path)
    ratings = {f"t.tsv:{i}": float(line.split("\t")[1]) for i, line in enumerate(path.read_text().splitlines(), 1)}
    placed = read(described(path, hidden=0.0), tmp_path)
    assert len(placed) == 400
    counts = collections.Counter(label_of(record)[0] for _, record in placed)
    assert counts == dict.fromkeys(range(5), 80)
    by_rating = sorted((ratings[record["tree_id"]], label_of(record)[0]) for _, record in placed)
    assert [level for _, level in by_rating] == sorted(level for _, level in by_rating)


@pytest.mark.parametrize("limit", [None, 150])
def test_bins_are_those_of_the_teaching_rows_in_use(tmp_path, limit):
    placed = read(described(table(tmp_path), hidden=0.6, limit=limit), tmp_path)
    teaching = collections.Counter(label_of(record)[0] for part, record in placed if not part.startswith("hidden"))
    assert sorted(teaching) == list(range(5))
    assert max(teaching.values()) - min(teaching.values()) <= 1


def test_a_record_has_upstreams_shape(tmp_path):
    part, record = read(described(table(tmp_path), hidden=0.0), tmp_path)[0]
    assert list(record) == ["conversations", "tree_id", "system", "mask", "type"]
    assert record["conversations"][0] == {"value": "Write a review.", "from": "User"}
    assert list(record["conversations"][1]) == ["value", "from", "label"]
    assert part in ("train", "val")


def test_hidden_labels_are_hidden_and_equal_texts_stay_together(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,score\n" + "".join(f'"text {i % 100}",{i % 5}\n' for i in range(1000)))
    source = {
        "files": [{"path": str(path), "prompt": "?"}],
        "ratings": {"positivity": {"column": "score", "range": [0, 4]}},
        "splitRatio": 0.8,
    }
    placed = read(source, tmp_path)
    parts = collections.defaultdict(set)
    for part, record in placed:
        turn = record["conversations"][1]
        parts[turn["value"]].add(part)
        assert ("gt_label" in turn, "label" in turn) == (part.startswith("hidden"), not part.startswith("hidden"))
    assert all(len(found) == 1 for found in parts.values())
    assert {part for found in parts.values() for part in found} == {"train", "val", "hidden_train", "hidden_val"}
    assert len(placed) == 1000


def test_what_is_removed_is_neither_learned_nor_measured(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("".join(f"{n}\t0\t@name {'@name ' * n}{'word ' * n}\n" for n in range(6)))
    placed = read(described(path, hidden=0.0, remove=r"@name\s*"), tmp_path)
    assert [record["conversations"][1]["value"] for _, record in placed] == [" ".join(["word"] * n) for n in range(1, 6)]
    assert [label_of(record)[1] for _, record in placed] == [0, 1, 2, 3, 4]


def test_ranges_are_linear_and_clamped(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(
        "".join(json.dumps({"body": f"t{i}", "stars": v, "q": f"Q{i}"}) + "\n" for i, v in enumerate([-9, 1, 2, 3, "4", 5, 99]))
    )
    source = {
        "files": [{"path": str(path), "promptColumn": "q"}],
        "textColumn": "body",
        "ratings": {"positivity": {"column": "stars", "range": [1, 5]}},
        "hidden": 0,
    }
    placed = read(source, tmp_path)
    assert [r["conversations"][1]["label"] for _, r in placed] == [f"positivity:{v}" for v in (0, 0, 1, 2, 3, 4, 4)]
    assert [r["conversations"][0]["value"] for _, r in placed] == [f"Q{i}" for i in range(7)]


def test_a_sample_takes_the_same_number_from_each_file_where_there_are_enough(tmp_path):
    files = [table(tmp_path, rows, f"{rows}.tsv") for rows in (10, 200, 300)]
    source = described(files[0], limit=110)
    source["files"] = [{"path": str(file), "prompt": "?"} for file in files]
    placed = read(source, tmp_path)
    assert collections.Counter(r["tree_id"].split(":")[0] for _, r in placed) == {"10.tsv": 10, "200.tsv": 50, "300.tsv": 50}
    assert placed == read(source, tmp_path)
    assert placed != read({**source, "seed": 11}, tmp_path)


@settings(max_examples=6)
@given(st.integers(0, 399))
def test_changing_a_row_moves_no_other(tmp_path_factory, row):
    folder = tmp_path_factory.mktemp("rows")
    path = table(folder)
    before = {r["tree_id"]: part for part, r in read(described(path, limit=None), folder)}
    lines = path.read_text().splitlines(keepends=True)
    lines[row] = f"{row}\t0.5\tsomething else\n"
    path.write_text("".join(lines))
    after = {r["tree_id"]: part for part, r in read(described(path), folder)}
    assert {k for k in before if before[k] != after[k]} <= {f"t.tsv:{row + 1}"}


def test_packed_tables_quotes_and_long_texts(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b'text,score\n"two\nlines, ""quoted""",1\n"one two three four",2\n'))
    source = {"files": [{"path": str(path), "prompt": "?"}], "ratings": {"positivity": {"column": "score", "range": [0, 4]}}, "hidden": 0}
    placed = read({**source, "maxWords": 3}, tmp_path)
    assert [r["conversations"][1]["value"] for _, r in placed] == ['two\nlines, "quoted"']


BAD = {
    "number": (b"a,high\n", "score: rating is 'high'; write a number"),
    "not-finite": (b"a,nan\n", "score: rating is 'nan'; write a number"),
    "short": (b"a\n", "no column 'score'"),
    "empty": (b",3\n", "text: text is ''"),
    "long": (b"a, b,3\n", "3 cells under 2 columns; put texts in quotes that have the separator in them"),
    "utf-8": (b"\xff,3\n", "invalid utf-8"),
    "control": (b"<extra_id_1>,3\n", "text: control token '<extra_id_1>'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_or_set_aside(tmp_path, name):
    row, sentence = BAD[name]
    path = tmp_path / "t.csv"
    path.write_bytes(b"text,score\ngood,1\n" + row + b"fine,2\n")
    source = {"files": [{"path": str(path), "prompt": "?"}], "ratings": {"positivity": {"column": "score", "range": [0, 4]}}}
    with pytest.raises(DataError) as error:
        read(source, tmp_path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert sentence in str(error.value)
    assert len(read(source, tmp_path, "skip")) == 2
    assert json.loads((tmp_path / "out.rejected.jsonl").read_text())["line"] == 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ratings": {"positivty": {"column": "1"}}}, "did you mean positivity"),
        ({"computed": {"positivity": {}}}, "both rated and computed"),
        ({"ratings": {"positivity": {"column": "1", "range": [2, 2]}}}, "two different ratings"),
        ({"files": [{"path": "x.xlsx", "prompt": "?"}]}, "name it .csv"),
        ({"files": [{"path": "x.csv"}]}, "exactly one of prompt and promptColumn"),
    ],
)
def test_a_description_that_cannot_be_meant(tmp_path, change, sentence):
    with pytest.raises((UsageError, DataError, ValidationError), match=sentence):
        read(described(table(tmp_path, 8), **change), tmp_path)


@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "parquet"])
def test_a_table_with_columns_for_prompt_and_system_prompt(tmp_path, form):
    """Each row brings its own question and system prompt; an empty one is that of all rows."""
    rows = [{"q": f"Q{i}", "s": ("S", "")[i % 2], "a": f"A{i}", "score": i} for i in range(4)]
    path = tmp_path / f"t.{form}"
    if form == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif form == "csv":
        lines = ["q,s,a,score", *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines), encoding="utf-8-sig")
    else:
        path.write_text(json.dumps(rows) if form == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    source = {
        "files": [{"path": str(path), "promptColumn": "q", "systemColumn": "s"}],
        "textColumn": "a",
        "ratings": {"positivity": {"column": "score", "range": [0, 3]}},
        "hidden": 0.0,
    }
    found = [record for _, record in read(source, tmp_path, system="all")]
    assert [record["system"] for record in found] == ["S", "all", "S", "all"]
    assert [[turn["value"] for turn in record["conversations"]] for record in found] == [[f"Q{i}", f"A{i}"] for i in range(4)]
    assert [record["conversations"][1]["label"] for record in found] == [f"positivity:{round(i * 4 / 3)}" for i in range(4)]


CHAT = [("system", "S"), ("user", "Q1"), ("assistant", "A1"), ("user", "Q2")]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_prompt_may_be_a_chat_of_several_turns(tmp_path, form):
    path = tmp_path / f"t.{form}"

    def write(*turns):
        rows = [{"q": [{"role": role, "content": text} for role, text in turns], "a": "A2", "score": 3}]
        if form == "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    source = {
        "files": [{"path": str(path), "promptColumn": "q"}],
        "textColumn": "a",
        "ratings": {"positivity": {"column": "score", "range": [0, 4]}},
        "hidden": 0.0,
    }
    write(*CHAT)
    [(_, record)] = read(source, tmp_path)
    assert record["system"] == "S"
    assert [(turn["from"], turn["value"], turn.get("label")) for turn in record["conversations"]] == [
        ("User", "Q1", None),
        ("Assistant", "A1", None),
        ("User", "Q2", None),
        ("Assistant", "A2", "positivity:3"),
    ]
    for turns, sentence in (
        (CHAT[:3], ":1: q: no question; write a chat that begins and ends with a turn of the user"),
        (CHAT[2:], ":1: q: no question"),
        ([("tool", "4")], r":1: q\[0\].role: role 'tool' is not supported"),
        ([("user", "<extra_id_1>")], r":1: q\[0\]: control token '<extra_id_1>' in the text"),
    ):
        write(*turns)
        with pytest.raises(DataError, match=sentence):
            read(source, tmp_path)


def test_a_header_that_names_two_columns_alike_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,score,,score,\nGood.,1,,4,\n")
    with pytest.raises(DataError, match=r"t.csv:1: several columns are called 'score'; name each differently"):
        read(described(path, header=True, textColumn="text", ratings={"positivity": {"column": "score"}}), tmp_path)


def test_a_table_without_a_header_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("3\ttext\n", encoding="utf-8-sig")
    source = described(path, textColumn="1", ratings={"positivity": {"column": "0", "range": [0, 4]}}, hidden=0.0)
    assert label_of(read(source, tmp_path)[0][1])[0] == 3

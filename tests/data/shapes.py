"""Files of ratings in the shapes that people have them in, made up here: no row is of anybody's data set."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

WORDS = ("the", "a", "small", "bright", "cat", "walked", "over", "hills", "and", "sang", "about", "rivers", "while", "people")


def text(draw: random.Random, words: int) -> str:
    """So many words, as a sentence."""
    return " ".join(draw.choices(WORDS, k=words)).capitalize() + "."


def spreadsheet(path: Path, rows: int = 60) -> None:
    """A CSV as a spreadsheet saves it: a number of the row, who rated, a rating that is missing."""
    draw = random.Random(1)
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        out = csv.writer(file)
        out.writerow(["id", "Prompt", "Answer", "Helpfulness", "is it funny?", "annotator"])
        for i in range(rows):
            funny = "" if i == 7 else draw.randint(1, 5)
            out.writerow([i, text(draw, 6), text(draw, draw.randint(5, 40)), 1 + i % 5, funny, draw.choice([1, 2, 3])])


def scored_texts(path: Path, rows: int = 60) -> None:
    """A table without a header and without prompts: number, mean of raters, text. The shape of Hutto and Gilbert's tweets."""
    draw = random.Random(2)
    path.write_text("".join(f"{i + 1}\t{draw.gauss(0, 1.5):.2f}\t{text(draw, 12)}\n" for i in range(rows)))


def chats(path: Path, rows: int = 60) -> None:
    """OpenAI's messages, scores in an object of their own."""
    draw = random.Random(3)
    path.write_text("".join(json.dumps(_chat(draw, i)) + "\n" for i in range(rows)))


def _chat(draw: random.Random, i: int) -> dict[str, Any]:
    turns = [("system", "Be kind."), ("user", text(draw, 5)), ("assistant", text(draw, 20))]
    scores = {"quality": None if i % 4 == 3 else i % 5, "tone": draw.random()}
    return {"messages": [{"role": role, "content": said} for role, said in turns], "scores": scores, "id": f"x{i}"}


def argilla(path: Path, rows: int = 60) -> None:
    """Argilla 2's records as JSON: two raters, and a question that is answered with a text."""
    draw = random.Random(4)
    records = [
        {
            "id": str(i),
            "fields": {"instruction": text(draw, 5), "completion": text(draw, 20)},
            "metadata": {},
            "suggestions": {},
            "responses": {
                "quality": [{"value": 1 + i % 7, "user_id": "a"}, {"value": 1 + (i + 1) % 7, "user_id": "b"}],
                "comment": [{"value": "ok", "user_id": "a"}],
            },
            "vectors": {},
            "status": "completed",
        }
        for i in range(rows)
    ]
    path.write_text(json.dumps(records))


def columns(path: Path, rows: int = 60) -> None:
    """Parquet with HelpSteer's kind of columns, and one that is no rating."""
    draw = random.Random(5)
    table = [
        {
            "question": text(draw, 7),
            "response": text(draw, 30),
            "correctness": i % 5,
            "complexity": i % 3,
            "response_length": i * 7,
            "split": "a",
        }
        for i in range(rows)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(table), path)


def comparisons(path: Path, rows: int = 60) -> None:
    """UltraFeedback as its authors publish it: some answers to each instruction, each rated by aspect in words of numbers."""
    draw = random.Random(6)
    path.write_text("".join(json.dumps({"instruction": text(draw, 6), "completions": _answers(draw, i)}) + "\n" for i in range(rows)))


def _answers(draw: random.Random, i: int) -> list[dict[str, Any]]:
    aspects = ("helpfulness", "honesty", "truthfulness", "instruction_following")
    return [
        {
            "model": "m",
            "response": text(draw, 15),
            "annotations": {name: {"Rating": "N/A" if i == 3 else str(1 + (i + j) % 5), "Rationale": "x"} for name in aspects},
            "fine-grained_score": 1.0 + (i + j) % 5,
        }
        for j in range(2)
    ]


def shared_chats(path: Path, rows: int = 60) -> None:
    """ShareGPT's conversations as Parquet, of two questions each, with a score beside them."""
    draw = random.Random(7)
    turns = ("human", "gpt", "human", "gpt")
    table = [{"conversations": [{"from": who, "value": text(draw, 8)} for who in turns], "score": 1.0 + i % 5} for i in range(rows)]
    parquet.write_table(pyarrow.Table.from_pylist(table), path)


SHAPES = {
    "ratings.csv": spreadsheet,
    "tweets.tsv": scored_texts,
    "chats.jsonl": chats,
    "argilla.json": argilla,
    "table.parquet": columns,
}
"""By file name."""

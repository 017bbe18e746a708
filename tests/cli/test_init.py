"""``steerlm init`` as people call it: a process, a file, and what stands in it."""

from __future__ import annotations

import os
import subprocess
import sys

from nemo_steerlm.pipeline.manifest import load
from tests.data.shapes import spreadsheet
from tests.inputs import STORIES


def init(folder, *flags):
    command = [sys.executable, "-m", "nemo_steerlm.cli.main", "init", "ratings.csv", "--base", str(STORIES), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_spreadsheet_becomes_a_pipeline_file(tmp_path):
    spreadsheet(tmp_path / "ratings.csv")
    done = init(tmp_path, "--yes")
    assert done.returncode == 0, done.stderr
    for sentence in (
        "ratings.csv is read as data.ratedText",
        "helpfulness: column Helpfulness, ratings 1 to 5, levels 1 to 5; 100% of rows have one",
        "<extra_id_2>helpfulness:1,is_it_funny:",
        "left out, 1 rows: rating is ''",
        "Too thin to learn well, with less than 30 rated texts: helpfulness at 1, 2, 3, 4, 5",
        "million parameters",
        "wrote ratings.yaml; next: steerlm run ratings.yaml",
    ):
        assert sentence in done.stdout
    assert done.stdout.count("⟦") == 5, "the answer of each record is learned"
    pipeline = load(tmp_path / "ratings.yaml")
    assert pipeline.spec.data.references() == ("ratings.csv",)
    # Of 40 words and more tokens: this base has 512 tokens, of two letters or so.
    assert pipeline.spec.model.max_sequence_length >= 192
    again = init(tmp_path, "--yes")
    assert (again.returncode, again.stderr.splitlines()) == (
        2,
        ["steerlm: ratings.yaml is there already: add --force to replace it, or name another with --output"],
    )


def test_nothing_is_asked_where_nobody_can_answer(tmp_path):
    spreadsheet(tmp_path / "ratings.csv")
    done = init(tmp_path)
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        ["steerlm: this is no terminal, so nothing can be asked: add --yes to take what is guessed"],
    )


def test_on_a_terminal_it_asks(tmp_path):
    """The guess is wrong; other columns are named; then all is right."""
    spreadsheet(tmp_path / "ratings.csv")
    command = [sys.executable, "-m", "nemo_steerlm.cli.main", "init", "ratings.csv", "--base", str(STORIES)]
    ours, theirs = os.openpty()
    with subprocess.Popen(command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        os.write(ours, b"n\nPrompt\nAnswer\nHelpfulness\ny\n\ny\n")
        said = b""
        try:
            while chunk := os.read(ours, 4096):
                said += chunk
        except OSError:  # the other side has closed
            pass
        os.close(ours)
        assert process.wait(60) == 0, said
    assert said.count(b"Is that right?") == 2
    assert load(tmp_path / "ratings.yaml").spec.attributes.schema_().names == ("helpfulness",)

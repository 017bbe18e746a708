"""Every command of the documentation is run by a test, or the page says what it needs."""

from __future__ import annotations

import importlib.util
import re

import pytest

from tests.docs.commands import ELSEWHERE, PAGES, ROOT, RUNNERS, SHELLS, commands, fences

LANGUAGES = {*SHELLS, "text", "yaml", "json", "python", "lua", "mermaid"}
PROGRAMS = {"curl", "docker", "helm", "kind", "kubectl", "make", "pip", "pytest", "python", "steerlm", "torchrun"}
RUN = {page for pages in RUNNERS.values() for page in pages}
MADE = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
EXTRAS = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)


def unaccounted(page):
    """What a page has people type that nothing runs and that is not marked."""
    hidden = [
        line
        for language, text in fences(page)
        if language not in SHELLS
        for line in text.splitlines()
        if line.removeprefix("$ ").split(" ")[0] in PROGRAMS and not line.startswith("$ ")
    ]
    return hidden + [line for line in commands(page) if page not in RUN and line not in ELSEWHERE]


@pytest.mark.parametrize("page", PAGES)
def test_a_command_is_run_or_says_what_it_needs(page):
    assert {language for language, _ in fences(page)} <= LANGUAGES
    assert unaccounted(page) == []


@pytest.mark.parametrize("block", ["```console\nsteerlm doctor\n```\n", "```text\nkubectl get slp\n```\n"])
def test_a_command_that_nothing_runs_is_noticed(block, tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text(block)
    monkeypatch.setattr("tests.docs.commands.ROOT", tmp_path)
    assert len(unaccounted("page.md")) == 1
    (tmp_path / "page.md").write_text("```console\n# needs a GPU\nsteerlm doctor\n```\n")
    assert unaccounted("page.md") == []


def test_what_runs_commands_is_there_and_so_are_the_commands_left_out():
    named = [path for reason in ELSEWHERE.values() for path in re.findall(r"(?:tests|docs)/\S+\.\w+", reason)]
    assert [path for path in (*RUNNERS, *RUN, *named) if not (ROOT / path).is_file()] == []
    assert [page for page in RUN if not commands(page)] == []
    assert set(ELSEWHERE) <= {line for page in PAGES for line in commands(page)}


def test_targets_modules_and_extras_that_pages_name_are_there():
    for page in (page for page in PAGES if page != "CHANGELOG.md"):  # which also says what there was
        text = (ROOT / page).read_text(encoding="utf-8")
        typed = "\n".join([*re.findall(r"`([^`\n]+)`", text), *commands(page)])
        assert [target for target in re.findall(r"^make ([a-z][a-z-]*)", typed, re.MULTILINE) if target not in MADE] == [], page
        for module in re.findall(r"\bpython -m ([a-z_.]+)", typed):
            assert importlib.util.find_spec(module), f"{page}: {module}"
        for extras in re.findall(r"nemo_steerlm\[([a-z,]+)\]", typed):
            assert set(extras.split(",")) <= {*EXTRAS}, f"{page}: {extras}"

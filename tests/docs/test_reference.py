"""The reference pages are what the code says, and links between pages lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("k8s/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("tests/**/*.md")]
)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_generated_pages_are_up_to_date():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    stale = [path.name for path, text in generate.pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    assert not stale, "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(page):
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link and not link.startswith("mailto:")]
    assert [link for link in links if not (page.parent / link).exists()] == []


ANSWERS = {
    "the newline rule": ("core/template.py", 'header             S "System" N system E'),
    "the loss mask": ("core/encoding.py", "def loss_mask("),
    "the label parser": ("core/labels.py", "def split("),
    "what makes a stage current (a cache hit)": ("pipeline/currency.py", "def examine("),
    "the source of a 429": ("serving/errors.py", "QueueFullError: 429"),
    "the operator's rights (RBAC rules)": ("charts/steerlm-operator/templates/_rules.tpl", "resources: [steerlmpipelines]"),
}


@pytest.mark.parametrize("question", ANSWERS)
def test_what_a_newcomer_looks_for_is_two_steps_from_the_page_on_the_architecture(question):
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    [row] = re.findall(rf"^\| {re.escape(question)} \| (.*) \|$", page, re.MULTILINE)
    named = re.findall(r"`([^`]+\.\w+)`", row)
    files = [path if (path := ROOT / name).exists() else ROOT / "nemo_steerlm" / name for name in named]
    assert all(file.is_file() for file in files)
    name, text = ANSWERS[question]
    assert text in files[named.index(name)].read_text(encoding="utf-8")

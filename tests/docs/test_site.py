"""The site is built strictly and without a network, and what its pages tell people to type exists."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import click
import pytest
import typer
import yaml

from nemo_steerlm.cli.main import COMMANDS, application
from nemo_steerlm.core import errors
from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.train_spec import TrainSpec
from nemo_steerlm.serving.errors import HTTP_CODES, STATUSES
from nemo_steerlm.training.config import compose
from tests.docs.commands import fences

ROOT = Path(__file__).parents[2]
PAGES = [path for pattern in ("*.md", "docs/**/*.md", "k8s/*.md", "examples/*.md", "charts/**/*.md") for path in sorted(ROOT.glob(pattern))]
TROUBLESHOOTING = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
OVERRIDES = (ROOT / "docs/reference/overrides.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built as ``make docs`` does. A warning is an error: a link that leads nowhere, a page that no menu has."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


LOADED = re.compile(r"<(?:script|img|iframe)[^>]*\ssrc=\"?([^\s\">]+)|<link[^>]*rel=\"?(?:stylesheet|icon|preload|preconnect)[^>]*>")


def test_pages_load_nothing_from_other_servers(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        for found in LOADED.finditer(page.read_text(encoding="utf-8")):
            assert "//" not in found.group(0).replace("</", ""), f"{page.name}: {found.group(0)}"


def test_pages_from_outside_are_there_and_linked(site):
    first = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="operator.html"' in first
    assert (site / "start/own-data.html").is_file()
    assert 'href="../how-to/several-sources.html"' in (site / "start/own-data.html").read_text(encoding="utf-8")


def commands():
    """Every ``steerlm COMMAND …`` in a block or between backticks, with its page."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if page.name == "command-line.md":
            continue
        joined = text.replace("\\\n", " ")
        lines = [line for block in re.findall(r"^```[^\n]*\n(.*?)^```", joined, re.MULTILINE | re.DOTALL) for line in block.splitlines()]
        lines += re.findall(r"`(steerlm [^`]+)`", " ".join(text.split()))
        for line in lines:
            found = re.match(r"\s*(?:\$ )?steerlm (\S.*)", line)
            if found and not found.group(1).startswith(("/", "COMMAND", "|")):
                yield pytest.param(found.group(1), id=f"{page.relative_to(ROOT)}: {found.group(1)[:60]}")


@pytest.mark.parametrize("line", dict.fromkeys(commands()))
def test_a_command_in_the_documentation_has_the_flags_that_it_is_given(line):
    words = shlex.split(re.split(r"\s[#|&>]|;", line)[0].rstrip("&"))
    if words[0].startswith("--"):
        assert words[0] in ("--help", "--version", "--install-completion", "--show-completion")
        return
    name = words[0].rstrip(",.")
    assert name in COMMANDS
    command = typer.main.get_command(application([name])).commands[name]
    # In a sentence a flag stands without its value.
    with click.Context(command, info_name=name) as context, contextlib.suppress(click.BadOptionUsage):
        command.make_parser(context).parse_args([word.rstrip(",") for word in words[1:] if word != "…"])


def test_a_flag_that_is_not_there_is_noticed():
    with pytest.raises(click.NoSuchOption):
        test_a_command_in_the_documentation_has_the_flags_that_it_is_given("init ratings.csv --columns a")


def test_every_error_has_its_cause_and_what_mends_it():
    codes = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SteerLMError)}
    heads = " ".join(re.findall(r"^### (.*)", TROUBLESHOOTING, re.MULTILINE))
    assert {code for code in {*codes, 130, 143} if not re.search(rf"\b{code}\b", heads)} == set()
    answers = {(status, kind.code) for kind, status in STATUSES.items()} | set(HTTP_CODES.items())
    rows = [line for line in TROUBLESHOOTING.splitlines() if re.match(r"\| \d{3} \|", line)]
    missing = [(status, code) for status, code in answers if not any(row.startswith(f"| {status} ") and f"`{code}`" in row for row in rows)]
    assert missing == []


def test_overrides_in_the_documentation_are_keys_with_those_defaults():
    config = compose([])
    wanted = OVERRIDES.partition("## One setting")[0]
    rows = re.findall(r"^\| `([a-z_]+\.[^|]*)` \| `([^`]*)` \|", wanted, re.MULTILINE)
    assert len(rows) > 12
    for keys, default in rows:
        for key in keys.split("`, `"):
            found: object = config
            for part in key.split("."):
                found = found[part]
            assert str("null" if found is None else found).lower() == default.lower(), key


def test_a_setting_has_one_default_whichever_way_it_is_set():
    """A row says ``a; trainer: b`` where they differ on purpose."""
    config, fields = compose([]), {field.alias: field.default for field in TrainSpec.model_fields.values()}
    rows = re.findall(r"^\| `(\w+)` \| `([a-z_.]+)` \| `([^`]*)`(?:; trainer: `([^`]*)`)? \|", OVERRIDES, re.MULTILINE)
    assert {"learningRate", "constantSteps", "maxSteps", "weightDecay", "validateEvery", "seed"} <= {row[0] for row in rows}
    for field, key, default, other in rows:
        found: object = config
        for part in key.split("."):
            found = found[part]
        assert (str(fields[field]), str(found)) == (default, other or default), field


PARTS = [
    pytest.param(part, id=f"{page}-{number}")
    for page in (
        "docs/training.md",
        "docs/reference/overrides.md",
        *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/how-to/*.md"))),
    )
    for number, (language, part) in enumerate(fences(page))
    if language == "yaml"
]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_pipeline_file_in_the_documentation_is_valid(part):
    """The parts about clusters are tried in ``test_kubernetes_pages.py``."""
    base = {"attributes": {"preset": "steerlm9"}, "data": {"oasst": {"path": "t.jsonl"}}, "model": {"base": "base"}}
    PipelineSpec.model_validate(base | yaml.safe_load(part)["spec"])

"""Write the reference pages from the code they describe: ``python docs/generate.py``. A test compares them.

| page | made from |
|---|---|
| manifest.md | ``nemo_steerlm/pipeline/manifest.py`` |
| command-line.md | ``steerlm COMMAND --help`` |
| exit-codes.md | ``nemo_steerlm/core/errors.py`` |
| http-errors.md | ``nemo_steerlm/serving/errors.py`` |
| metrics.md | ``nemo_steerlm/serving/metrics.py``, ``k8s/steerlm_operator/metrics.py`` |
| environment.md | ``nemo_steerlm/core/environment.py`` |
"""

from __future__ import annotations

import ast
import http
import inspect
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import prometheus_client
import steerlm_operator.metrics  # noqa: F401  registers the metrics
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from nemo_steerlm.cli.main import COMMANDS, application
from nemo_steerlm.core import environment as variables
from nemo_steerlm.core import errors
from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.serving.errors import HTTP_CODES, STATUSES
from nemo_steerlm.serving.metrics import Metrics

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Made by `make docs`; edit the code it is made from. -->\n"


def pages() -> dict[Path, str]:
    """Every reference page and its text."""
    made = {
        "manifest": manifest(),
        "command-line": command_line(),
        "exit-codes": exit_codes(),
        "http-errors": http_errors(),
        "metrics": metrics(),
        "environment": environment(),
    }
    return {FOLDER / f"{name}.md": f"{NOTE}\n{text.strip()}\n" for name, text in made.items()}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; what would end a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("``", "`")


def manifest() -> str:
    """Every field of ``spec``, with its type, default and description."""
    schema = PipelineSpec.model_json_schema(by_alias=True)
    rows = [(f"`{path}`", kind, default, text) for path, kind, default, text in _fields(schema, schema["$defs"], "")]
    return "# The manifest, field by field\n\nFields of `spec`. Lists and maps show their entries under `[]` and `{}`.\n\n" + table(
        ("field", "type", "default", "what it is"), rows
    )


def _fields(node: dict[str, Any], known: dict[str, Any], prefix: str) -> Iterator[tuple[str, ...]]:
    for name, field in node.get("properties", {}).items():
        path = f"{prefix}{name}"
        inner, suffix = _target(field, known)
        required = name in node.get("required", ())
        default = "required" if required else _default(field.get("default"), inner)
        yield path, _kind(field, known), default, _described(field, inner)
        if inner is not None:
            yield from _fields(inner, known, f"{path}{suffix}.")


def _described(field: dict[str, Any], inner: dict[str, Any] | None) -> str:
    """What is said of a field; where nothing is, what is said of the kind that it holds."""
    said = (node.get("description") for node in (field, *field.get("anyOf", ()), inner or {}))
    return " ".join(next((text for text in said if text), "").split())


def _target(field: dict[str, Any], known: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The object that a field holds, directly, in a list or in a map; None for plain values."""
    for option in (field, *field.get("anyOf", ())):
        if "$ref" in option:
            target = known[option["$ref"].rpartition("/")[2]]
            return (target if "properties" in target else None), ""
        for key, suffix in (("items", "[]"), ("additionalProperties", "{}")):
            if isinstance(option.get(key), dict) and "$ref" in option[key]:
                return known[option[key]["$ref"].rpartition("/")[2]], suffix
    return None, ""


def _kind(field: dict[str, Any], known: dict[str, Any]) -> str:
    options = [option for option in field.get("anyOf", (field,)) if option.get("type") != "null"]
    names = []
    for option in options:
        if "enum" in option or "const" in option:
            names.append(", ".join(f"`{value}`" for value in option.get("enum", [option.get("const")])))
        elif "$ref" in option:
            target = known[option["$ref"].rpartition("/")[2]]
            names.append(", ".join(f"`{value}`" for value in target["enum"]) if "enum" in target else "object")
        else:
            names.append(_plain_kind(option))
    return " or ".join(dict.fromkeys(names))


def _plain_kind(option: dict[str, Any]) -> str:
    kind = {"array": "list", "object": "map", "integer": "whole number", "boolean": "true, false"}.get(
        option.get("type", ""), option.get("type", "any")
    )
    low = option.get("minimum", option.get("exclusiveMinimum"))
    high = option.get("maximum", option.get("exclusiveMaximum"))
    return f"{kind}, {low:g} to {high:g}" if low is not None and high is not None else kind


def _default(value: Any, inner: dict[str, Any] | None) -> str:
    if value is None or inner is not None:
        return ""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def command_line() -> str:
    """The help of every command."""
    runner = CliRunner()
    parts = ["# The command line\n\nWhat `steerlm COMMAND --help` prints."]
    for name, line in COMMANDS.items():
        text = runner.invoke(application([name]), [name, "--help"], prog_name="steerlm", env={"COLUMNS": "120", "TERM": "dumb"}).output
        parts.append(f"## steerlm {name}\n\n{line}\n\n```text\n{text.strip()}\n```")
    return "\n\n".join(parts)


def exit_codes() -> str:
    """Every error class with its exit code."""
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.SteerLMError)]
    rows = [(str(c.exit_code), f"`{c.__name__}`", _first_line(c), _again(c.exit_code)) for c in sorted(classes, key=lambda c: c.exit_code)]
    rows = [("0", "", "Done.", ""), *rows, ("130", "", "Stopped by Ctrl-C.", "yes"), ("143", "", "Stopped by SIGTERM after saving.", "yes")]
    return "# Exit codes\n\nThe same from every command, script, stage and pod.\n\n" + table(
        ("code", "error", "meaning", "worth a retry"), rows
    )


def _again(code: int) -> str:
    return "no" if code in errors.PERMANENT_EXIT_CODES else "yes" if code in errors.RETRIABLE_EXIT_CODES else ""


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").splitlines()[0]


def http_errors() -> str:
    """Every status that the server answers on purpose."""
    rows = [(str(status), f"`{kind.code}`", _first_line(kind)) for kind, status in STATUSES.items()]
    rows += [(str(status), f"`{code}`", http.HTTPStatus(status).description) for status, code in HTTP_CODES.items()]
    body = '`{"error": {"message": …, "type": …, "param": …, "code": …}}`'
    head = f"# HTTP errors\n\nThe body is OpenAI's: {body}; `param` is the wrong field or null. 429 and 503 carry `Retry-After`.\n\n"
    return head + table(("status", "code", "meaning"), sorted(rows))


def metrics() -> str:
    """Metrics of servers and of the operator."""
    server = _metric_rows(Metrics().registry)
    operator = [(name, kind, text) for name, kind, text in _metric_rows(prometheus_client.REGISTRY) if name.startswith("`steerlm_")]
    head = ("metric", "type", "what it counts")
    return f"# Metrics\n\n## A server's `/metrics`\n\n{table(head, server)}\n\n## The operator's `/metrics`\n\n{table(head, operator)}"


def _metric_rows(registry: CollectorRegistry) -> list[tuple[str, str, str]]:
    suffixes = {"counter": "_total"}
    return [(f"`{found.name}{suffixes.get(found.type, '')}`", found.type, found.documentation) for found in registry.collect()]


def environment() -> str:
    """Every environment variable that the package reads."""
    tree = ast.parse(inspect.getsource(variables)).body
    rows = []
    for node, after in itertools.pairwise(tree):
        # A constant, and the string below it that says what it is.
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            described = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            rows.append((f"`{node.value.value}`", " ".join(str(described).split())))
    return "# Environment variables\n\n" + table(("variable", "what it is"), sorted(rows))


def main() -> None:
    """Write what has changed."""
    FOLDER.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

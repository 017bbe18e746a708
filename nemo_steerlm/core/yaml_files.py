"""YAML files, read strictly: what readers of YAML disagree about is refused with its line, and so is a key that is written twice.

A manifest is read by this module on one machine and by kubectl for a cluster. PyYAML's own loader takes the last of two equal keys, reads
``010`` as 8, ``2026-11-30`` as a date and ``1e-5`` as a text; kubectl (``sigs.k8s.io/yaml``) differs in each of these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nemo_steerlm.core.errors import UsageError, shown

FieldPath = tuple[str | int, ...]
MOST_VALUES = 100_000
"""In one document, aliases counted as often as they are used: a few lines of aliases to aliases would fill the memory."""

_CORE = "tag:yaml.org,2002:"
_UNCLEAR = "!unclear"
_MERGE = f"{_CORE}merge"
_PLAIN = {f"{_CORE}{kind}" for kind in ("str", "int", "float", "bool", "null")}


class Document(NamedTuple):
    """One YAML document as plain data: what JSON can say."""

    value: Any
    lines: Mapping[FieldPath, int]
    """The 1-based line of each value, by the keys and indexes that lead to it."""
    texts: Mapping[FieldPath, str]
    """What was written for each scalar that is no text."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # not the base class's


def _resolve(kind: str, pattern: str, first: str) -> None:
    tag = kind if kind.startswith("!") else f"{_CORE}{kind}"
    _Loader.add_implicit_resolver(tag, re.compile(f"^(?:{pattern})$"), list(first))


_resolve("bool", "yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO")
_resolve("null", "~|null|Null|NULL|", "~nN\0")
_Loader.add_implicit_resolver(f"{_CORE}null", re.compile("^$"), [""])
_resolve("merge", "<<", "<")
_resolve("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789")
_resolve("float", r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789")
_resolve("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.")
# YAML 1.1 has octal and binary numbers, underscores between digits, and y for yes; YAML 1.2 has not.
_resolve(_UNCLEAR, r"[-+]?0[0-9_]+(?:\.[0-9_]*)?|[-+]?0[ob][0-9_]+|[-+]?[0-9][0-9_]*_[0-9_]*(?:\.[0-9_]*)?|[yYnN]", "-+0123456789yYnN")


class _Dumper(yaml.SafeDumper):
    """Quotes what either reader would not read as a text."""

    yaml_implicit_resolvers = {
        first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, ()), *_Loader.yaml_implicit_resolvers.get(first, ())]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the base class's signature
        return True


def dump_yaml(value: Any) -> str:
    """Plain data as YAML that ``read_yaml``, PyYAML and kubectl read alike: keys in their order, a text on one line, small parts on one."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=None)


def read_yaml(path: str | Path) -> list[Document]:
    """The documents of a file, empty ones left out. Raises UsageError with file and line where it cannot be read or is no plain YAML."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not YAML: {error}; save the file as UTF-8") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> list[Document]:
    """The documents of a text, empty ones left out. Raises UsageError as ``read_yaml`` does, ``source`` standing for the file."""
    try:
        loader = _Loader(text)
        found = []
        while loader.check_node():
            reading = _Reading(loader, source)
            node = loader.get_node()
            value = None if node is None else reading.value(node, ())
            if value is not None:
                found.append(Document(value, reading.lines, reading.texts))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        said = ", ".join(" ".join(part.split()) for part in (error.context, error.problem) if part)
        raise UsageError(f"{source}{line}: not YAML: {said}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    return found


class _Reading:
    """One document's nodes becoming plain data."""

    def __init__(self, loader: _Loader, source: str) -> None:
        self.lines: dict[FieldPath, int] = {}
        self.texts: dict[FieldPath, str] = {}
        self._loader = loader
        self._source = source
        self._values = 0
        self._open: set[int] = set()

    def value(self, node: yaml.Node, path: FieldPath) -> Any:
        """The value of ``node``, whose place in the document is ``path``."""
        self._values += 1
        if self._values > MOST_VALUES:
            raise self._error(node, f"more than {MOST_VALUES} values, aliases included")
        if id(node) in self._open:
            raise self._error(node, "an alias that stands inside what it means")
        self.lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._open.add(id(node))
        if isinstance(node, yaml.MappingNode):
            found: Any = self._mapping(node, path)
        elif node.tag == f"{_CORE}seq":
            found = [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        else:
            raise self._error(node, f"the tag {node.tag} is not supported; leave it out")
        self._open.discard(id(node))
        return found

    def _mapping(self, node: yaml.MappingNode, path: FieldPath) -> dict[str, Any]:
        if node.tag != f"{_CORE}map":
            raise self._error(node, f"the tag {node.tag} is not supported; leave it out")
        found: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                found |= self._merged(value, path)
        own: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                continue
            name = self._key(key)
            line = key.start_mark.line + 1
            if name in own:
                raise self._error(key, f"the key {shown(name)} stands here and in line {own[name]}; keep one of them")
            own[name] = line
            for stale in [known for known in self.lines if known[: len(path) + 1] == (*path, name)] if name in found else ():
                del self.lines[stale]
                self.texts.pop(stale, None)
            found[name] = self.value(value, (*path, name))
            self.lines[(*path, name)] = line
        return found

    def _merged(self, node: yaml.Node, path: FieldPath) -> dict[str, Any]:
        """What ``<<`` takes over: a mapping, or several of which the first that has a key gives it."""
        several = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, Any] = {}
        for item in reversed(several):
            if not isinstance(item, yaml.MappingNode):
                raise self._error(item, "<< takes a mapping or a list of them")
            found |= self.value(item, path)
        return found

    def _key(self, node: yaml.Node) -> str:
        if isinstance(node, yaml.ScalarNode) and node.tag == f"{_CORE}str":
            return self._text(node)
        if isinstance(node, yaml.ScalarNode):
            raise self._error(node, f'the key {node.value or "null"} is no text; put it in quotes: "{node.value}"')
        raise self._error(node, "a list or a mapping cannot be a key")

    def _scalar(self, node: yaml.ScalarNode, path: FieldPath) -> Any:
        if node.tag == _UNCLEAR:
            raise self._error(node, _unclear(node.value))
        if node.tag not in _PLAIN:
            raise self._error(node, f"the tag {node.tag} is not supported; leave it out")
        if node.tag == f"{_CORE}str":
            return self._text(node)
        self.texts[path] = node.value
        try:
            return self._loader.construct_object(node)
        except ValueError as error:
            raise self._error(node, f"{shown(node.value)}: {error}") from error

    def _text(self, node: yaml.ScalarNode) -> str:
        """The text of a node. JSON writes a character beyond the first 65,536 as two escapes, which PyYAML reads as two characters."""
        try:
            return str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise self._error(node, "text has an unpaired surrogate") from error

    def _error(self, node: yaml.Node, what: str) -> UsageError:
        return UsageError(f"{self._source}:{node.start_mark.line + 1}: {what}")


def _unclear(text: str) -> str:
    if text in "yYnN":
        return f'{text} is a boolean to some readers of YAML and a text to others: write true or false, or put it in quotes: "{text}"'
    digits = text.replace("_", "").lstrip("-+").lstrip("0")
    number = f"write {digits}, or " if digits.isdigit() else ""
    return f'{text} is read as different numbers by different readers of YAML: {number}put it in quotes: "{text}"'

"""Modelfiles for Ollama beside a GGUF file. Ollama's templates take no arguments, so each has a label in it: one file a label.

A template is Go's ``text/template``. It has no functions of text, so control strings that somebody types are not escaped, as they are
in every other engine.
"""

from __future__ import annotations

import json
from pathlib import Path

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.core.label_support import LabelSupport
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import Vocabulary
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.formats.checkpoint import check_checkpoint


def labels(info: ModelInfo) -> dict[str, str]:
    """Labels by name: ``defaults``, then each attribute's two ends with the others as they are by default.

    A model that was taught labels with attributes left out is told the one attribute alone, as every engine tells it.
    """
    schema = info.attributes
    base = schema.defaults()
    others = {} if isinstance(info.support, LabelSupport) and info.support.partial else base
    wanted = {"defaults": base}
    for attribute in schema.attributes:
        for name, level in (("most", attribute.high), ("least", attribute.low)):
            if base[attribute.name] != level:
                wanted[f"{name}-{attribute.name}"] = {**others, attribute.name: level}
    return {name: schema.encode(values) for name, values in wanted.items()}


def write_modelfiles(folder: Path, gguf: Path, *, start: str) -> list[Path]:
    """Write a ``Modelfile`` for each of ``labels`` beside ``gguf``, which was written from the exported model ``folder``.

    Args:
        folder: The exported model.
        gguf: The file that llama.cpp reads.
        start: What prompts begin with there, ``gguf_export.write_gguf`` says what.

    Returns:
        Them, named ``GGUF'S NAME.LABEL'S NAME.Modelfile``.

    Raises:
        ConfigError: If it is a value model.
    """
    info = ModelInfo.load(folder)
    if info.kind != "steer":
        raise ConfigError(f"{folder}: a value model reads attributes; Ollama's Modelfiles are for steer models, which write under them")
    length, written = info.served_length(check_checkpoint(folder).max_position_embeddings), []
    for name, label in labels(info).items():
        path = gguf.with_name(f"{gguf.stem}.{name}.Modelfile")
        lines = [
            f"# {gguf.name} under the label {label}",
            f"FROM ./{gguf.name}",
            f'TEMPLATE """{go_template(info, load_tokenizer(folder), label, start=start)}"""',
            f"PARAMETER num_ctx {length}",
            *(f'PARAMETER stop "{marker}"' for marker in info.tokens.markers if '"' not in marker and marker.isprintable()),
        ]
        with atomic_write(path) as file:
            file.write("\n".join(lines) + "\n")
        written.append(path)
    return written


def go_template(info: ModelInfo, vocabulary: Vocabulary, label: str, *, start: str) -> str:
    """What renders ``.System`` and ``.Messages`` as ``core.template`` does, assistants' turns and the answer under ``label``."""
    template = info.template(vocabulary)
    tokens, quote = template.tokens, template.escape.apply
    end = _literal(tokens.end_of_turn)
    answer = f"{tokens.turn_start}{quote(info.assistant)}{tokens.end_of_name}{tokens.label_start}{quote(label)}{tokens.end_of_name}"
    pieces = [
        _literal(f"{start}{tokens.system_turn_start}System{tokens.end_of_name}"),
        f"{{{{ if .System }}}}{{{{ .System }}}}{{{{ else }}}}{_literal(quote(info.system))}{{{{ end }}}}",
        "" if template.layout == "nemo-annotate" else end,
        "{{ range .Messages }}",
        '{{ if eq .Role "user" }}' + _literal(f"{tokens.turn_start}{quote(info.user)}{tokens.end_of_name}") + "{{ .Content }}" + end,
        '{{ else if eq .Role "assistant" }}' + _literal(answer) + "{{ .Content }}" + end + "{{ end }}{{ end }}",
        _literal(answer),
    ]
    return "".join(pieces)


def _literal(text: str) -> str:
    """``text`` as an action of Go's templates that prints it: a string of Go's, which are JSON's."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""

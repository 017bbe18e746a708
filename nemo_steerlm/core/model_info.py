"""``steerlm.json``: what a model was taught, stored beside its weights so that no server, page or client has to guess it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.conversation import ASSISTANT, SYSTEM_PROMPT, USER
from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.core.label_support import LabelSupport
from nemo_steerlm.core.objectives import ModelKind
from nemo_steerlm.core.template import ChatTokens, Layout, Template, Vocabulary

FILE_NAME = "steerlm.json"
BASE_LENGTH = 0
"""As a wanted length: as many tokens as the model has positions for."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Attribute schema, template and provenance of one trained model. Also kept in a ``.nemo``'s config, under ``steerlm``."""

    kind: ModelKind
    attributes: AttributeSchema
    tokens: ChatTokens = ChatTokens()
    layout: Layout = "nemo-sft"
    system: str = SYSTEM_PROMPT
    """The system prompt most of its training records had; what a server uses when a request names none."""
    user: str = USER
    assistant: str = ASSISTANT
    support: LabelSupport | msgspec.UnsetType = msgspec.UNSET
    """Under which labels a steer model was taught, and how often; absent where nobody counted."""
    fingerprint: str = ""
    """Digest of the weights and this description; annotated records name it as ``label_source``."""
    max_seq_length: int | msgspec.UnsetType = msgspec.UNSET
    """Tokens to which its training cut records; longer prompts are nothing that it was taught to read."""
    labelled: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """The speakers most of whose turns had labels in its training records."""
    chat_template: int | msgspec.UnsetType = msgspec.UNSET
    """Version of the chat template beside it, in an exported folder (``formats.chat_template.VERSION``)."""

    def template(self, vocabulary: Vocabulary | None = None) -> Template:
        """The prompt template, for prompts that the tokenizer ``vocabulary`` encodes."""
        if vocabulary is None:
            return Template(tokens=self.tokens, layout=self.layout)
        return Template.of(vocabulary, self.tokens, self.layout)

    def served_length(self, base: int, wanted: int | None = None) -> int:
        """Tokens that a prompt and its answer may have together.

        Args:
            base: As many as the model has positions for.
            wanted: As many as somebody asks for; ``BASE_LENGTH`` for ``base``, None for what the model was taught.

        Raises:
            UsageError: If more are wanted than there are positions.
        """
        if wanted is None:
            return base if self.max_seq_length is msgspec.UNSET else min(base, self.max_seq_length)
        if wanted > base:
            raise UsageError(f"--max-model-len {wanted}: this model has positions for {base} tokens")
        return base if wanted == BASE_LENGTH else wanted

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and YAML; ``from_dict`` reads it back."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str = FILE_NAME) -> ModelInfo:
        """Read what ``to_dict`` wrote. Raises UsageError naming ``source``."""
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise UsageError(f"{source}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write ``steerlm.json`` into ``folder``."""
        with atomic_write(folder / FILE_NAME) as file:
            file.write(msgspec.json.format(msgspec.json.encode(self), indent=2).decode() + "\n")

    @classmethod
    def load(cls, folder: Path) -> ModelInfo:
        """Read ``steerlm.json`` from ``folder``. Raises UsageError where it is absent or malformed."""
        path = folder / FILE_NAME
        try:
            return cls.from_dict(msgspec.json.decode(path.read_bytes()), str(path))
        except FileNotFoundError as error:
            raise UsageError(f"{folder}: no {FILE_NAME}; is this a model that nemo_steerlm exported?") from error
        except msgspec.DecodeError as error:
            raise UsageError(f"{path}: {error}") from error

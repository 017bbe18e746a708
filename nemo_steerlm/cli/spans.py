"""A prompt on a terminal, what is learned of it marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_steerlm.core.template import Span


def print_spans(spans: Sequence[Span]) -> None:
    """Learned spans in colour, or in ⟦ ⟧ where there are no colours."""
    from rich.console import Console
    from rich.text import Text

    from nemo_steerlm.core.template import Role, learned_intervals, text_of

    console = Console(highlight=False, soft_wrap=True)
    if console.color_system is None:
        text = text_of(spans)
        for start, end in reversed(learned_intervals(spans)):
            text = f"{text[:start]}⟦{text[start:end]}⟧{text[end:]}"
        print(text)
        return
    styles = {Role.MARKER: "dim", Role.NAME: "bold", Role.LABEL: "cyan"}
    shown = Text()
    for span in spans:
        shown.append(span.text, style="black on green" if span.learned else styles.get(span.role))
    console.print(shown)

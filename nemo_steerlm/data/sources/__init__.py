"""Where rated data comes from: one class a source, one file each. A new one is listed here; manifest and schema follow."""

from __future__ import annotations

from nemo_steerlm.data.sources.alpaca import AlpacaSource
from nemo_steerlm.data.sources.argilla import ArgillaSource
from nemo_steerlm.data.sources.distilabel import DistilabelSource
from nemo_steerlm.data.sources.helpsteer import HelpSteerSource
from nemo_steerlm.data.sources.messages import MessagesSource
from nemo_steerlm.data.sources.nemotron import NemotronSource
from nemo_steerlm.data.sources.oasst import OasstSource
from nemo_steerlm.data.sources.rated_text import RatedTextSource
from nemo_steerlm.data.sources.records import RecordsSource
from nemo_steerlm.data.sources.sharegpt import ShareGptSource
from nemo_steerlm.data.sources.source import Source
from nemo_steerlm.data.sources.ultrafeedback import UltraFeedbackSource

SOURCES: dict[str, type[Source]] = {
    "oasst": OasstSource,
    "helpsteer": HelpSteerSource,
    "rated_text": RatedTextSource,
    "records": RecordsSource,
    "messages": MessagesSource,
    "sharegpt": ShareGptSource,
    "alpaca": AlpacaSource,
    "ultrafeedback": UltraFeedbackSource,
    "argilla": ArgillaSource,
    "distilabel": DistilabelSource,
    "nemotron": NemotronSource,
}
"""By the field of ``spec.data`` that describes one (in snake case)."""

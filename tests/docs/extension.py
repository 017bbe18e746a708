"""What ``docs/extending.md`` has a stranger write: a preset, source, judge, engine, model family, stage, training objective."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_steerlm.core.attributes import PRESETS, Attribute, AttributeSchema
from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.objectives import OBJECTIVES, Objective
from nemo_steerlm.core.spec import Reference
from nemo_steerlm.data.sources import SOURCES
from nemo_steerlm.data.sources.source import Placed, Source, SourceContext
from nemo_steerlm.formats.families.base import Family
from nemo_steerlm.inference.registry import EngineEntry, EngineOptions, Loader
from nemo_steerlm.pipeline.registry import STAGES, StageEntry

if TYPE_CHECKING:  # these read the registries
    from nemo_steerlm.pipeline.manifest import PipelineSpec
    from nemo_steerlm.pipeline.run_context import Run
    from nemo_steerlm.pipeline.stages.stage import Place, Stage


class LinesSource(Source):
    """One text per line, all rated alike."""

    path: Reference
    """The file."""
    quality: int = 4
    """What every line is rated."""

    rated = {"": ("quality",)}

    def references(self) -> tuple[str, ...]:
        """The file."""
        return (self.path,)

    def read(self, reading: SourceContext) -> Iterator[Placed]:
        """A conversation of two turns for each line; every tenth checks."""
        label = reading.schema.encode({"quality": self.quality})
        for number, text in enumerate(reading.resolve(self.path).read_text(encoding="utf-8").splitlines()):
            turns = (Turn(speaker="User", text="Say something."), Turn(speaker="Assistant", text=text, label=label))
            yield Placed("val" if number % 10 == 0 else "train", Conversation(turns=turns, system=reading.system_prompt, mask="User"))


def exclamations(text: str) -> float:
    """A judge of one's own."""
    return float(text.count("!"))


MINE = Family(model_type="mine", architecture="MineForCausalLM", fixed={"hidden_act": ("silu",)}, qk_norm=True)
"""A model family: a Llama that normalizes queries and keys."""

ECHO = EngineEntry(name="echo", summary="repeats", folders=Loader(module="tests.docs.extension", extra="serve"))


def load_engine(path: Path, options: EngineOptions) -> tuple[Path, int]:
    """An engine's loader; what it returns stands for an engine."""
    return path, options.max_rows


def count(spec: PipelineSpec, place: Place) -> Stage:
    """A stage that reads a file of the user's."""
    from nemo_steerlm.pipeline.stages.stage import Stage

    return Stage(
        name=place.name, kind="count", format=1, run="tests.docs.extension:count_bytes", files=spec.data.references(),
        outputs=("count.txt",), resources="prepare",
    )  # fmt: skip


def count_bytes(run: Run) -> dict[str, Any]:
    """The work of that stage."""
    size = run.resolve(run.stage.files[0]).stat().st_size
    (run.folder / "count.txt").write_text(f"{size}\n")
    return {"bytes": size}


def register() -> None:
    """One entry in each registry, before anything that derives from it is imported."""
    PRESETS["mine"] = AttributeSchema(attributes=(Attribute(name="quality"), Attribute(name="calm")), name="mine")
    SOURCES["lines"] = LinesSource
    STAGES.insert(0, StageEntry(name="count", describe="tests.docs.extension:count"))
    OBJECTIVES["TEXT_AND_VALUE"] = Objective(
        summary="answers that end with their label", kind="steer", label="after", learns_label=True, learns_text=True
    )


if __name__ == "__main__":
    register()
    from nemo_steerlm.cli.main import main

    sys.argv = ["steerlm", *sys.argv[1:]]
    main()

"""The quickstart as it is and on further seeds: how long its stages take on this machine, and whether it steers each time.

What ``make run`` has done is not done again, and what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from nemo_steerlm.evaluation.control import Control
from nemo_steerlm.megatron.cpu import multiplies_in_bf16
from nemo_steerlm.pipeline.artifacts import WorkDirectory

MANIFEST = Path(__file__).parents[2] / "examples/pipelines/quickstart.yaml"
SEEDED = ("trainValue", "trainSteer", "evaluate")
STAGES = ("train-value", "annotate", "train-steer", "evaluate")


class Evaluated(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of ``metrics.json``."""

    control: list[Control]


def seeded(seed: int) -> dict[str, Any]:
    """The quickstart's manifest with ``seed`` for everything that is drawn."""
    manifest: dict[str, Any] = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    for section in SEEDED:
        manifest["spec"][section]["seed"] = seed
    manifest["metadata"]["name"] = f"quickstart-{seed}"
    return manifest


def run(manifest: Path, work: Path) -> WorkDirectory:
    """The finished pipeline. Raises CalledProcessError where it fails."""
    subprocess.run([sys.executable, "-m", "nemo_steerlm.cli.main", "run", manifest, "--workdir", work], check=True, stdout=sys.stderr)
    return WorkDirectory(work)


def runs(seeds: Sequence[int], folder: Path) -> Iterator[tuple[str, WorkDirectory]]:
    """The quickstart with its own seeds, and with each of ``seeds``."""
    folder.mkdir(parents=True, exist_ok=True)
    yield "own", run(MANIFEST, folder / "quickstart")
    for seed in seeds:
        manifest = folder / f"quickstart-{seed}.yaml"
        manifest.write_text(yaml.safe_dump(seeded(seed)), encoding="utf-8")
        yield str(seed), run(manifest, folder / f"quickstart-{seed}")


def lines(seed: str, work: WorkDirectory) -> Iterable[str]:
    """A line for each attribute, and one for single answers."""
    found = msgspec.json.decode((work.path / "evaluate" / "metrics.json").read_bytes(), type=Evaluated)
    for name, entry in ((c.attribute if one is c else "  single", one) for c in found.control for one in (c, c.single) if one):
        judged = entry.rank_judged.value if entry.rank_judged else None
        distinct = min(level.fluency.distinct_2 or 0.0 for level in entry.levels)
        across = max(map(abs, entry.cross_talk.values()), default=0.0)
        figures = (entry.rank_read.value, judged, entry.error.value, entry.worst_neighbours.worst, across, distinct)
        yield f"{seed:6} {name:12}" + "".join(f"{'-' if figure is None else f'{figure:.2f}':>12}" for figure in figures)


def times(seed: str, work: WorkDirectory) -> str:
    """What the stages took, in seconds."""
    took = [success.seconds if (success := work.success(stage)) else 0.0 for stage in STAGES]
    return f"{seed:6} " + "".join(f"{seconds:12.0f}" for seconds in (*took, sum(took)))


def main(seeds: Sequence[int], folder: Path) -> None:
    """Print a table of steering, whose correlation and neighbours are those of the README's report, and one of seconds."""
    done = dict(runs(seeds, folder))
    heads = ("correlation", "by judge", "error", "neighbours", "cross-talk", "distinct-2")
    print(f"{'seed':>6} {'attribute':12}" + "".join(f"{head:>12}" for head in heads))
    for seed, work in done.items():
        print(*lines(seed, work), sep="\n")
    print(f"{'seed':>6} " + "".join(f"{head:>12}" for head in (*STAGES, "seconds")) + f", {'bf16' if multiplies_in_bf16() else 'fp32'}")
    for seed, work in done.items():
        print(times(seed, work))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    main(**vars(parser.parse_args()))

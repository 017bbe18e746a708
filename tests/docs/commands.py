"""The shell commands of the pages, and which test runs each.

Commands stand in blocks of the language ``console`` or ``bash``; a line goes on after a backslash. A block that begins with ``# needs …``
names what it takes that no test has, and is not run.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "k8s/*.md", "examples/*.md", "charts/**/*.md", "tests/cluster/*.md")
    for path in ROOT.glob(pattern)
)
SHELLS = ("console", "bash")
RUNNERS = {
    "tests/cli/test_first_hour.py": (
        "docs/start/own-data.md",
        "docs/start/quickstart.md",
        "docs/start/what-you-get.md",
        "README.md",
        "docs/how-to/annotate.md",
        "docs/how-to/bootstrap.md",
        "docs/how-to/evaluate.md",
        "docs/how-to/serve.md",
        "docs/how-to/several-sources.md",
        "docs/faq.md",
    ),
    "tests/examples/test_tutorial.py": ("examples/README.md",),
    "tests/cluster/test_pages.py": (
        "docs/kubernetes/kind.md",
        "docs/kubernetes/pods.md",
        "docs/kubernetes/README.md",
        "k8s/README.md",
        "charts/steerlm-operator/README.md",
        "tests/cluster/README.md",
    ),
}
"""A test and the pages that it runs, in this order."""
ELSEWHERE = {
    "steerlm init ratings.csv": "asks: tests/cli/test_init.py has a terminal for it",
    "steerlm init ratings.csv --force --base hf:Qwen/Qwen2.5-0.5B-Instruct": "needs the hub: tests/data/test_hub.py has one",
    "make run": "makes an environment and trains a larger model: by hand",
    "make install": "makes the environment of whoever runs the tests",
    "source .venv/bin/activate": "follows from it",
    "steerlm --install-completion": "changes the user's shell: tests/cli/test_doctor.py asks for completion",
    "steerlm run pipeline.yaml --from bootstrap-1-sample": "needs rounds: tests/pipeline/test_end_to_end.py has one",
    "python -m steerlm_operator": "does not end: tests/cluster/test_operator_process.py stops it",
    "pytest tests/cluster": "is what runs this",
    "make test": "runs this",
    "make test-fast": "runs this",
    "make test-slow": "runs this",
    "make test-cluster": "runs this",
    "make test-engines": "runs this",
    "make test-controllers": "runs this",
    "make bench": "measures; nothing in it is asserted: by hand",
    "make bench-quickstart": "trains for three quarters of an hour: by hand",
    "make mutants": "takes hours: by hand",
}
"""Commands that those tests leave out, and why."""
_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(page: str) -> list[tuple[str, str]]:
    """Language and text of each block of a page."""
    return _FENCE.findall((ROOT / page).read_text(encoding="utf-8"))


def blocks(page: str) -> list[str]:
    """The blocks of commands that can be run."""
    return [text for language, text in fences(page) if language in SHELLS and not text.startswith("# needs ")]


def commands(page: str) -> list[str]:
    """The commands of those blocks, a line each, without comments."""
    lines = [re.sub(r"\s+# .*", "", line).strip() for text in blocks(page) for line in text.replace("\\\n", "").splitlines()]
    return [re.sub(r"\s{2,}", " ", line) for line in lines if line]

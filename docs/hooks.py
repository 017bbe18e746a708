"""Hooks of mkdocs: pages that lie outside ``docs/`` become pages of the site, and links follow them.

In the repository a page links to the file that it means. On the site a page that is there is linked to; the name of any other file stays as
text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "tutorial.md",
    "k8s/README.md": "operator.md",
    "charts/steerlm-operator/README.md": "chart.md",
    "tests/cluster/README.md": "cluster-tests.md",
}
"""Where a file of the repository is on the site. The README is not: the site has a first page of its own."""
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside."""
    for source, target in OUTSIDE.items():
        if target != "index.md":
            files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Point the links of a page to where their targets are on the site."""
    here = next((source for source, target in OUTSIDE.items() if target == page.file.src_uri and target != "index.md"), None)
    here = here or f"docs/{page.file.src_uri}"
    parts = _CODE.split(markdown)
    # Every second part is code.
    parts[::2] = [_LINK.sub(lambda found: _moved(found, here, page.file.src_uri), text) for text in parts[::2]]
    return "".join(parts)


def _moved(link: re.Match[str], here: str, page: str) -> str:
    mark, text, target = link.groups()
    path, hash_, anchor = target.partition("#")
    if "://" in target or target.startswith("mailto:") or not path:
        return link.group()
    meant = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
    if meant.startswith("docs/"):
        found = meant.removeprefix("docs/")
    elif meant in OUTSIDE:
        found = OUTSIDE[meant]
    else:
        return text
    return f"{mark}[{text}]({posixpath.relpath(found, posixpath.dirname(page))}{hash_}{anchor})"

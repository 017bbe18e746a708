"""What ``make test-gpu`` needs on a machine that has a GPU, Python and torch, and no network: a folder of wheels to carry there.

``python -m tests.gpu.carry FOLDER`` downloads them here, with pip and for the Python version of there, at the versions of constraints.txt.
Megatron-Core has no wheel for every Python: what is installed here is packed, without what is compiled of it, which is not used.
FOLDER/install.sh is to be sourced there: it unpacks them into a folder of its own, beside the torch that is there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHEELS = (
    "numpy", "transformers", "nemo_toolkit", "tokenizers", "opencc", "lightning", "huggingface-hub", "fiddle", "msgspec", "hydra-core",
    "ijson", "gguf", "omegaconf", "webdataset", "tenacity", "stamina", "pangu", "braceexpand", "sentencepiece", "safetensors", "pytest",
    "pytest-timeout", "hypothesis", "iniconfig", "pluggy", "sortedcontainers", "einops", "lightning-utilities", "torchmetrics",
)  # fmt: skip
"""What NeMo and these tests import, and a machine with torch alone has not."""
BUILT = ("antlr4-python3-runtime", "wget")
"""Of these there are sources only."""
INSTALL = """# Source this: . install.sh [SITE]
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
site=${1:-/tmp/steerlm-site}
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$here"/*.whl
tar xf "$here"/megatron_core.tar.gz -C "$site"
export PYTHONPATH=$site:$site/megatron_core:$PWD PYTHONUNBUFFERED=1
"""


def pinned(package: str) -> str:
    """``package==version`` as constraints.txt has it, else the name."""
    name = re.sub(r"[-_.]+", "-", package).lower()
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        found, _, version = line.partition("==")
        if re.sub(r"[-_.]+", "-", found.strip()).lower() == name:
            return f"{package}=={version.split()[0].split(';')[0]}"
    return package


def main(folder: Path, python: str) -> None:
    """Fill ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    there = ["--only-binary=:all:", f"--python-version={python}", "--platform=manylinux2014_x86_64", "--platform=manylinux_2_28_x86_64"]
    subprocess.run([*pip, "download", "-q", "--no-deps", *there, "-d", str(folder), *map(pinned, WHEELS)], check=True)
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(folder), *map(pinned, BUILT)], check=True)
    core = importlib.metadata.distribution("megatron-core")
    with tarfile.open(folder / "megatron_core.tar.gz", "w:gz") as archive:
        for file in core.files or ():
            if file.suffix not in (".so", ".pyc") and ".." not in file.parts:
                archive.add(str(file.locate()), f"megatron_core/{file}")
    (folder / "install.sh").write_text(INSTALL, encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"{folder}: {size:.0f} MB; there, in a checkout: . {folder.name}/install.sh && python3 -m pytest -m gpu tests/gpu")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="its version on the machine without network")
    main(**vars(parser.parse_args()))

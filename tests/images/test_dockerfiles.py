"""The images' recipes: linted, restricted, complete. No image is built here: that takes a container engine and registries."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nemo_steerlm import __version__

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "k8s/images").glob("*.Dockerfile"))


@pytest.fixture(params=DOCKERFILES, ids=lambda path: path.stem)
def instructions(request):
    """``(instruction, arguments)`` of one Dockerfile, comments left out, continued lines joined."""
    text = re.sub(r"^#.*\n", "", request.param.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def of(instructions, name):
    return [arguments for instruction, arguments in instructions if instruction == name]


def copied(instructions):
    """``source -> target`` of what comes from the repository."""
    pairs = {}
    for arguments in of(instructions, "COPY"):
        if not arguments.startswith("--from="):
            *sources, target = arguments.split()
            pairs.update(dict.fromkeys(sources, target))
    return pairs


def test_hadolint_has_nothing_to_say():
    program = Path(sys.executable).parent / "hadolint"
    if not program.exists():
        pytest.skip("hadolint's package carries the program for Linux on x86_64 only")
    done = subprocess.run([program, "--failure-threshold", "style", *DOCKERFILES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_base_is_named_and_can_be_pinned(instructions):
    defaults = dict(argument.split("=", 1) for argument in of(instructions, "ARG"))
    for base in of(instructions, "FROM"):
        image = defaults[re.fullmatch(r"\$\{(\w+)\}( AS \w+)?", base)[1]]
        assert re.search(r":\d", image), image


def test_nobody_is_root(instructions):
    users = of(instructions, "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), "Pod Security restricted needs a number that is not 0"
    last = max(number for number, (name, _) in enumerate(instructions) if name == "USER")
    assert not [name for name, _ in instructions[last:] if name in ("RUN", "COPY", "ADD")]


def test_no_cache_and_no_package_lists_stay(instructions):
    for command in of(instructions, "RUN"):
        assert command.count("pip install") == command.count("pip install --no-cache-dir")
        assert ("apt-get update" in command) == ("rm -rf /var/lib/apt/lists/*" in command)
    assert not of(instructions, "ADD")


def test_what_is_installed_was_tested(instructions):
    """Every version comes from constraints.txt, in which each of them must be."""
    text = " ".join(of(instructions, "RUN"))
    assert "constraints.txt" in text
    pins = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line}
    if chosen := re.search(r'grep -E "\^\((.*)\)=="', text):
        assert set(chosen[1].split("|")) <= pins


def test_the_worker_on_nemo_s_image_adds_what_that_lacks():
    """The rest of our requirements are requirements of NeMo's own, so that its image has them."""
    text = (ROOT / "k8s/images/worker.Dockerfile").read_text(encoding="utf-8")
    added = set(re.search(r'grep -E "\^\((.*)\)=="', text)[1].split("|"))
    wanted = {canonicalize_name(each.name) for each in requirements(Requirement("nemo_steerlm[nemo,serve,report]"))}
    with_nemo = closure({"nemo-toolkit[nlp]", "megatron-core", "torch", "tensorboard"})
    assert wanted - with_nemo - {"pip"} <= added, "these would be absent from the image"
    assert added <= wanted


def requirements(installed):
    """What an installed distribution with its extras asks for."""
    try:
        found = [Requirement(text) for text in metadata.requires(installed.name) or []]
    except metadata.PackageNotFoundError:
        return []
    extras = ("", *installed.extras)
    return [each for each in found if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)]


def closure(wanted):
    """The names of these, of what they ask for, and of what that asks for."""
    left, seen = [Requirement(each) for each in wanted], set()
    while left:
        each = left.pop()
        if (key := (canonicalize_name(each.name), frozenset(each.extras))) not in seen:
            seen.add(key)
            left += requirements(each)
    return {name for name, _ in seen}


def test_what_is_copied_makes_the_whole_package(instructions, tmp_path):
    """The build's own folder: it holds what .dockerignore lets through and COPY names, and a wheel with every module comes out."""
    source = tmp_path / "source"
    source.mkdir()
    for name, target in copied(instructions).items():
        assert let_through(name), f"{name} is ignored"
        place = source / target if target != "./" else source / Path(name).name
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, place)
    uv = Path(sys.executable).parent / "uv"
    done = subprocess.run([uv, "build", "--wheel", "--offline", "--out-dir", tmp_path, source], capture_output=True, text=True, check=False)
    if "hatchling" in done.stderr and done.returncode:
        pytest.skip("the build backend is not in uv's cache")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"nemo_steerlm-{__version__}")
    packed = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in (("nemo_steerlm", "nemo_steerlm"), ("k8s/steerlm_operator", "steerlm_operator")):
        modules = {f"{package}/{path.relative_to(ROOT / folder)}" for path in (ROOT / folder).rglob("*.py")}
        assert modules <= packed


def let_through(name):
    """Whether .dockerignore, which ignores everything first, lets this through."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return "*" in lines and f"!{name}" in lines


def test_images_have_the_names_that_the_operator_and_the_chart_use():
    said = " ".join(path.read_text(encoding="utf-8") for path in DOCKERFILES)
    values = (ROOT / "charts/steerlm-operator/values.yaml").read_text(encoding="utf-8")
    for name in ("nemo-steerlm-operator", "nemo-steerlm-worker"):
        assert f"-t {name}:{__version__}" in said
        assert f'"{name}' in values

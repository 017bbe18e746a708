"""A stranger's ``.nemo``: what it names outside stays untouched, what it holds besides a model is refused by name."""

from __future__ import annotations

import subprocess
import sys
import tarfile

import pytest

from nemo_steerlm.core.errors import DataError, UsageError
from nemo_steerlm.formats import nemo_archive as archives
from nemo_steerlm.formats.nemo_archive import archived_config, nemo_archive
from tests.formats.hostile_nemo import link, member, written
from tests.inputs import STORIES

VOCABULARY = (STORIES / "tokenizer.model").read_bytes()
CONFIG = "precision: '32'\ntokenizer:\n  library: sentencepiece\n  model: nemo:0_tokenizer.model\n  type: null\n"


def nemo(path, *more, config: str = CONFIG, mode: str = "w:"):
    members = [member("./model_config.yaml", config.encode()), member("./0_tokenizer.model", VOCABULARY), *more]
    return written(path / f"m{len(list(path.iterdir()))}.nemo", members, mode)


@pytest.fixture
def canary(tmp_path):
    """A file of somebody's outside the archive, which no test may touch."""
    path = tmp_path / "outside" / "canary.json"
    path.parent.mkdir()
    path.write_text('{"added_tokens": []}')
    yield path
    assert path.read_text() == '{"added_tokens": []}'
    assert [p.name for p in path.parent.iterdir()] == ["canary.json"]


@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_a_models_own_files_are_read(tmp_path, mode):
    more = (member("./model_weights/metadata.json", b"{}"), member("./model_weights/__0_0.distcp"), member("README.md"))
    cfg, tokenizer = nemo_archive(nemo(tmp_path, *more, mode=mode))
    assert cfg.precision == "32"
    assert tokenizer.encode("Once upon a time")
    (folder := tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "-xf", next(tmp_path.glob("*.nemo")), "-C", folder], check=True)
    assert nemo_archive(folder)[0] == cfg


def tokenizer_section(**fields: str) -> str:
    return CONFIG.split("tokenizer:", maxsplit=1)[0] + "tokenizer:\n" + "".join(f"  {key}: {value}\n" for key, value in fields.items())


@pytest.mark.parametrize("key", ["tokenizer_json", "tokenizer_config", "model", "vocab_file", "merge_file"])
def test_a_file_outside_that_the_configuration_names_is_refused(tmp_path, canary, key):
    for value in (str(canary), f"nemo:{canary}", "nemo:../outside/canary.json", "../outside/canary.json", "nemo:.", "nemo:absent"):
        library = "sentencepiece" if key == "model" else "huggingface"
        path = nemo(tmp_path, config=tokenizer_section(library=library, **{key: value}))
        for read in (nemo_archive, archived_config):
            with pytest.raises(DataError, match=rf"{path}: model_config.yaml.tokenizer.{key}: .* is no member of the archive") as refused:
                read(path)
            assert refused.value.exit_code == 65


def test_members_that_lead_elsewhere_are_refused_by_name(tmp_path, canary):
    hostile = {
        "leads out": [member("../outside/new"), member("/etc/cron.d/x"), member("./a/../../x"), member("model_weights/../../x")],
        "no regular file": [
            link("./1_tokenizer.model", canary),
            link("hard", canary, tarfile.LNKTYPE),
            link("pipe", "", tarfile.FIFOTYPE),
            link("device", "", tarfile.CHRTYPE),
        ],
        "no part of a .nemo": [member("model_weights/modelopt_state/x.pt"), member("model_weights/a/0.0"), member("code/x.py")],
        "there twice": [member("0_tokenizer.model"), member("./model_config.yaml", CONFIG.encode())],
    }
    for reason, members in hostile.items():
        for one in members:
            with pytest.raises(DataError, match=reason) as refused:
                nemo_archive(nemo(tmp_path, one))
            assert repr(one[0].name.removeprefix("./"))[1:-1] in str(refused.value)
            assert "\n" not in str(refused.value)


def test_a_link_in_an_unpacked_one_is_refused(tmp_path, canary):
    (tmp_path / "model_config.yaml").write_text(CONFIG)
    (tmp_path / "0_tokenizer.model").symlink_to(canary)
    with pytest.raises(DataError, match=r"'0_tokenizer\.model' is no regular file"):
        nemo_archive(tmp_path)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (CONFIG + "secret: ${oc.env:HOME}\n", r"secret: an interpolation, '\$\{oc\.env:HOME\}'"),
        (CONFIG + "optim:\n  _target_: os.system\n", "optim: key _target_ names code to run"),
        (CONFIG + "cls: os.system\nparams: {command: x}\n", "names code to run"),
        (CONFIG + "  trust_remote_code: true\n", "trust_remote_code: asks for code"),
        (tokenizer_section(library="huggingface", type="/somebody/folder"), "type: '/somebody/folder' is no name"),
        (tokenizer_section(library="huggingface", type="../folder"), "type: '../folder' is no name"),
        ("a: &a [x, x]\nb: &b [*a, *a]\n" + CONFIG, "a YAML alias"),
        ("a: !!python/object/apply:os.system [x]\n" + CONFIG, "not a YAML mapping"),
        ("[]", "no tokenizer section"),
        ("tokenizer: 3", "no tokenizer section"),
        ("\x00", "not a YAML mapping"),
        ("a: [", "not a YAML mapping"),
    ],
)
def test_a_configuration_that_does_more_than_configure_is_refused(tmp_path, config, reason):
    with pytest.raises(DataError, match=reason) as refused:
        archived_config(nemo(tmp_path, config=config))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("stored", ['{"sharded_backend": "zarr"}', '{"common_backend": "x"}', "[]", "{"])
def test_weights_of_another_kind_are_refused(tmp_path, stored):
    with pytest.raises(DataError, match=r"model_weights/metadata\.json is no JSON|weights stored as"):
        archived_config(nemo(tmp_path, member("model_weights/metadata.json", stored.encode())))


def test_what_is_read_whole_is_bounded(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"'model_config.yaml' has .* bytes; 1048576 are read at most"):
        archived_config(nemo(tmp_path, config=CONFIG + "#" * (1 << 20)))
    monkeypatch.setattr(archives, "_MOST_TOKENIZER_BYTES", len(VOCABULARY) - 1)
    with pytest.raises(DataError, match=rf"'0_tokenizer.model' has {len(VOCABULARY)} bytes"):
        nemo_archive(nemo(tmp_path))
    with pytest.raises(DataError, match="more than 20 times its size"):
        archived_config(nemo(tmp_path, member("bomb", bytes(30 << 20)), mode="w:gz"))
    monkeypatch.setattr(archives, "_MOST_MEMBERS", 3)
    with pytest.raises(DataError, match="more than 3 members"):
        archived_config(nemo(tmp_path, member("one"), member("two")))


def test_what_is_no_archive_is_the_command_lines_fault(tmp_path):
    (tmp_path / "text.nemo").write_text("no tar")
    for path in (tmp_path / "text.nemo", tmp_path / "absent.nemo", written(tmp_path / "empty.nemo", [member("x")])):
        with pytest.raises(UsageError, match=r"not a \.nemo"):
            nemo_archive(path)


def test_serving_one_ends_with_its_sentence(tmp_path, canary):
    path = nemo(tmp_path, config=tokenizer_section(library="huggingface", tokenizer_json=str(canary)))
    command = [sys.executable, "-m", "nemo_steerlm.cli.main", "serve", str(path), "--device", "cpu"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 65
    said = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    assert len(said) == 1
    assert said[0].startswith(f"steerlm: {path}: model_config.yaml.tokenizer.tokenizer_json: ")

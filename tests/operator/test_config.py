"""The operator's own configuration is read as strictly as a manifest: what it does not mean is named with its line."""

from __future__ import annotations

import pytest
from steerlm_operator.config import OperatorConfig, load

from nemo_steerlm.core.errors import ConfigError

WRONG = {
    "retrySeconds: 5\nworkers: 2\nretrySeconds: 50\n": ":3: the key 'retrySeconds' stands here and in line 1; keep one of them",
    "workers: yes\n": ":1: workers: input should be a valid integer, found yes, which is the boolean true",
    "workers: 010\n": ":1: 010 is read as different numbers",
    "environment: {NCCL_DEBUG: 1}\n": ':1: environment.NCCL_DEBUG: input should be a valid string, found 1; put it in quotes: "1"',
    "worker: 1\n": ":1: worker: unknown key; did you mean workers?",
    "workers: 1\n---\nworkers: 2\n": ": 2 documents, where one is read",
    "workers: [\n": "not YAML",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_named_with_its_line(text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(str(path))
    assert WRONG[text] in str(error.value).removeprefix(str(path))


def test_what_is_absent_has_its_default(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("# nothing\n")
    assert load(str(path)) == OperatorConfig()
    path.write_text("namespaces: [a, b]\nretrySeconds: 3.0\n")
    assert (load(str(path)).namespaces, load(str(path)).retry_seconds) == (("a", "b"), 3)
    with pytest.raises(ConfigError, match="No such file"):
        load(str(tmp_path / "absent.yaml"))

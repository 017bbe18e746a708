"""What ``steerlm serve`` and ``steerlm chat`` take for the model of a work directory."""

from __future__ import annotations

import pytest

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.pipeline.artifacts import served_model


def test_a_work_directory_stands_for_the_last_model_that_was_trained_in_it(tmp_path):
    assert served_model(tmp_path) == tmp_path
    (tmp_path / "train-value" / "hf").mkdir(parents=True)
    with pytest.raises(UsageError, match="no steer model yet"):
        served_model(tmp_path)
    for stage in ("train-steer", "bootstrap-1-train", "bootstrap-9-train", "bootstrap-10-train"):
        (tmp_path / stage / "hf").mkdir(parents=True)
        assert served_model(tmp_path) == tmp_path / stage / "hf"
    (tmp_path / "bootstrap-11-train").mkdir()
    assert served_model(tmp_path) == tmp_path / "bootstrap-10-train" / "hf"
    with pytest.raises(UsageError, match="no such file or folder"):
        served_model(tmp_path / "absent")

"""What importing NeMo and building a model leave in the program that does it, and in its children."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_steerlm.megatron import compat
from nemo_steerlm.megatron.distributed import RENDEZVOUS

pytestmark = pytest.mark.megatron


def test_building_a_model_leaves_no_launcher_in_the_environment(base_nemo: Path) -> None:
    assert base_nemo.exists()
    assert not RENDEZVOUS & set(os.environ)


IMPORTING = """
import sys
import transformers.utils.import_utils  # as a tokenizer does; it has noted which libraries there are
from nemo_steerlm.megatron.imports import OPTIONAL, UNASKED
from nemo_steerlm.megatron import compat
compiling, before = compat.torch.compile, set(sys.modules)
with compat.importing_nemo():
    import nemo_steerlm.megatron.gpt_sft
assert compat.torch.compile is compiling
print(*[name for name in (*OPTIONAL["nemo"], *UNASKED["nemo"], "torch._inductor.compile_fx") if name in sys.modules.keys() - before])
"""


@pytest.mark.skipif(compat.HAVE_CUDA, reason="with CUDA torch's compiler is imported")
def test_nemo_is_imported_without_what_nobody_asks_it_for() -> None:
    said = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stdout == "\n"

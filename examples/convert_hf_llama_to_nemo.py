"""Step 3 of the tutorial: a Hugging Face Llama as a .nemo, whose tokenizer.model can be taken out with tar.

    convert_hf_llama_to_nemo.py --in-file=./Llama2-7B-hf --out-file=llama7b.nemo

Takes the flags of NeMo 1.20 (--in-file, --out-file) and of later releases (--input_name_or_path, --output_path). The three chat
markers get tokens of their own; the same as ``steerlm convert``.
"""

import argparse
from pathlib import Path

from nemo_steerlm.cli.convert import PRECISIONS, to_nemo
from nemo_steerlm.core.exits import run_and_exit
from nemo_steerlm.core.template import ChatTokens


def parser() -> argparse.ArgumentParser:
    """The flags of upstream's script, under each of the names they had."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source, out = ("--in-file", "--in_file", "--input_name_or_path"), ("--out-file", "--out_file", "--output_path")
    flags.add_argument(*source, dest="source", type=Path, required=True, help="Hugging Face Llama folder, or .gguf file")
    flags.add_argument(*out, dest="out", type=Path, required=True, help=".nemo file to write")
    flags.add_argument("--precision", choices=PRECISIONS, help="what weights are stored as; default: what the checkpoint has")
    flags.add_argument("--no-chat-tokens", action="store_true", help="leave the vocabulary as it is")
    return flags


if __name__ == "__main__":
    given = parser().parse_args()
    tokens = None if given.no_chat_tokens else ChatTokens()
    run_and_exit(lambda: to_nemo(str(given.source), given.out, given.precision, tokens), "convert_hf_llama_to_nemo")

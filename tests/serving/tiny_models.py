"""Model folders to serve in tests and benchmarks, with control tokens and ``steerlm.json`` but no training."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from nemo_steerlm.core.attributes import Attribute, AttributeSchema
from nemo_steerlm.core.model_info import ModelInfo, ModelKind
from nemo_steerlm.formats.chat_template import write_chat_template
from nemo_steerlm.formats.gguf_files import GGUFFile
from nemo_steerlm.formats.tokenizer_files import write_tokenizer_files
from nemo_steerlm.megatron.weights import open_weights

SCHEMA = AttributeSchema(
    attributes=(Attribute(name="quality", default=4), Attribute(name="toxicity"), Attribute(name="humor", high=10)),
    languages=("en", "de", "es"),
    name="tiny",
)
"""Small, but with a value of two tokens and a language."""


def model_folder(
    source: Path, folder: Path, *, kind: ModelKind, schema: AttributeSchema = SCHEMA, noise: float = 0.0, layers: int | None = None
) -> Path:
    """``source`` (a Hugging Face folder or a ``.gguf``) as an exported model, its new embedding rows random.

    ``layers`` keeps only the first ones.
    ``noise`` > 0 disturbs all weights by that many standard deviations: an untrained model's labels hardly vary otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    info = ModelInfo(kind=kind, attributes=schema, fingerprint=f"untrained-{kind}")
    config = GGUFFile(source).config() if source.suffix == ".gguf" else json.loads((source / "config.json").read_text())
    size = write_tokenizer_files(source, folder, info.tokens.markers).vocab_size
    write_chat_template(folder, info).save(folder)
    weights = open_weights(source)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    if layers is not None:
        config["num_hidden_layers"] = layers
    for name in weights.names:
        if layers is not None and name.startswith("model.layers.") and int(name.split(".")[2]) >= layers:
            continue
        tensor = weights.tensor(name).clone()
        if name in ("model.embed_tokens.weight", "lm_head.weight") and size > tensor.shape[0]:
            rows = torch.randn(size - tensor.shape[0], tensor.shape[1], generator=generator) * tensor.std()
            tensor = torch.cat([tensor, rows])
        tensors[name] = tensor + noise * tensor.std() * torch.randn(tensor.shape, generator=generator) if noise else tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    vocabulary = tensors["model.embed_tokens.weight"].shape[0]
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"], "vocab_size": vocabulary}))
    return folder


def teach_labels(folder: Path, steps: int = 60, rate: float = 3e-3, *, every_turn: bool = False) -> None:
    """Train a tiny value model for a few seconds, until it writes labels in the right form, with values that depend on the text.

    ``every_turn``: the user's turn has a label as well, as in OASST.
    """
    from transformers import AutoModelForCausalLM

    from nemo_steerlm.core.conversation import Conversation, Turn
    from nemo_steerlm.core.encoding import encode_spans
    from nemo_steerlm.core.tokenization import load_tokenizer

    info, tokenizer = ModelInfo.load(folder), load_tokenizer(folder)
    template = info.template(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    draw = random.Random(0)
    for _ in range(steps):
        rows = []
        for _ in range(8):
            words = draw.choices(["the", "cat", "sat", "on", "a", "red", "hat", "and", "ran", "home"], k=draw.randint(3, 12))
            values = {a.name: (len(words) * (k + 2)) % (a.high + 1) for k, a in enumerate(info.attributes.attributes)}
            label = info.attributes.encode(values, draw.choice(info.attributes.languages or (None,)))
            asked = Turn(speaker="User", text="Say it", label=label if every_turn else None)
            turns = (asked, Turn(speaker="Assistant", text=" ".join(words), label=label))
            rows.append(encode_spans(template.render(Conversation(turns=turns, system="Be kind.\n"), "TEXT_TO_VALUE"), tokenizer))
        width = max(len(row.ids) for row in rows)
        ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])
        learned = torch.tensor([row.loss_mask + [0] * (width - len(row.ids)) for row in rows]).bool()
        loss = torch.nn.functional.cross_entropy(model(ids).logits[:, :-1][learned[:, 1:]], ids[:, 1:][learned[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_file({n: p.detach().contiguous() for n, p in model.named_parameters()}, folder / "model.safetensors", metadata={"format": "pt"})


def parrot(source: Path, folder: Path, text: str, info: ModelInfo) -> Path:
    """A model that always writes ``text``, whose tokens all differ, and then ends its turn: the last token alone says which is next."""
    from nemo_steerlm.core.tokenization import load_tokenizer

    shutil.copytree(source, folder)
    (folder / "steerlm.json").unlink()
    info.save(folder)
    tokenizer = load_tokenizer(folder)
    begun = info.tokens.label_start + info.tokens.end_of_name
    before, end = tokenizer.encode(begun), tokenizer.token_id(info.tokens.turn_start)
    chain = [before[-1], *tokenizer.encode(begun + text)[len(before) :], end]
    assert len(set(chain)) == len(chain), "after each token only one can follow"
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    head = torch.zeros_like(embedding)
    for token, follows in itertools.pairwise(chain):
        head[follows] = 50 * embedding[token] / embedding[token].norm()
    tensors = {name: torch.zeros_like(tensor) if "_proj" in name else tensor for name, tensor in tensors.items()}
    tensors |= {"lm_head.weight": head, "model.norm.weight": torch.ones_like(tensors["model.norm.weight"])}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return folder


def nemo_file(folder: Path, path: Path) -> Path:
    """An exported model as the ``.nemo`` it could have come from."""
    from nemo_steerlm.formats.tokenizer_files import nemo_tokenizer_config
    from nemo_steerlm.megatron.gpt_sft import build_model
    from nemo_steerlm.megatron.hf_import import load_hf_weights, model_config_from_hf
    from nemo_steerlm.megatron.nemo_files import save_nemo

    model = build_model(
        {**model_config_from_hf(folder), "tokenizer": nemo_tokenizer_config(folder), "steerlm": ModelInfo.load(folder).to_dict()}
    )
    load_hf_weights(model, folder)
    save_nemo(model, path)
    return path

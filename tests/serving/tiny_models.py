"""Model folders small enough to serve in a test."""

from __future__ import annotations

import json
from pathlib import Path

from nemo_steerlm.core.attributes import Attribute, AttributeSchema
from nemo_steerlm.core.model_info import ModelInfo, ModelKind

STORIES = Path(__file__).parents[2].parent / "shared" / "data" / "stories260K"

SCHEMA = AttributeSchema(
    attributes=(Attribute(name="quality", default=4), Attribute(name="toxicity"), Attribute(name="humor", high=10)),
    languages=("en", "de", "es"),
    name="tiny",
)


def stories_model(folder: Path, *, kind: ModelKind, schema: AttributeSchema = SCHEMA, scale: float = 0.0, seed: int = 0) -> Path:
    """stories260K with three control tokens added to tokenizer and embeddings, as an exported model folder.

    ``scale`` > 0 adds noise to the weights: labels of the story model hardly vary.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from sentencepiece import sentencepiece_model_pb2 as pb

    folder.mkdir(parents=True, exist_ok=True)
    info = ModelInfo(kind=kind, attributes=schema, fingerprint=f"tiny-{kind}-{seed}")
    info.save(folder)
    model = pb.ModelProto.FromString((STORIES / "tokenizer.model").read_bytes())
    for marker in info.tokens.markers:
        model.pieces.append(pb.ModelProto.SentencePiece(piece=marker, score=0.0, type=pb.ModelProto.SentencePiece.USER_DEFINED))
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    weights = load_file(STORIES / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3, 64, generator=generator) * 0.05
    weights["model.embed_tokens.weight"] = torch.cat([weights["model.embed_tokens.weight"], rows])
    if scale:
        weights = {n: w + scale * w.std() * torch.randn(w.shape, generator=generator) for n, w in weights.items()}
    save_file({n: w.contiguous() for n, w in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((STORIES / "config.json").read_text())
    config["vocab_size"] += 3
    (folder / "config.json").write_text(json.dumps(config))
    return folder

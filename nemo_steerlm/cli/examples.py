"""Command lines to start from: the end of each command's ``--help``."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": (
        "steerlm init ratings.csv",
        "steerlm init ratings.csv --yes --prompt-column Question --text-column Answer --rating helpful",
        "steerlm init hf:OWNER/NAME/train.parquet --base hf:Qwen/Qwen2.5-0.5B-Instruct",
    ),
    "doctor": ("steerlm doctor",),
    "run": ("steerlm run ratings.yaml", "steerlm run ratings.yaml --dry-run", "steerlm run ratings.yaml --from evaluate"),
    "validate": ("steerlm validate ratings.yaml",),
    "status": ("steerlm status ratings.yaml",),
    "plan": ("steerlm plan ratings.yaml", "steerlm plan ratings.yaml -o yaml"),
    "schema": ("steerlm schema", "steerlm schema --crd"),
    "stage": ("steerlm stage prepare --manifest ratings.yaml --workdir runs/ratings",),
    "preprocess": ("steerlm preprocess --input_file trees.jsonl --output_file_prefix data/oasst --type TEXT_TO_VALUE",),
    "clean": ("steerlm clean --dataset_file a.jsonl --output_file b.jsonl --library sentencepiece --model_file t.model",),
    "render": ("steerlm render records.jsonl --tokenizer runs/ratings/train-value/hf --index 0",),
    "annotate": (
        "steerlm annotate --server http://localhost:1424 records.jsonl labelled.jsonl",
        "steerlm annotate --server http://a:1424 --server http://b:1424 --shard 0/4 records.jsonl labelled.jsonl",
        "steerlm annotate --merge 4 records.jsonl labelled.jsonl",
    ),
    "serve": (
        "steerlm serve runs/ratings --port 8000",
        "steerlm serve runs/ratings --engine openvino --port 8000",
        "steerlm serve runs/ratings/train-steer/model.nemo --tensor-parallel 2",
    ),
    "chat": ("steerlm chat runs/ratings --set helpful=5 --set funny=1", "steerlm chat http://localhost:8000 --best-of 4"),
    "answer": ('steerlm answer "What is a prime?" --server http://localhost:8000 --set helpful=5',),
    "export": (
        "steerlm export runs/ratings --gguf F16",
        "steerlm export runs/ratings --push OWNER/NAME --dry-run",
    ),
    "convert": ("steerlm convert hf:OWNER/NAME model.nemo", "steerlm convert model.nemo folder"),
}
"""By command."""


def epilog(command: str) -> str:
    """What stands below a command's options; the backspace keeps click from filling its lines."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in EXAMPLES[command])])

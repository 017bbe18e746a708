"""Each kind of source becomes the same four files: what teaches the value model, and what it is to label."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys

import pytest
import yaml

from nemo_steerlm.core.attributes import PRESETS
from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.formats.tokenizer_files import write_tokenizer_files
from nemo_steerlm.pipeline.artifacts import WorkDirectory
from nemo_steerlm.pipeline.manifest import load, parse
from nemo_steerlm.pipeline.run_context import Run
from nemo_steerlm.pipeline.stages import find, stages
from nemo_steerlm.pipeline.steps.train import model_info, overrides
from nemo_steerlm.training.config import compose
from nemo_steerlm.training.plan import plan_training
from tests.data.trees import message, tree
from tests.formats.hostile_nemo import member, written
from tests.inputs import STORIES
from tests.pipeline.manifests import with_field

RATED = {"prompt": "c#", "response": "A language.", "helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
MULTI = {**RATED, "prompt": "Hi\n\n<extra_id_1>Assistant\nHello\n\n<extra_id_1>User\nc#"}
LABEL = "helpfulness:3,correctness:4,coherence:4,complexity:2,verbosity:1"


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def record(text, label=None):
    answer = {"value": text, "from": "Assistant", **({"label": label} if label else {})}
    return {"conversations": [{"value": "c#", "from": "User"}, answer], "system": "S", "mask": "User", "type": "VALUE_TO_TEXT"}


def prepare(folder, attributes, data, **sections):
    """The records of each output by its name, and the stage's metrics."""
    done = run_prepare(folder, attributes, data, **sections)
    assert done.returncode == 0, done.stderr
    outputs = (folder / "work" / "prepare").glob("*.jsonl")
    metrics = json.loads((folder / "work" / "prepare" / "_SUCCESS.json").read_text())["metrics"]
    return {path.stem: [json.loads(line) for line in path.open()] for path in outputs}, metrics


def run_prepare(folder, attributes, data, **sections):
    content = with_field("spec.data", {"system": "S", **data})
    content["spec"] |= {"attributes": attributes, "model": {"base": str(STORIES), "maxSequenceLength": 512}, **sections}
    manifest = folder / "pipeline.yaml"
    manifest.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "nemo_steerlm.cli.main", "run", manifest, "--workdir", folder / "work", "--until", "prepare"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def told(records):
    """Types, and (speaker, text, label) of each turn."""
    return [(r["type"], *((t["from"], t["value"], t.get("label")) for t in r["conversations"])) for r in records]


def test_helpsteer(tmp_path):
    write(tmp_path / "hs" / "train.jsonl.gz", [RATED, MULTI])
    write(tmp_path / "hs" / "validation.jsonl", [RATED])
    found, _ = prepare(tmp_path, {"preset": "helpsteer"}, {"helpsteer": {"path": "hs"}})
    one = [("User", "c#", None), ("Assistant", "A language.", LABEL)]
    several = [("User", "Hi", None), ("Assistant", "Hello", None), *one]
    assert told(found["value_train"]) == [("TEXT_TO_VALUE", *one), ("TEXT_TO_VALUE", *several)]
    assert told(found["annotate_train"]) == [("VALUE_TO_TEXT", *one), ("VALUE_TO_TEXT", *several)]
    assert told(found["value_val"]) == [("TEXT_TO_VALUE", *one)]
    assert told(found["annotate_val"]) == [("VALUE_TO_TEXT", *one)]


NEMO_CONFIG = {
    "hidden_size": 64,
    "ffn_hidden_size": 172,
    "num_layers": 4,
    "num_attention_heads": 8,
    "tokenizer": {"library": "sentencepiece", "type": None, "model": "nemo:tokenizer.model"},
}


def nemo(path, tokenizer, *, unpacked):
    """A ``.nemo`` as far as a plan reads it."""
    files = {"model_config.yaml": yaml.safe_dump(NEMO_CONFIG).encode(), "tokenizer.model": (tokenizer / "tokenizer.model").read_bytes()}
    if not unpacked:
        return written(path.with_suffix(".nemo"), [member(name, content) for name, content in files.items()])
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("unpacked", [False, True], ids=["archive", "folder"])
def test_a_nemo_as_base(tmp_path, unpacked):
    """Its tokenizer is the one that is cleaned by, and its trainings' plan takes what was prepared."""
    write_tokenizer_files(STORIES, tmp_path / "tokenizer", ChatTokens().markers)
    base = nemo(tmp_path / "base", tmp_path / "tokenizer", unpacked=unpacked)
    write(tmp_path / "t.jsonl", [record(f"text {n}", LABEL) for n in range(4)])
    source = {"records": {"train": "t.jsonl", "validation": "t.jsonl"}}
    training = {"globalBatchSize": 2}
    model = {"base": base.name, "maxSequenceLength": 512}
    found, _ = prepare(tmp_path, {"preset": "helpsteer"}, source, model=model, trainValue=training)
    assert len(found["value_train"]) == 4
    assert (tmp_path / "work/prepare/tokenizer/tokenizer.model").read_bytes() == (tmp_path / "tokenizer/tokenizer.model").read_bytes()
    pipeline = load(tmp_path / "pipeline.yaml")
    stage = find(stages(pipeline), "train-value")
    run = Run(pipeline=pipeline, stage=stage, work=WorkDirectory(tmp_path / "work"), manifest=tmp_path / "pipeline.yaml", servers={})
    (tmp_path / "described").mkdir()
    model_info(run, stage.training).save(tmp_path / "described")
    planned = plan_training(compose(overrides(run, stage.training, tmp_path / "described")), tmp_path)
    assert (planned.steps, planned.model_config.num_layers, planned.info.kind) == (2, 4, "value")


def test_a_nemo_without_the_chat_tokens_is_refused_before_anything_is_read(tmp_path):
    base = nemo(tmp_path / "base", STORIES, unpacked=False)
    (tmp_path / "t.jsonl").write_text("no record")
    source = {"records": {"train": "t.jsonl", "validation": "t.jsonl"}}
    done = run_prepare(tmp_path, {"preset": "helpsteer"}, source, model={"base": base.name})
    assert done.returncode == 78
    said = done.stderr.splitlines()[-1]
    assert f"{base}: chat token '<extra_id_0>' is no single token of the vocabulary; convert the Hugging Face checkpoint" in said
    assert "Traceback" not in done.stderr


def test_pairs_from_which_a_value_model_learns_nothing_are_refused():
    manifest = with_field("spec.data", {"helpsteer": {"path": "hs", "preference": True}})
    manifest["spec"]["attributes"] = {"custom": [{"name": "quality", "low": -3, "high": 3}]}
    with pytest.raises(UsageError, match=r"helpsteer.preference: both answers of a pair have the same label"):
        parse(manifest, "m")


@pytest.mark.parametrize("turns_read", ["unmasked", "all"])
def test_a_persons_labels_of_turns_that_nobody_reads_teach_no_model(tmp_path, turns_read):
    """Of a rated user turn the value model sees in training what it sees in use: nothing. With ``turns: all`` it is read, and kept."""
    turns = [{"from": "User", "value": "Hi", "label": "quality:1"}, {"from": "Assistant", "value": "Hello", "label": "quality:3"}]
    for name in ("t.jsonl", "v.jsonl"):
        write(tmp_path / name, [{"system": "S", "mask": "User", "type": "TEXT_TO_VALUE", "conversations": turns}])
    source = {"records": {"train": "t.jsonl", "validation": "v.jsonl"}}
    found, _ = prepare(tmp_path, {"custom": [{"name": "quality"}]}, source, annotate={"turns": turns_read})
    for part in ("value_train", "value_val", "annotate_train", "annotate_val"):
        user, assistant = found[part][0]["conversations"]
        assert user["label" if turns_read == "all" else "gt_label"] == "quality:1"
        assert ("label" in user) == (turns_read == "all")
        assert assistant["label"] == "quality:3"


OASST_LABELS = {
    # Of the answer in the tree below: quality .75, toxicity 0, humor .5, helpfulness 1; nobody rated anything else.
    "oasst": "quality:3,toxicity:0,humor:2,helpfulness:4,lang:en",
    "helpsteer": "helpfulness:4",
    "steerlm9": "quality:3,toxicity:0,humor:2,helpfulness:4",
    "nemotron": "quality:3,toxicity:0,humor:2,helpfulness:4,lang:en",
    "paper": "quality:7,toxicity:0,humor:4,helpfulness:9",
}


@pytest.mark.parametrize("name", PRESETS)
def test_oasst_under_every_preset(tmp_path, name):
    """Labels have the preset's names, order, scale and language field; what nobody rated is absent, never zero, and named."""
    labels = {
        key: {"value": value} for key, value in {"quality": 0.75, "toxicity": 0.0, "humor": 0.5, "helpfulness": 1.0, "spam": 1.0}.items()
    }
    answer = message("Hello.", "assistant", labels=labels)
    write(tmp_path / "trees.jsonl", [tree(f"t{i}", message("Hi?", labels={}, replies=[answer])) for i in range(4)])
    found, metrics = prepare(tmp_path, {"preset": name}, {"oasst": {"path": "trees.jsonl", "splitRatio": 0.5}})
    for part in ("value_train", "value_val", "annotate_train", "annotate_val"):
        assert {turn["label"] for record in found[part] for turn in record["conversations"] if turn["from"] == "Assistant"} == {
            OASST_LABELS[name]
        }
        assert len(found[part]) == 2
    rated = {field.partition(":")[0] for field in OASST_LABELS[name].split(",")} - {"lang"}
    assert metrics["rated"] == dict.fromkeys(rated, 4)
    assert metrics["unrated"] == [attribute for attribute in PRESETS[name].names if attribute not in rated]


def test_oasst_under_a_list_of_ones_own(tmp_path):
    answer = message("Hello.", "assistant", labels={"quality": {"value": 0.75}, "humor": {"value": 0.5}})
    write(tmp_path / "trees.jsonl", [tree(f"t{i}", message("Hi?", replies=[answer])) for i in range(2)])
    custom = {"custom": [{"name": "wit"}, {"name": "quality", "low": -2, "high": 2}]}
    found, metrics = prepare(tmp_path, custom, {"oasst": {"path": "trees.jsonl", "splitRatio": 0.5}})
    assert found["value_train"][0]["conversations"][1]["label"] == "quality:1"
    assert metrics["unrated"] == ["wit"]


@pytest.mark.parametrize("name", PRESETS)
def test_helpsteer_under_every_preset(tmp_path, name):
    for split in ("train", "validation"):
        write(tmp_path / "hs" / f"{split}.jsonl", [RATED])
    found, metrics = prepare(tmp_path, {"preset": name}, {"helpsteer": {"path": "hs"}})
    rated = {attribute: RATED[attribute] for attribute in PRESETS[name].names if attribute in RATED}
    assert metrics["unrated"] == [attribute for attribute in PRESETS[name].names if attribute not in RATED]
    scale = {attribute: round(value * PRESETS[name][attribute].high / 4) for attribute, value in rated.items()}
    assert found["value_train"][0]["conversations"][1]["label"] == ",".join(f"{key}:{value}" for key, value in scale.items())


def test_several_sources_with_different_attributes(tmp_path):
    """Labels have what their source rates, never zero for the rest; each source is counted; a weight repeats what trains."""
    labels = {"quality": {"value": 0.75}, "humor": {"value": 0.0}}
    answer = message("Hello.", "assistant", labels=labels)
    write(tmp_path / "trees.jsonl", [tree(f"t{i}", message(f"Hi {i}?", replies=[answer])) for i in range(4)])
    for split in ("train", "validation"):
        write(tmp_path / "hs" / f"{split}.jsonl", [RATED])
    write(tmp_path / "more.jsonl", [{"messages": [{"role": "user", "content": "Hey"}, {"role": "assistant", "content": "Ho."}]}])
    sources = [
        {"oasst": {"path": "trees.jsonl", "splitRatio": 0.5}},
        {"weight": 3, "helpsteer": {"path": "hs"}},
        {"nemotron": {"path": "more.jsonl"}},
    ]
    found, metrics = prepare(tmp_path, {"preset": "steerlm9"}, {"sources": sources})
    oasst, helpsteer = "quality:3,humor:0", LABEL
    assert [r["conversations"][1]["label"] for r in found["value_train"]] == [oasst] * 2 + [helpsteer] * 3
    assert [r["conversations"][1]["label"] for r in found["value_val"]] == [oasst] * 2 + [helpsteer]
    assert max(r["conversations"][1]["value"] for r in found["annotate_train"] + found["annotate_val"]) == "Ho."
    assert len(found["annotate_train"]) + len(found["annotate_val"]) == 9
    rated = dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity", "verbosity"), 4)
    assert {name: source["rated"] for name, source in metrics["sources"].items()} == {
        "oasst": {"quality": 4, "humor": 4},
        "helpsteer": rated,
        "nemotron": {},
    }
    assert metrics["sources"]["helpsteer"]["conversations"] == {"train": 3, "val": 1}
    assert metrics["unrated"] == ["toxicity", "creativity"]


SYSTEMS = ["A", "Be brief.", "Be brief.", "Be kind.", "C"]


def test_what_a_person_should_know_of_the_data_is_said_while_it_runs(tmp_path):
    """System prompts that differ, for a served model has one; attributes that nobody rated; records that cannot be used."""
    records = [{**record("one", "quality:3"), "system": system} for system in SYSTEMS]
    write(tmp_path / "t.jsonl", [*records, record("two", "quality:9")])
    write(tmp_path / "v.jsonl", records[1:2])
    data = {"records": {"train": "t.jsonl", "validation": "v.jsonl"}, "onError": "skip"}
    done = run_prepare(tmp_path, {"custom": [{"name": "quality"}, {"name": "wit"}]}, data)
    assert [line for line in done.stdout.splitlines() if not re.search("started|done in", line)] == [
        "prepare: the data has no ratings of wit: labels leave them out",
        "prepare: records that cannot be used: 1, of 1 the reason is: label out of range: quality is 9; "
        f"see {tmp_path}/work/prepare/records.rejected.jsonl",
        "prepare: the data has 4 system prompts; what a server uses by default is the commonest: 'Be brief.'",
    ]
    alike = run_prepare(tmp_path, {"custom": [{"name": "quality"}]}, {"records": {"train": "v.jsonl", "validation": "v.jsonl"}})
    assert "system prompts" not in alike.stdout
    write(tmp_path / "t.jsonl", [record("two", "quality:9")])
    none_left = run_prepare(tmp_path, {"custom": [{"name": "quality"}]}, {**data, "records": {"train": "t.jsonl", "validation": "t.jsonl"}})
    assert (none_left.returncode, "data: none of 2 records can be used; 2 of them: label out of range" in none_left.stderr) == (65, True)


def test_rated_text_is_labelled_whole_and_half_of_it_teaches(tmp_path):
    (tmp_path / "t.tsv").write_text("".join(f"{n % 5}\t@name text {n}\n" for n in range(60)))
    rated = {
        "files": [{"path": "t.tsv", "prompt": "Write."}],
        "header": False,
        "textColumn": "1",
        "ratings": {"quality": {"column": "0"}},
        "remove": "@name ",
        "splitRatio": 0.8,
    }
    attributes = {"custom": [{"name": "quality", "default": 2, "description": "of the text"}]}
    found, _ = prepare(tmp_path, attributes, {"ratedText": rated})
    texts = {name: [r["conversations"][1]["value"] for r in records] for name, records in found.items()}
    assert sorted(texts["annotate_train"] + texts["annotate_val"]) == sorted(f"text {n}" for n in range(60))
    for split in ("train", "val"):
        labelled = [r["conversations"][1]["value"] for r in found[f"annotate_{split}"] if "label" in r["conversations"][1]]
        assert labelled == texts[f"value_{split}"]
        assert 0 < len(labelled) < len(texts[f"annotate_{split}"])


def test_records_with_more_to_be_labelled(tmp_path):
    """Whatever type they had; what cannot be used is set aside, and what a server could not read is shortened."""
    write(tmp_path / "train.jsonl", [record("one", LABEL), record("two", "helpfulness:9")])
    write(tmp_path / "val.jsonl", [record("three", LABEL)])
    long = record("four")
    long["conversations"] += [{"value": "word " * 600, "from": "User"}, {"value": "five", "from": "Assistant"}]
    write(tmp_path / "more.jsonl.gz", [long, record("six")])
    files = {"train": "train.jsonl", "validation": "val.jsonl", "unlabelled": "more.jsonl.gz"}
    found, metrics = prepare(tmp_path, {"preset": "helpsteer"}, {"records": files, "onError": "skip"})
    assert [t[2][1] for t in told(found["value_train"])] == ["one"]
    assert [(t[0], t[2], len(t)) for t in told(found["annotate_train"])] == [
        ("VALUE_TO_TEXT", ("Assistant", "four", None), 3),
        ("VALUE_TO_TEXT", ("Assistant", "six", None), 3),
    ]
    assert [t[2][1] for t in told(found["annotate_val"])] == ["three"]
    assert sum(metrics["rejected"].values()) == 1
    assert metrics["annotate_train"]["shortened"] == 1

"""preprocessing.py writes what upstream writes, refuses what upstream stumbles over, and stays small on large and deep input."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_steerlm.core.errors import DataError, UsageError
from nemo_steerlm.core.objectives import OBJECTIVES
from nemo_steerlm.data.preprocessing import PreprocessingRules, preprocess
from tests.data import oasst_model
from tests.data.trees import forests, message, tree
from tests.inputs import OASST

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, trees: list[object]) -> Path:
    path.write_text("".join(json.dumps(t, ensure_ascii=False) + "\n" for t in trees), encoding="utf-8")
    return path


def script(*arguments: object, **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / "preprocessing.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload]


@settings(max_examples=40)
@given(forests(), st.sampled_from(["User", "Assistant"]), st.sampled_from(sorted(OBJECTIVES)), st.floats(0, 1), st.integers(0, 99))
def test_output_equals_upstreams(tmp_path_factory, forest, mask, kind, ratio, seed):
    folder = tmp_path_factory.mktemp("run")
    source = write(folder / "in.jsonl", forest)
    train, val = oasst_model.outputs(source.read_text("utf-8").split("\n")[:-1], mask, kind, ratio, seed)
    rules = PreprocessingRules(mask_role=mask, mode=kind, split_ratio=ratio, seed=seed)
    if not train + val:
        with pytest.raises(DataError, match="no prompt has a reply"):
            preprocess(source, folder / "out", rules)
        return
    done = preprocess(source, folder / "out", rules)
    assert (folder / "out_train.jsonl").read_text("utf-8") == "".join(train)
    assert (folder / "out_val.jsonl").read_text("utf-8") == "".join(val)
    assert (done.train, done.validation) == (len(train), len(val))


@pytest.mark.parametrize("spelling", [["--input_file={}"], ["--input_file", "{}"], ["--input-file", "{}"]])
def test_real_trees_give_the_golden_digests(tmp_path, spelling):
    """Counts and digests of the tutorial's step 4 on OASST1's English validation trees, checked against the oracle as well."""
    flags = [part.format(OASST) for part in spelling]
    flags += ["--mask_role=User", "--type=TEXT_TO_VALUE", "--split_ratio=0.95", "--seed=10"]
    done = script(*flags, f"--output_file_prefix={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("lang values: ['en']\n64 trees: 332 records")
    expected = oasst_model.outputs(OASST.read_text("utf-8").splitlines(), "User", "TEXT_TO_VALUE", 0.95, 10)
    digests = {}
    for name, lines in zip(("train", "val"), expected, strict=True):
        data = (tmp_path / f"out_{name}.jsonl").read_bytes()
        assert data.decode() == "".join(lines)
        digests[name] = hashlib.sha256(data).hexdigest()[:16]
    assert digests == {"train": "52fc4101f7b3bac3", "val": "7fa60e4596a2031b"}


def test_packed_and_parallel_input_give_the_same_bytes(tmp_path):
    trees = [tree(f"t{i}", message(f"Q{i}", replies=[message(f"A{i}", "assistant")])) for i in range(50)]
    plain = write(tmp_path / "in.jsonl", trees)
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    preprocess(plain, tmp_path / "a")
    preprocess(packed, tmp_path / "b", jobs=2)
    for part in ("train", "val"):
        assert (tmp_path / f"a_{part}.jsonl").read_bytes() == (tmp_path / f"b_{part}.jsonl").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a_train.jsonl",
        "a_val.jsonl",
        "b_train.jsonl",
        "b_val.jsonl",
        "in.jsonl",
        "in.jsonl.gz",
    ]


def test_a_tree_of_ten_thousand_levels(tmp_path):
    # Written as text: the standard encoder would recurse.
    depth = 10_000
    labels = '"labels": {"quality": {"value": 1.0, "count": 1}}, "lang": "en"'
    opening = "".join(f'{{"text": "m{i}", "role": "{("prompter", "assistant")[i % 2]}", {labels}, "replies": [' for i in range(depth))
    source = tmp_path / "deep.jsonl"
    source.write_text('{"message_tree_id": "deep", "prompt": ' + opening + "]}" * depth + "}\n" + json.dumps(tree()) + "\n")
    done = preprocess(source, tmp_path / "out", PreprocessingRules(split_ratio=1.0))
    assert done.train == 3
    lines = [json.loads(line) for line in (tmp_path / "out_train.jsonl").read_text().splitlines()]
    deep = next(line for line in lines if line["tree_id"] == "deep")
    assert [turn["value"] for turn in deep["conversations"]] == [f"m{i}" for i in range(depth)]
    source.write_text('{"message_tree_id": "deep", "prompt": ' + opening + '], "text": ""}' + "]}" * (depth - 1) + "}\n")
    with pytest.raises(DataError, match=":1: the key 'text' stands twice in one object"):
        preprocess(source, tmp_path / "out", PreprocessingRules())


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_file(tmp_path):
    def peak(megabytes: int) -> int:
        source = tmp_path / f"{megabytes}.jsonl"
        text = "x" * 2000
        with source.open("w") as file:
            for i in range(megabytes * 1_000_000 // 12_600):
                replies = [message(text, "assistant") for _ in range(5)]
                file.write(json.dumps(tree(f"t{i}", message(text, replies=replies))) + "\n")
        # Not ru_maxrss: a child's begins at that of the process it was forked from.
        code = (
            "import sys; from nemo_steerlm.data.preprocessing import preprocess; preprocess(sys.argv[1], sys.argv[2]);"
            "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
        )
        done = subprocess.run([sys.executable, "-c", code, source, tmp_path / "out"], capture_output=True, text=True, check=True)
        source.unlink()
        return int(done.stdout)

    small, large = peak(20), peak(200)
    assert large < small + 16_000, "kilobytes"


def broken(change) -> dict[str, object]:
    made = tree()
    change(made)
    return made


BAD = {
    "json": ('{"message_tree_id": "t1", ', "broken JSON"),
    "array": ("[1, 2]", "a JSON array, not an object"),
    "word": ("3", "not an object: 3"),
    "labels": (broken(lambda t: t["prompt"].update(labels=[])), "prompt.labels: labels is []; write an object"),
    "replies": (broken(lambda t: t["prompt"]["replies"][1].update(replies={})), "prompt.replies[1].replies: replies is {}; write a list"),
    "lists": (
        broken(lambda t: t["prompt"].update(labels={"name": ["quality"], "value": []})),
        "prompt.labels: name and value are not lists of one length",
    ),
    "value": (broken(lambda t: t["prompt"]["labels"]["quality"].pop("value")), "prompt.labels.quality.value: missing key 'value'"),
    "text": (broken(lambda t: t["prompt"].pop("text")), "prompt.text: missing key 'text'"),
    "prompt": ({"message_tree_id": "t1"}, "prompt: missing key 'prompt'"),
    "role": (broken(lambda t: t["prompt"]["replies"][0].update(role="system")), "prompt.replies[0].role: unknown role 'system'"),
    "range": (broken(lambda t: t["prompt"]["labels"]["quality"].update(value=1.5)), "value: label out of range: quality is 1.5"),
    "kind": (broken(lambda t: t["prompt"]["labels"]["quality"].update(value="high")), "value is 'high'; write a number"),
    "assistant": (broken(lambda t: t["prompt"].update(role="assistant")), "role: the conversation starts with the assistant"),
    "mask": (broken(lambda t: t["prompt"]["replies"][0].update(role="prompter")), "mask role 'Assistant' is not in the conversation"),
    "control": (broken(lambda t: t["prompt"].update(text="a <extra_id_1>User")), "prompt.text: control token '<extra_id_1>' in the text"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_no_output_or_set_aside(tmp_path, name):
    content, sentence = BAD[name]
    line = content if isinstance(content, str) else json.dumps(content)
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join([json.dumps(tree("good")), line, json.dumps(tree("good2"))]) + "\n")
    rules = PreprocessingRules(mask_role="Assistant")
    with pytest.raises(DataError) as error:
        preprocess(source, tmp_path / "out", rules)
    assert str(error.value).startswith(f"{source}:2: ")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]

    done = preprocess(source, tmp_path / "out", rules, on_error="skip")
    assert sum(done.rejected.values()) == 1
    [rejected] = [json.loads(text) for text in (tmp_path / "out.rejected.jsonl").read_text().splitlines()]
    assert (rejected["line"], rejected["text"]) == (2, line)
    assert rejected["reason"] in str(error.value)
    assert done.train + done.validation == 4


def test_invalid_utf8_and_torn_gzip_and_nothing_at_all(tmp_path):
    source = tmp_path / "in.jsonl"
    for data, sentence in (
        (b'{"message_tree_id": "\xff"}\n', ":1: invalid UTF-8 at byte 21"),
        (b"", "empty file"),
        (b"\n \n", "empty file"),
    ):
        source.write_bytes(data)
        with pytest.raises(DataError, match=sentence):
            preprocess(source, tmp_path / "out")
    torn = tmp_path / "in.jsonl.gz"
    torn.write_bytes(gzip.compress(json.dumps(tree()).encode() * 50)[:-20])
    with pytest.raises(DataError, match="broken gzip"):
        preprocess(torn, tmp_path / "out")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        preprocess(tmp_path / "absent.jsonl", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("labels", "rated", "said"),
    [
        ({"quality": {"value": 0.5}}, 2, ""),
        ({"name": ["spam", "quality"], "value": [0.0, 0.5]}, 2, ""),
        ({"name": ["qualty"], "value": [0.5]}, 0, "no message has a rating of quality, toxicity, "),
        (None, 0, "no message has a rating of quality, toxicity, "),
    ],
)
def test_it_is_said_where_nothing_is_rated(tmp_path, labels, rated, said):
    """Of the two shapes of labels; a name that is none of the known ones is no rating, nor is a language alone."""
    trees = [tree(f"t{i}", message("Q", labels=None, replies=[message("A", "assistant", labels=labels, lang="en")])) for i in range(2)]
    source = write(tmp_path / "in.jsonl", trees)
    assert preprocess(source, tmp_path / "out").rated == rated
    done = script("--input_file", source, "--output_file_prefix", tmp_path / "out")
    assert (done.returncode, done.stderr[: len(said)], bool(done.stderr)) == (0, said, bool(said))


def test_an_empty_language_is_none(tmp_path):
    source = write(tmp_path / "in.jsonl", [tree("t", message("Q", replies=[message("A", "assistant", lang="")]))])
    assert preprocess(source, tmp_path / "out", PreprocessingRules(split_ratio=1.0)).languages == ["en"]
    [record] = (tmp_path / "out_train.jsonl").read_text().splitlines()
    assert json.loads(record)["conversations"][1]["label"] == "quality:3,toxicity:0"


def test_the_script_ends_with_the_exit_code_of_the_error(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("{\n")
    done = script("--input_file", source, "--output_file_prefix", tmp_path / "out")
    assert done.returncode == 65
    assert done.stderr.startswith(f"preprocessing.py: {source}:1: broken JSON")
    assert len(done.stderr.splitlines()) == 1
    done = script("--input_file", source, "--output_file_prefix", tmp_path / "out", "--on-error=skip")
    assert (done.returncode, (tmp_path / "out_train.jsonl").exists()) == (65, False)
    assert "no conversation in 1 trees: broken JSON" in done.stderr
    assert (tmp_path / "out.rejected.jsonl").read_text()
    assert script("--input_file", source, "--type=TEXT").returncode == 2


def test_a_repaired_run_leaves_no_old_rejects(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("{\n" + json.dumps(tree()) + "\n")
    preprocess(source, tmp_path / "out", on_error="skip")
    assert (tmp_path / "out.rejected.jsonl").exists()
    write(source, [tree()])
    preprocess(source, tmp_path / "out")
    assert not (tmp_path / "out.rejected.jsonl").exists()


@pytest.mark.parametrize("flags", [{"mode": "TEXT"}, {"mask_role": "Human"}, {"split_ratio": 1.5}, {"limit": 0}])
def test_flags_that_cannot_be_meant_are_usage_errors(flags):
    with pytest.raises(UsageError, match="--"):
        PreprocessingRules(**flags)


def test_limit_reads_the_first_trees_only(tmp_path):
    source = write(tmp_path / "in.jsonl", [tree(f"t{i}") for i in range(5)])
    assert preprocess(source, tmp_path / "out", PreprocessingRules(limit=2)).trees == 2


def without(made: dict[str, object], *keys: str) -> dict[str, object]:
    return {key: value for key, value in made.items() if key not in keys}


ANSWER = message("A.", "assistant")
OPTIONAL = {
    # What Open-Assistant's format page lets be absent, and what the hub's tables write instead.
    "no labels": (without(ANSWER, "labels"), {"label": None, "lang": "en"}),
    "null labels": ({**ANSWER, "labels": None}, {"label": None, "lang": "en"}),
    "no lang": (without(ANSWER, "lang"), {"label": "quality:3,toxicity:0"}),
    "no replies": (without(ANSWER, "replies"), {"label": "quality:3,toxicity:0,lang:en"}),
    "null replies": ({**ANSWER, "replies": None}, {"label": "quality:3,toxicity:0,lang:en"}),
    "null value": ({**ANSWER, "labels": {"quality": {"value": None}, "toxicity": {"value": 0.5}}}, {"label": "toxicity:2,lang:en"}),
    "NaN": ({**ANSWER, "labels": {"quality": {"value": float("nan")}, "toxicity": {"value": 0.5}}}, {"label": "toxicity:2,lang:en"}),
    "null label": ({**ANSWER, "labels": {"quality": None, "toxicity": {"value": 0.5}}}, {"label": "toxicity:2,lang:en"}),
    "hub": ({**ANSWER, "labels": {"name": ["spam", "quality"], "value": [1.0, 0.5], "count": [1, 1]}}, {"label": "quality:2,lang:en"}),
    "hub, null": ({**ANSWER, "labels": {"name": ["humor", "quality"], "value": [None, 0.5]}}, {"label": "quality:2,lang:en"}),
    "deleted with its text": ({**ANSWER, "deleted": True}, {"label": "quality:3,toxicity:0,lang:en"}),
}


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_the_format_calls_optional_may_be_absent(tmp_path, name):
    answer, expected = OPTIONAL[name]
    source = write(tmp_path / "in.jsonl", [tree("t", message("Q?", replies=[answer]))])
    done = preprocess(source, tmp_path / "out", PreprocessingRules(split_ratio=1.0))
    assert (done.train, done.rejected, done.left_out) == (1, {}, {})
    turn = json.loads((tmp_path / "out_train.jsonl").read_text())["conversations"][1]
    assert turn["value"] == "A."
    assert {key: turn.get(key) for key in expected} == expected


@pytest.mark.parametrize("deleted", [{"text": None, "deleted": True}, {"text": None}])
def test_a_message_without_text_ends_its_branch_and_is_counted(tmp_path, deleted):
    below = [message("never", "assistant")]
    gone = {**message("x", replies=below), **deleted}
    prompt = message("Q?", replies=[message("A.", "assistant", replies=[gone]), {**gone, "role": "assistant"}])
    done = preprocess(
        write(tmp_path / "in.jsonl", [tree("t", prompt), tree("u", gone)]), tmp_path / "out", PreprocessingRules(split_ratio=1.0)
    )
    assert (done.train, done.left_out) == (1, {"message without text": 3})
    assert [turn["value"] for turn in json.loads((tmp_path / "out_train.jsonl").read_text())["conversations"]] == ["Q?", "A."]


def test_deleted_messages_with_their_text_can_be_left_out(tmp_path):
    prompt = message("Q?", replies=[message("A.", "assistant"), {**message("B.", "assistant"), "deleted": True}])
    done = preprocess(
        write(tmp_path / "in.jsonl", [tree("t", prompt)]), tmp_path / "out", PreprocessingRules(split_ratio=1.0, skip_deleted=True)
    )
    assert (done.train, done.left_out) == (1, {"deleted message": 1})


@pytest.mark.parametrize("packed", [False, True])
def test_byte_order_marks_are_passed_over_in_every_line_that_has_one(tmp_path, packed):
    """Two files with a mark each, put together."""
    line = json.dumps(tree("t")).encode() + b"\r\n"
    source = tmp_path / "in.jsonl"
    data = b"\xef\xbb\xbf" + line + b"\xef\xbb\xbf" + line
    source.write_bytes(gzip.compress(data) if packed else data)
    assert preprocess(source, tmp_path / "out").trees == 2


def test_prompts_alone_are_nothing_to_learn_from(tmp_path):
    source = write(tmp_path / "in.jsonl", [tree("t", message("Q?"))])
    for on_error in ("fail", "skip"):
        with pytest.raises(DataError, match="no conversation in 1 trees: no prompt has a reply; nothing can be learned from prompts alone"):
            preprocess(source, tmp_path / "out", on_error=on_error)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]

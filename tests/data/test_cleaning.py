"""data_clean.py keeps what upstream keeps, whatever the control tokens, and says why the rest went."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nemo_steerlm.core.attributes import Attribute, AttributeSchema, preset
from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.encoding import encode_spans
from nemo_steerlm.core.errors import DataError, UsageError
from nemo_steerlm.core.template import ChatTokens, Template
from nemo_steerlm.data.cleaning import CleaningRules, TokenizerChoice, clean
from tests.core.records_for_tests import ordinary_records
from tests.core.tokenizers_of_all_kinds import MODEL, byte_level_bpe, sentencepiece_plain
from tests.core.upstream_model import NotOrdinaryError, upstream

ROOT = Path(__file__).resolve().parents[2]
TOKENS = {
    "default": ChatTokens(),
    "control-characters": ChatTokens.from_shell(system_turn_start="x00", turn_start="x11", label_start="x12"),
}


TOKENS_IN_ORDER = tuple(getattr(ChatTokens(), field) for field in ChatTokens.__struct_fields__)


def turns(count: int = 2, **first: object) -> list[dict[str, object]]:
    made: list[dict[str, object]] = [{"value": f"t{i}", "from": ("User", "Assistant")[i % 2], "label": "quality:4"} for i in range(count)]
    made[0].update(first)
    return made


def record(**changes: object) -> dict[str, object]:
    made = {"conversations": turns(), "tree_id": "é", "system": "S\n\n", "mask": "User", "type": "VALUE_TO_TEXT", **changes}
    return {key: value for key, value in made.items() if value is not ...}


def write(path: Path, records: list[object]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in records), encoding="utf-8")
    return path


@pytest.fixture(params=["sentencepiece", "huggingface"])
def choice(request, tmp_path_factory) -> TokenizerChoice:
    if request.param == "sentencepiece":
        sentencepiece_plain()
        return TokenizerChoice("sentencepiece", model_file=str(MODEL))
    folder = tmp_path_factory.mktemp("bpe")
    byte_level_bpe()._tokenizer.save(str(folder / "tokenizer.json"))
    return TokenizerChoice("huggingface", str(folder))


@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
def test_what_is_kept_equals_upstream(tokens, choice, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tokenizer = choice.load(tokens)
    strings = tuple(getattr(tokens, field) for field in tokens.__struct_fields__)

    def has_something_to_learn(item: dict[str, object], length: int) -> bool:
        try:
            _, mask = upstream(item, tokenizer.encode, strings)
        except NotOrdinaryError:
            assume(False)
        return any(mask[: length + 1])

    @settings(max_examples=12, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(ordinary_records(), min_size=1, max_size=4), st.integers(10, 300))
    def compare(records, length):
        source, output = write(folder / "in.jsonl", records), folder / "out.jsonl"
        expected = [json.dumps(r, ensure_ascii=False) + "\n" for r in records if has_something_to_learn(r, length)]
        if not expected:
            with pytest.raises(DataError, match=f"{len(records)} records, none of which can be used"):
                clean(source, output, choice, CleaningRules(seq_len=length, tokens=tokens))
            return
        done = clean(source, output, choice, CleaningRules(seq_len=length, tokens=tokens))
        assert output.read_text("utf-8") == "".join(expected)
        assert (done.kept, sum(done.removed.values())) == (len(expected), len(records) - len(expected))

    compare()


def test_a_learned_token_may_be_the_last_of_length_plus_one(tmp_path, choice):
    source = write(tmp_path / "in.jsonl", [record()])
    _, mask = upstream(record(), lambda text: choice.load(ChatTokens()).encode(text), TOKENS_IN_ORDER)
    first = mask.index(1)
    assert clean(source, tmp_path / "out.jsonl", choice, CleaningRules(seq_len=first)).kept == 1
    with pytest.raises(DataError, match=f"nothing to learn within {first - 1} tokens"):
        clean(source, tmp_path / "other.jsonl", choice, CleaningRules(seq_len=first - 1))
    assert not (tmp_path / "other.jsonl").exists()


def test_the_script_with_the_tutorials_flags(tmp_path):
    sentencepiece_plain()
    long = record(conversations=turns(2, value="word " * 200))
    unlabelled = record(type="TEXT_TO_VALUE", conversations=[{"value": "a", "from": "User"}, {"value": "b", "from": "Assistant"}])
    source = write(tmp_path / "in.jsonl", [record(), long, unlabelled, record()])
    command = [
        sys.executable,
        str(ROOT / "examples" / "data_clean.py"),
        f"--dataset_file={source}",
        f"--output_file={tmp_path / 'out.jsonl'}",
    ]
    flags = [
        "--library",
        "sentencepiece",
        "--model_file",
        str(MODEL),
        "--seq_len",
        "200",
        f"--details={tmp_path / 'why.jsonl'}",
        "--jobs=2",
    ]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 kept" in done.stdout
    assert "1  nothing to learn within 200 tokens" in done.stdout
    assert "1  nothing to learn: no learned token" in done.stdout
    assert (tmp_path / "out.jsonl").read_text("utf-8") == (json.dumps(record(), ensure_ascii=False) + "\n") * 2
    assert [json.loads(line) for line in (tmp_path / "why.jsonl").read_text().splitlines()] == [
        {"line": 2, "reason": "nothing to learn within 200 tokens"},
        {"line": 3, "reason": "nothing to learn: no learned token"},
    ]


def test_a_shortened_conversation_is_one_that_a_server_can_label(tmp_path, choice):
    """Cut after the last turn that fits with labels of all turns; equal branches of one tree once; no answer left, no record."""
    schema = preset("oasst")
    long = [record(conversations=turns(n), tree_id="t") for n in (2, 5, 6)]
    other = record(conversations=turns(6), tree_id="u")
    question = record(conversations=turns(2, value="word " * 800))
    tokenizer = choice.load(ChatTokens())
    template = Template.of(tokenizer)
    label = schema.encode(schema.defaults(), "en")

    def length(item):
        labelled = [{**turn, "label": label} for turn in item["conversations"]]
        return len(
            encode_spans(template.render(Conversation.from_record({**item, "conversations": labelled}), "TEXT_TO_VALUE"), tokenizer).ids
        )

    four = {**long[1], "conversations": turns(4)}
    source = write(tmp_path / "in.jsonl", [*long, other, question])
    rules = CleaningRules(seq_len=length({**long[1], "conversations": turns(5)}) - 1, shorten=schema)
    for jobs in (1, 2):
        done = clean(source, tmp_path / "out.jsonl", choice, rules, jobs=jobs)
        kept = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
        assert kept == [long[0], four, {**four, "tree_id": "u"}]
        assert all(length(item) <= rules.seq_len for item in kept)
        assert done.shortened == 4
        assert done.removed == {
            "equals another branch of its tree when shortened": 1,
            f"no answer left within {rules.seq_len} tokens": 1,
        }
    assert clean(source, tmp_path / "out.jsonl", choice, rules._replace(shorten=None)).shortened == 0


def test_equal_branches_that_were_not_cut_all_stay(tmp_path, choice):
    source = write(tmp_path / "in.jsonl", [record(tree_id="t"), record(tree_id="t")])
    done = clean(source, tmp_path / "out.jsonl", choice, CleaningRules(shorten=preset("oasst")))
    assert (done.kept, done.shortened, done.removed) == (2, 0, {})


def test_room_is_left_for_the_longest_value_of_each_attribute(tmp_path, choice):
    """From -3 to 2, the longest is -3 and not the highest."""
    schema = AttributeSchema(attributes=(Attribute(name="quality", low=-3, high=2),))
    item = record(conversations=turns(4, label="quality:2"))
    tokenizer = choice.load(ChatTokens())

    def length(value):
        turns_of = tuple(Turn(speaker=t["from"], text=t["value"], label=f"quality:{value}") for t in item["conversations"])
        spans = Template.of(tokenizer, ChatTokens(), "nemo-sft").render(
            Conversation(turns=turns_of, system=item["system"]), "TEXT_TO_VALUE"
        )
        return len(encode_spans(spans, tokenizer).ids)

    assert length(-3) > length(2)
    source = write(tmp_path / "in.jsonl", [item])
    for size, left in ((length(-3), 4), (length(2), 3)):
        clean(source, tmp_path / "out.jsonl", choice, CleaningRules(seq_len=size, shorten=schema))
        assert len(json.loads((tmp_path / "out.jsonl").read_text())["conversations"]) == left


def test_room_is_left_for_the_longest_language(tmp_path, choice):
    schema = AttributeSchema(attributes=(Attribute(name="quality"),), languages=("en", "a rather long language", "de"))
    item = record(conversations=turns(4))
    tokenizer = choice.load(ChatTokens())

    def length(language):
        turns_of = tuple(Turn(speaker=t["from"], text=t["value"], label=f"quality:4,lang:{language}") for t in item["conversations"])
        conversation = Conversation(turns=turns_of, system=item["system"])
        spans = Template.of(tokenizer, ChatTokens(), "nemo-sft").render(conversation, "TEXT_TO_VALUE")
        return len(encode_spans(spans, tokenizer).ids)

    longest = length(schema.languages[1])
    assert longest > length("en")
    source = write(tmp_path / "in.jsonl", [item])
    for size, left in ((longest, 4), (longest - 1, 3)):
        clean(source, tmp_path / "out.jsonl", choice, CleaningRules(seq_len=size, shorten=schema))
        assert len(json.loads((tmp_path / "out.jsonl").read_text())["conversations"]) == left


def test_a_question_that_nobody_answered_teaches_nothing_whether_or_not_it_is_shortened(tmp_path, choice):
    source = write(tmp_path / "in.jsonl", [record(conversations=turns(1)), record()])
    for rules in (CleaningRules(), CleaningRules(shorten=preset("oasst"))):
        done = clean(source, tmp_path / "out.jsonl", choice, rules)
        assert (done.kept, done.shortened, done.removed) == (1, 0, {"nothing to learn: no learned token": 1})


def test_several_files_become_one_and_every_record_gets_the_type_that_is_wanted(tmp_path, choice):
    first = write(tmp_path / "a.jsonl", [record(tree_id="a")])
    second = write(tmp_path / "b.jsonl", [record(tree_id="b", type="TEXT_TO_VALUE"), "{"])
    done = clean([first, second], tmp_path / "out.jsonl", choice, CleaningRules(mode="VALUE_TO_TEXT"), on_error="skip")
    kept = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert kept == [record(tree_id="a"), record(tree_id="b")]
    [rejected] = (json.loads(line) for line in (tmp_path / "out.jsonl.rejected.jsonl").read_text().splitlines())
    assert (done.kept, rejected["file"], rejected["line"]) == (2, str(second), 2)


BAD = {
    "json": ("{", "broken JSON"),
    "conversations": (record(conversations=...), "conversations: missing key 'conversations'"),
    "no-turns": (record(conversations=[]), "conversations: no turns"),
    "value": (record(conversations=[{"from": "User"}]), "conversations[0].value: missing key 'value'"),
    "system": (record(system=...), "system: missing key 'system'"),
    "label-kind": (record(conversations=turns(2, label=4)), "conversations[0].label: label is 4; write a string"),
    "type": (record(type="TEXT"), "type: unknown type 'TEXT'"),
    "mask": (record(mask="Human"), "mask: mask role 'Human' is not in the conversation"),
    "assistant": (record(conversations=turns(3)[1:]), "conversations[0].from: the conversation starts with the assistant"),
    "control": (record(conversations=turns(2, value="<extra_id_2>quality:4")), "conversations[0].value: control token '<extra_id_2>'"),
    "range": (record(conversations=turns(2, label="quality:9")), "conversations[0].label: label out of range: quality is '9'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_record_is_named_or_set_aside(name, tmp_path, choice):
    content, sentence = BAD[name]
    source = write(tmp_path / "in.jsonl", [record(), content, record()])
    rules = CleaningRules(schema=preset("oasst"))
    with pytest.raises(DataError) as error:
        clean(source, tmp_path / "out.jsonl", choice, rules)
    assert str(error.value).startswith(f"{source}:2: ")
    assert sentence.replace("'9'", "9") in str(error.value).replace("'9'", "9")
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]

    done = clean(source, tmp_path / "out.jsonl", choice, rules, on_error="skip")
    assert (done.kept, sum(done.rejected.values())) == (2, 1)
    [rejected] = (json.loads(line) for line in (tmp_path / "out.jsonl.rejected.jsonl").read_text().splitlines())
    assert (rejected["line"], rejected["file"]) == (2, str(source))


def test_other_control_tokens_look_for_their_own_strings(tmp_path, choice):
    source = write(tmp_path / "in.jsonl", [record(conversations=turns(2, value="typed <extra_id_1>"))])
    assert clean(source, tmp_path / "out.jsonl", choice, CleaningRules(tokens=TOKENS["control-characters"])).kept == 1


def test_what_cannot_be_meant(tmp_path, choice):
    source = write(tmp_path / "in.jsonl", [record()])
    for wrong, rules in (
        (TokenizerChoice("sentencepiece"), CleaningRules()),
        (TokenizerChoice("nemo"), CleaningRules()),
        (TokenizerChoice("sentencepiece", model_file=str(source)), CleaningRules()),
        (choice, CleaningRules(seq_len=0)),
    ):
        with pytest.raises(UsageError):
            clean(source, tmp_path / "out.jsonl", wrong, rules)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(("hide", "shown"), [("none", ["u", "a", "p"]), ("masked", [None, "a", "p"]), ("all", [None, None, "p"])])
def test_peoples_labels_that_no_prompt_shows_are_kept_beside_it(hide, shown, tmp_path, choice):
    said = [
        {"value": "q", "from": "User", "label": "u"},
        {"value": "r", "from": "Assistant", "label": "a"},
        {"value": "s", "from": "Assistant", "label": "p", "label_source": "model"},
    ]
    source = write(tmp_path / "in.jsonl", [record(conversations=said)])
    assert clean(source, tmp_path / "out.jsonl", choice, CleaningRules(hide_human=hide)).kept == 1
    [line] = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    turns = json.loads(line)["conversations"]
    assert [turn.get("label") for turn in turns] == shown
    assert [turn.get("gt_label", turn.get("label")) for turn in turns] == ["u", "a", "p"]

from __future__ import annotations

import pytest

from nemo_steerlm.core.attributes import Attribute, AttributeSchema
from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.tokenization import HuggingFaceTokenizer, load_tokenizer
from nemo_steerlm.inference.label_plan import ValueTree, compile_label


def test_the_plan_spells_every_label_as_the_whole_string_is_tokenized(value_folder):
    info, tokenizer = ModelInfo.load(value_folder), load_tokenizer(value_folder)
    plan = compile_label(info, tokenizer)
    for values in (("0", "4", "10", "de"), ("4", "0", "1", "en"), ("2", "2", "9", "es")):
        spelled = [t for slot, value in zip(plan.slots, values, strict=True) for t in (*slot.forced, *slot.values[value])]
        marker = info.tokens.label_start
        whole = tokenizer.encode_offsets(marker + plan.label(values) + info.tokens.end_of_name)[0]
        start = whole.index(tokenizer.token_id(marker)) + 1
        assert whole[start : start + len(spelled)] == spelled
        assert plan.length > len(spelled)


def test_a_value_that_starts_another_is_told_from_it_by_the_separator():
    tree = ValueTree.build({"1": (7, 99), "10": (7, 3, 99), "2": (8, 99)})
    assert tree.nodes[0].children == {7: 1, 8: "2"}
    assert tree.nodes[1].children == {99: "1", 3: "10"}
    assert (tree.nodes[1].token, tree.nodes[1].parent, tree.nodes[1].depth) == (7, 0, 1)


def test_values_with_the_same_tokens_are_refused():
    with pytest.raises(ConfigError, match="same tokens"):
        ValueTree.build({"1": (7, 99), "01": (7, 99)})


def test_a_tokenizer_that_merges_values_with_their_neighbours_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<unk>": 0, "quality:0": 1, "quality:1": 2, "\n": 3}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    info = ModelInfo(kind="value", attributes=AttributeSchema(attributes=(Attribute(name="quality", high=1),)))
    tokenizer = HuggingFaceTokenizer(raw, eos="<unk>", add=info.tokens.markers)
    with pytest.raises(ConfigError, match="merges the value in 'quality:0' with its neighbours"):
        compile_label(info, tokenizer)

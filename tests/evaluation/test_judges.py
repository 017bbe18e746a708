"""Judges, and how one is added."""

from __future__ import annotations

import pytest

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.evaluation.judges import NAMES, judge


def shouting(text: str) -> float:
    return sum(c.isupper() for c in text)


def no_number(text: str) -> str:
    return text


def test_judges():
    assert judge("words")("two words") == 2
    assert judge("characters")("four") == 4
    assert judge("vader")("I love this wonderful film!") > 0.5 > judge("vader")("I hate this awful film.")
    assert judge("type_token_ratio")("The cat and the dog") == pytest.approx(4 / 5)
    assert judge("type_token_ratio")("!") == 0
    assert judge(r"regex:\bno\b")("No, no and no: not") == 2
    assert judge(f"{__name__}:shouting")("No NO") == 3


def test_flesch_kincaid_is_its_formula():
    """Six words of one syllable in one sentence; the second text has 2 sentences, 5 words and 9 syllables."""
    assert judge("flesch_kincaid")("The cat sat on the mat.") == pytest.approx(0.39 * 6 + 11.8 * 1 - 15.59)
    assert judge("flesch_kincaid")("Computers calculate. We win daily!") == pytest.approx(0.39 * 5 / 2 + 11.8 * 10 / 5 - 15.59, abs=2.5)
    hard = "Notwithstanding considerable institutional opposition, the administration implemented comprehensive legislation."
    assert judge("flesch_kincaid")(hard) > 15
    assert judge("flesch_kincaid")("...") == 0


def test_language_is_told():
    german = judge("language:de")
    assert german("Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter.") > 0.9
    assert german("This is quite an ordinary English sentence about the weather.") < 0.1
    assert german("12 34") == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vadder", "did you mean vader"),
        ("words:3", "takes no argument"),
        ("regex", "write regex:ARGUMENT"),
        ("regex:(", "no regular expression"),
        ("language:xx", "unknown language 'xx'; known: af, ar, bg, bn"),
        ("no_such_module:f", "No module named"),
        ("math:no_such", "no_such"),
        ("math:pi", "is no function"),
    ],
)
def test_a_judge_that_there_is_not_is_named(name, said):
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        judge(name)


def test_what_a_users_function_returns_is_looked_at():
    with pytest.raises(UsageError, match="finite number"):
        judge(f"{__name__}:no_number")("x")


def test_every_file_of_the_folder_is_a_judge_that_says_what_it_measures():
    import importlib

    for name in NAMES:
        module = importlib.import_module(f"nemo_steerlm.evaluation.judges.{name}")
        assert module.__doc__
        assert module.judge.__doc__

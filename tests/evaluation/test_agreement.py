from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from nemo_steerlm.core.attributes import Attribute, AttributeSchema
from nemo_steerlm.evaluation.agreement import Agreement, compare, plot, spearman

SCHEMA = AttributeSchema(attributes=(Attribute(name="quality", low=-1, high=3, default=0),), languages=("en", "de"))
VALUES = st.integers(-1, 3)


@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=60))
def test_figures_from_counts_equal_those_from_the_pairs(pairs: list[tuple[int, int]]) -> None:
    agreement = Agreement(SCHEMA)
    for human, predicted in pairs:
        agreement.add(f"quality:{human}", f"quality:{predicted},lang:en")
    figures = agreement.figures()["quality"]
    assert figures["turns"] == len(pairs)
    assert figures["accuracy"] == pytest.approx(sum(h == p for h, p in pairs) / len(pairs), abs=1e-6)
    assert figures["mae"] == pytest.approx(sum(abs(h - p) for h, p in pairs) / len(pairs), abs=1e-6)
    if len({h for h, _ in pairs}) > 1 and len({p for _, p in pairs}) > 1:
        assert figures["spearman"] == pytest.approx(spearmanr([h for h, _ in pairs], [p for _, p in pairs]).statistic, abs=1e-6)
    else:
        assert figures["spearman"] is None


def test_predictions_between_two_values_are_rounded_for_accuracy_only() -> None:
    found = compare([0, 1, 4], [0.4, 2.0, 4.0])
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.mae == pytest.approx(1.4 / 3)
    assert found.count == 3


def test_spearman_is_none_where_a_side_never_varies() -> None:
    assert spearman([1, 2, 3], [5, 5, 5]) is None
    assert spearman([1.5], [2.5]) is None
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def test_what_a_human_label_does_not_say_is_not_compared() -> None:
    agreement = Agreement(SCHEMA)
    agreement.add("humor:3,quality:9", "quality:1")
    agreement.add("nonsense", "quality:1")
    agreement.add("lang:de", "quality:1,lang:en")
    agreement.add("lang:en", "quality:1,lang:en")
    agreement.add("lang:de", "quality:1,lang:de")
    assert agreement.figures() == {"lang": {"turns": 3, "accuracy": 2 / 3}}


def test_the_counts_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dark squares have white numbers: more than half of what people gave the same value."""
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: (drawn.append(figure), save(figure, path)))
    agreement = Agreement(SCHEMA)
    for human, predicted in ((2, 3), (2, 2), (0, 1), (0, 1), (0, -1)):
        agreement.add(f"quality:{human}", f"quality:{predicted}")
    plot(agreement.figures(), tmp_path / "made" / "confusion.png")
    assert (tmp_path / "made" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    [axes] = drawn[0].axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("quality", "predicted", "human")
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["-1", "0", "1", "2", "3"]
    counts = {text.get_position(): (text.get_text(), text.get_color()) for text in axes.texts}
    assert counts == {(4, 3): ("1", "black"), (3, 3): ("1", "black"), (2, 1): ("2", "white"), (0, 1): ("1", "black")}

"""The summary tells a model that steers from one that does not; the page is whole, and its plots hide nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from nemo_steerlm.core.attributes import preset
from nemo_steerlm.evaluation.agreement import compare
from nemo_steerlm.evaluation.calibration import calibration
from nemo_steerlm.evaluation.control import Joint, control, difference, joint
from nemo_steerlm.evaluation.intervals import Interval
from nemo_steerlm.evaluation.pairs import PairFigures
from nemo_steerlm.evaluation.report import plots
from nemo_steerlm.evaluation.report.page import Report, SourceRow, write_page
from nemo_steerlm.evaluation.samples import Sample
from nemo_steerlm.evaluation.summary import ModelRow, summary
from nemo_steerlm.evaluation.value_model import AttributeCheck
from tests.evaluation.answers import CANDIDATES, STEERING, answers, best_of, failing, steering, steering_by_choice_only, steering_by_itself
from tests.serving.browsers import DESK, PHONE, chromium

JUDGES = {"positivity": "vader"}
GOLDEN = Path(__file__).with_name("golden")


def reviewed(name: str, text: str) -> None:
    """It is what somebody looked at; ``STEERLM_UPDATE_GOLDEN=1`` writes it anew."""
    if os.environ.get("STEERLM_UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(text, encoding="utf-8")
    assert text == (GOLDEN / name).read_text(encoding="utf-8")


def test_the_summary_alone_tells_a_model_that_steers():
    good, bad = (summary({}, control(made, JUDGES)) for made in (steering(), failing()))
    assert good.splitlines()[0] == "It steers positivity: every two neighbouring levels are told apart."
    assert "read the same" not in good
    assert bad.splitlines()[0] == "It does not steer positivity at every level:"
    assert "positivity 1 and 2 read the same (AUC 0.47" in bad
    assert "positivity 3 and 4 read the same" in bad
    assert "positivity 0 and 1 read the same" not in bad
    # What used to be the headline is the last column, and says 0.90 of it.
    assert bad.split("value model reads")[1].splitlines()[0].split()[-1] == "0.90"
    assert "control error           0.99 [0.9" in bad


def test_the_summary_tells_a_model_that_steers_from_one_whose_answers_are_only_chosen_well():
    by_itself, by_choice = (control(made(), JUDGES) for made in (steering_by_itself, steering_by_choice_only))
    assert not by_itself[0].alike
    assert not by_choice[0].alike, "the chosen answers tell the two models apart by nothing"
    good, bad = (summary({}, table) for table in (by_itself, by_choice))
    assert good.splitlines()[:2] == ["It steers positivity: every two neighbouring levels are told apart.", ""]
    first, second, *_ = bad.splitlines()
    assert first == "It steers positivity only where the value model chooses the best of 8 answers."
    single, chosen = re.fullmatch(
        r"  Single answers do not follow positivity: they correlate with what was asked at (\S+) .* by vader .*, the best of 8 at (\S+) .*",
        second,
    ).groups()
    assert abs(float(single)) < 0.2
    assert float(chosen) > 0.9
    lines = bad.splitlines()
    for label in ("per-answer correlation", "control error", "worst neighbours", "value model reads", "by vader"):
        place = next(i for i, line in enumerate(lines) if line.startswith(f"  {label}"))
        assert lines[place + 1].startswith("    single answers"), label
    assert re.search(r"control error +0\.3\d .*\n +single answers +1\.[56]\d ", bad)


def test_levels_that_only_the_choice_tells_apart_are_named():
    """Of a model that follows its label on the whole but not between two levels."""
    made = best_of(lambda level, numbers: numbers.gauss({2: 1.0}.get(level, level), 0.6))
    lines = summary({}, control(made, JUDGES)).splitlines()
    assert lines[0] == "It steers positivity only where the value model chooses the best of 8 answers."
    assert re.match(r"  In single answers positivity 1 and 2 read the same \(AUC 0\.[45]", lines[1])
    assert lines[2] == ""


def test_single_answers_are_compared_with_single_answers():
    """A baseline that is asked once is no worse than a model that is only chosen well, whatever its chosen answers say."""
    prompted = control(answers((1.5, 1.8, 2.0, 2.1, 2.4), (0.0, 0.1, 0.1, 0.1, 0.2)), JUDGES)
    chosen = control(steering_by_choice_only(), JUDGES)
    once, often = (ModelRow(name="prompted", table=table, baseline=True) for table in (prompted, chosen))
    for table, said in ((chosen, True), (control(steering_by_itself(), JUDGES), False)):
        text = summary({}, table, rows=[once])
        assert bool(re.search(r"\nThe prompted baseline follows positivity no worse: correlation 0\.[23]", text)) is said
        assert "\n  prompted, single answers correlation 0." in text
        assert "prompted, best of" not in text
    text = summary({}, control(steering_by_itself(), JUDGES), rows=[often])
    assert re.search(r"\n  prompted, best of 8 +correlation 0\.9.*\n  prompted, single answers correlation -?0\.[01]", text)


def test_joint_requests_say_what_single_answers_do():
    (found,) = joint(steering_by_choice_only(joint=True), {}, dict.fromkeys(range(5 * 64), "x"))
    assert found.error.value < 0.2
    assert found.single.value > 0.6  # over two attributes, of which one is always as asked
    assert ", of single answers 0." in summary({}, control(steering_by_choice_only(), JUDGES), joint=[found])


def test_levels_that_are_in_the_wrong_order_are_called_so():
    text = summary({}, control(answers((4, 3, 2, 1, 0), (0,) * 5, noise=(0.2, 1)), {}))
    assert text.count("read the wrong way round") == 4


def test_the_summary_has_the_worst_of_everything_and_the_baseline_beside_it():
    made = answers(**STEERING, noise=(0.3, 0.15), other=0.4)
    prompted = answers((1.5, 1.8, 2.0, 2.1, 2.4), (0.0, 0.1, 0.1, 0.1, 0.2))
    rows = [ModelRow(name="prompted", table=control(prompted, JUDGES), baseline=True)]
    text = summary({}, control(made, JUDGES, {"positivity": {0: -0.46, 4: 0.74}}), rows=rows)
    assert "worst cross-talk        verbosity +0.40 steps for each step asked  (more than a side effect)" in text
    assert "worst neighbours        0 and 1: AUC 0.9" in text
    assert re.search(r"prompted baseline +correlation 0\.[23]\d \[0\.\d\d, 0\.\d\d\], by vader 0\.\d\d", text)
    assert "of texts taught         -0.46" in text


def test_the_chain_says_which_round_helped():
    first, better = answers((0.5, 1.5, 2.5, 3.5, 4.5), (0,) * 5), answers((0.2, 1.2, 2.2, 3.2, 4.2), (0,) * 5)
    gain = {"positivity": difference(first, better, "positivity")}
    loss = {"positivity": difference(better, first, "positivity")}
    rows = [
        ModelRow(name="train-steer", table=control(first, {})),
        ModelRow(name="bootstrap-1-train", table=control(better, {}), gain=gain),
        ModelRow(name="bootstrap-2-train", table=control(first, {}), gain=loss),
    ]
    lines = summary({}, rows[1].table, rows=rows, best="bootstrap-1-train is served.").splitlines()
    assert next(line for line in lines if "bootstrap-1-train " in line).endswith("helped")
    assert next(line for line in lines if "bootstrap-2-train " in line).endswith("did not help")
    assert "bootstrap-1-train is served." in lines


def test_all_of_a_summary_is_as_it_was_reviewed():
    first, better = control(failing(), JUDGES), control(steering(), JUDGES, {"positivity": {0: -0.46, 4: 0.74}})
    figures = compare([0, 1, 0, 2], [0, 0, 0, 1.4])
    known = AttributeCheck(
        model=figures, majority=figures, ridge=figures, expected=figures, calibration=calibration([0, 1], [[0.6, 0.4], [0.3, 0.7]])
    )
    unknown = AttributeCheck(model=figures, majority=figures, ridge=None, expected=None, calibration=None)
    rows = [
        ModelRow(name="prompted", table=first, baseline=True),
        ModelRow(name="train-steer", table=first),
        ModelRow(name="bootstrap-1-train", table=better, gain={"positivity": difference(failing(), steering(), "positivity")}),
    ]
    error = Interval(value=0.5, low=0.25, high=0.75)
    text = summary(
        {"positivity": known, "verbosity": unknown},
        better,
        rows=rows,
        joint=[Joint(taught="never", count=12, error=error), Joint(taught="10 times or more", count=40, error=Interval(value=None))],
        best="bootstrap-1-train is served.",
        pairs=PairFigures(count=9, accuracy=error, weights={"positivity": 1.0, "toxicity": -0.5}),
    )
    reviewed("summary.txt", text)


@pytest.fixture
def report() -> Report:
    wicked = [Sample(attribute="verbosity", level=n, prompt="<b>p", answer="<script>", read={"verbosity": n}, judged=n) for n in range(5)]
    chances = [[0.6, 0.1, 0.1, 0.1, 0.1]] * 3
    figures = compare([0, 1, 0], [0, 0, 0])
    check = AttributeCheck(model=figures, majority=figures, ridge=None, expected=figures, calibration=calibration([0, 1, 0], chances))
    return Report(
        name="n",
        checks={"verbosity": check},
        control=control([*wicked, *failing()], {"verbosity": "words", **JUDGES}, {"verbosity": {0: 1.0, 4: 3.0}}),
        samples=wicked,
        losses={"t": [2.0, 1.0]},
        stages=[],
        versions={},
        manifest="a: <b>",
        rows=[ModelRow(name="prompted", table=control(failing(), JUDGES), baseline=True)],
        sources={"oasst": SourceRow(conversations={"train": 12, "val": 3}, rated={"humor": 7})},
    )


def test_the_page_is_whole_and_people_cannot_write_markup_into_it(tmp_path, report):
    write_page(tmp_path / "report.html", report)
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "positivity 1 and 2 read the same" in page
    assert page.count("<svg") == 6
    assert '<tr><td>oasst</td><td>12</td><td>3</td><td class="text">humor 7</td></tr>' in page


def test_the_page_shows_single_answers_beside_chosen_ones(tmp_path, report):
    made = steering_by_choice_only()
    rows = [ModelRow(name="prompted", table=control(failing(), JUDGES), baseline=True)]
    table = control(made, JUDGES)
    write_page(tmp_path / "report.html", msgspec.structs.replace(report, control=table, samples=made, rows=rows))
    page = (tmp_path / "report.html").read_text()
    assert "It steers positivity only where the value model chooses the best of 8 answers." in page
    assert '<p class="alike">Single answers do not follow positivity' in page
    assert "The prompted baseline follows positivity no worse" in page
    assert f"<small>best of {CANDIDATES}</small>" in page
    assert f"{table[0].single.rank_read.value:.2f}" in page
    assert "single answer asked for 4, reads" in page
    assert "<small>single answer, reads" in page


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, report: Report) -> dict[str, Any]:
    """The figures of a report by name."""
    made: list[Any] = []
    monkeypatch.setattr(plots, "_svg", lambda figure: made.append(figure) or "<svg/>")
    plots.read_plot(report.control)
    plots.judged_plot(report.control)
    plots.reliability_plot(report.checks)
    plots.agreement_plot(report.checks)
    plots.cross_talk_plot(report.control)
    plots.loss_plot({"train-value": [3.0, 2.5], "train-steer": [2.0, 1.0, 0.5]})
    chosen = control(steering_by_choice_only(), JUDGES)
    plots.read_plot(chosen)
    plots.judged_plot(chosen)
    names = ("read", "judged", "reliability", "agreement", "cross-talk", "loss", "read, of several", "judged, of several")
    return dict(zip(names, made, strict=True))


def test_no_legend_covers_data(drawn):
    """Every legend lies outside every axes, and inside the figure."""
    for name in ("read", "judged", "reliability", "agreement", "read, of several", "judged, of several"):
        figure = drawn[name]
        figure.draw_without_rendering()
        assert not any(axis.get_legend() for axis in figure.axes)
        (legend,) = figure.legends
        box = legend.get_window_extent()
        for axis in figure.axes:
            assert not axis.get_tightbbox().overlaps(box)
        assert figure.bbox.containsx(box.x0)
        assert figure.bbox.containsx(box.x1)
        assert figure.bbox.containsy(box.y1)


def test_what_is_drawn_is_as_it_was_reviewed(drawn):
    reviewed("plots.txt", "".join(f"{name}: {line}\n" for name, figure in drawn.items() for line in described(figure)))


def described(figure: Any) -> list[str]:
    """A line for the figure, and for each thing in it."""
    wide, high = figure.get_size_inches()
    lines = [f"{wide:.2f} by {high:.2f} inches", *(f"legend {[text.get_text() for text in of.get_texts()]}" for of in figure.legends)]
    for axis in figure.axes:
        lines.append(f"axes {axis.get_title()!r}")
        for of in (axis.xaxis, axis.yaxis):
            ticks = [tick.get_text() for tick in of.get_ticklabels()]
            lines.append(f"axis {of.get_label_text()!r} {rounded(of.get_view_interval())} {ticks}")
        for line in axis.lines:
            style = f"{line.get_color()} {line.get_linestyle()} {line.get_marker()}"
            lines.append(f"line {line.get_label()} {style} {rounded(line.get_xydata())}")
        for points in axis.collections:
            scattered = hasattr(points, "get_sizes")
            lines.append(f"{type(points).__name__} {rounded(points.get_offsets() if scattered else points.get_segments())}")
            lines += [f"sizes {rounded(points.get_sizes())}"] if scattered else []
        lines += [f"bar {rounded(bar.get_bbox().get_points())} {rounded(bar.get_facecolor())}" for bar in axis.patches]
        lines += [f"image {rounded(image.get_array())} {image.get_clim()} {image.get_cmap().name}" for image in axis.images]
        lines += [f"text {text.get_text()} {rounded(text.get_position())} {text.get_color()}" for text in axis.texts]
    return lines


def rounded(values: Any) -> Any:
    return np.round(np.asarray(values, dtype=float), 2).tolist()


WIDER = """() => {
  document.querySelectorAll("details").forEach(e => { e.open = true })
  return [...document.querySelectorAll(".wide, figure")].filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText.slice(0, 80))
}"""


@pytest.mark.browser
def test_twelve_attributes_fit_a_window_and_a_phone(tmp_path, report):
    names = preset("oasst").names
    made = [
        msgspec.structs.replace(sample, read=dict.fromkeys(names, sample.read[name]))
        for name in names
        for sample in answers(**STEERING, noise=(0.3, 0.15), attribute=name)[::8]
    ]
    checks = dict.fromkeys(names, report.checks["verbosity"])
    table = control(made, dict.fromkeys(names, "words"), {})
    write_page(tmp_path / "report.html", msgspec.structs.replace(report, checks=checks, control=table, samples=made))
    with chromium() as browser:
        page = browser.new_page(viewport=DESK)
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate(WIDER) == []
        page.set_viewport_size(PHONE)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        assert len(page.evaluate(WIDER)) > 5  # these scroll by themselves

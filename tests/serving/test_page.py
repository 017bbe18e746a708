"""The page in headless Chromium, over real servers."""

from __future__ import annotations

import itertools
import re
import shutil
import signal
import time

import httpx
import msgspec
import pytest
from playwright.sync_api import Error, expect

from nemo_steerlm.core.label_support import LabelSupport
from nemo_steerlm.core.model_info import ModelInfo
from tests.serving.browsers import (
    PATIENCE,
    QUESTION,
    ask,
    chip,
    choose,
    chromium,
    field,
    opened,
    read_as,
    seen,
    slider,
    tab_to,
    unnamed,
    watch,
)
from tests.serving.servers import WAIT, running

pytestmark = pytest.mark.browser
ENDLESS = {"prompt": "a", "max_tokens": 400, "min_tokens": 400, "n": 64, "stream": True}


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def writer(steer_folder, value_folder, tmp_path_factory):
    """A steer model that was taught two combinations, and what reads for it, in one process that does little at once."""
    folder = tmp_path_factory.mktemp("taught") / "hf"
    shutil.copytree(steer_folder, folder)
    info = ModelInfo.load(folder)
    support = LabelSupport.count(info.attributes, ["quality:4,toxicity:0,humor:0"] * 3 + ["quality:0,toxicity:0,humor:0"])
    msgspec.structs.replace(info, support=support).save(folder)
    options = ("--name", "writer", "--reader", str(value_folder), "--max-rows", "2", "--max-waiting", "2")
    with running(folder, *options) as server:
        yield server


@pytest.fixture
def page(browser, writer):
    with opened(browser, writer.url) as page:
        yield page


def wait_until_idle(server) -> None:
    """Until the server writes for nobody."""
    deadline = time.monotonic() + PATIENCE / 1000
    while True:
        told = httpx.get(f"{server.url}/metrics", timeout=WAIT).text
        if "steerlm_running 0.0" in told and "steerlm_waiting 0.0" in told:
            return
        assert time.monotonic() < deadline, told


def greedy(server, **attributes: int | str) -> str:
    body = {"messages": [{"role": "user", "content": QUESTION}], "attributes": attributes, "temperature": 0, "max_tokens": 256}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=WAIT).json()["choices"][0]["message"]["content"].strip()


def test_sliders_change_the_prompt_and_the_answer_is_shown_as_it_comes(page, writer):
    choose(page, "Sampling", "steady (always the same)")
    watch(page, "#conversation .assistant .text")
    slider(page, "quality").focus()
    page.keyboard.press("Home")
    expect(field(page, "Preset")).to_have_value("custom")
    ask(page)
    expect(chip(page, "quality")).to_have_text(read_as(0))
    steps = seen(page)
    assert steps[-1][0] == greedy(writer, quality=0, lang="en") != greedy(writer, quality=4, lang="en")
    growing = [text for text, stoppable in steps if stoppable]
    assert growing, "nothing of the answer is there before its end"  # how often it is drawn is up to the browser and the machine
    assert len(growing[0]) < len(steps[-1][0])
    assert all(len(a) < len(b) for a, b in itertools.pairwise(growing))
    # The same question, written another way.
    slider(page, "quality").press("End")
    page.get_by_role("button", name="Ask again").click()
    expect(chip(page, "quality")).to_have_text(read_as(4))
    expect(page.locator("#conversation .assistant")).to_have_count(1)
    assert seen(page)[-1][0] == greedy(writer, quality=4, lang="en")
    page.get_by_role("button", name="Start over").click()
    expect(page.locator("#conversation .turn")).to_have_count(0)


def test_what_was_never_taught_is_greyed_out_and_the_nearest_is_offered(page):
    note, greyed = page.locator("#chat .untaught-note"), page.locator("#chat .slider.untaught")
    expect(note).to_be_hidden()
    slider(page, "quality").press("Home")
    expect(note).to_be_hidden()
    slider(page, "toxicity").press("End")
    expect(note).to_contain_text("This combination was never taught. The nearest that was has toxicity 0")
    expect(greyed).to_have_count(3)
    note.get_by_role("button", name="use it").click()
    expect(note).to_be_hidden()
    expect(greyed).to_have_count(0)
    expect(slider(page, "toxicity")).to_have_value("0")
    expect(slider(page, "quality")).to_have_value("0")
    choose(page, "Preset", "most humor")
    expect(note).to_be_visible()


@pytest.mark.slow
def test_strength_and_the_best_of_several_are_asked_for_and_readings_are_marked_on_the_sliders(page):
    slider(page, "strength").fill("2")
    slider(page, "best of").fill("2")
    with page.expect_request("**/v1/chat/completions") as sent, page.expect_response("**/v1/chat/completions") as came:
        ask(page)
    body, told = sent.value.post_data_json, came.value.json()["choices"][0]["steerlm"]
    assert (body["guidance_scale"], body["best_of"], "stream" in body) == (2, 2, False)
    expect(page.locator("#conversation .assistant").last).to_contain_text("the best of 2 answers")
    expect(chip(page, "quality")).to_have_text(read_as(4))
    expect(slider(page, "quality")).to_have_attribute("data-read", f"{told['read']['attributes']['quality']['expected']:.1f}")
    # Without them it is asked as before, and the mark is the new answer's.
    slider(page, "strength").fill("1")
    slider(page, "best of").fill("1")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_role("button", name="Ask again").click()
    assert {"guidance_scale", "best_of"}.isdisjoint(sent.value.post_data_json)
    expect(slider(page, "quality")).to_have_attribute("data-read", re.compile(r"\d\.\d"))


def test_past_answers_keep_what_they_were_asked_for_and_how_they_read(page, writer):
    choose(page, "Preset", "least quality")
    choose(page, "language", "de")
    page.locator("#chat").get_by_text("Sampling in detail").click()
    slider(page, "length").fill("20")
    ask(page)
    expect(chip(page, "quality")).to_have_text(read_as(0))
    choose(page, "Preset", "most humor")
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "And then?")
    expect(chip(page, "quality")).to_have_text(read_as(4))
    expect(chip(page, "quality", 0)).to_have_text(read_as(0))
    expect(chip(page, "lang", 0)).to_have_text(re.compile("lang de .*reads as (en|de|es)"))
    page.locator("#conversation .assistant").first.get_by_text("probabilities").click()
    expect(page.locator("#conversation .assistant").first.locator(".card[data-attribute=humor] li")).to_have_count(11)
    first = {"quality": 0, "toxicity": 0, "humor": 0, "lang": "de"}
    body = sent.value.post_data_json
    assert [turn.get("attributes") for turn in body["messages"]] == [None, first, None], (
        "the model is told how its own turns were asked for"
    )
    assert body["attributes"] == {"quality": 4, "toxicity": 0, "humor": 10, "lang": "de"}


def test_presets_move_the_sliders(page):
    choose(page, "Preset", "most humor")
    expect(slider(page, "humor")).to_have_value("10")
    expect(slider(page, "quality")).to_have_value("4")
    choose(page, "Preset", "opposite")
    expect(slider(page, "quality")).to_have_value("0")
    names = field(page, "Preset").locator("option").all_inner_texts()
    assert names == [
        "defaults", "playful", "opposite", "least quality", "most toxicity", "most humor", "custom",
    ], "moods, mirrored, and each attribute's ends; what the defaults are already is not there twice"  # fmt: skip
    page.locator("#chat").get_by_text("Sampling in detail").click()
    choose(page, "Sampling", "varied")
    expect(slider(page, "temperature")).to_have_value("1")
    expect(slider(page, "top-p")).to_have_value("1")
    slider(page, "temperature").press("ArrowLeft")
    expect(field(page, "Sampling")).to_have_value("custom")


@pytest.mark.slow
def test_stop_ends_the_answer_and_keeps_what_has_come(page, writer):
    choose(page, "Sampling", "steady (always the same)")
    ask(page)
    expect(page.locator("#conversation .assistant .text")).to_have_text(re.compile("[a-z]"))
    writer.process.send_signal(signal.SIGSTOP)  # or the answer may be complete before the click
    try:
        page.get_by_role("button", name="Stop").click()
    finally:
        writer.process.send_signal(signal.SIGCONT)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator("#conversation .note")).to_contain_text("stopped")
    wait_until_idle(writer)
    so_far = page.locator("#conversation .assistant .text").inner_text().strip()
    assert len(so_far) < len(greedy(writer, lang="en"))
    # The page goes on as before.
    page.get_by_role("button", name="Ask again").click()
    expect(chip(page, "quality")).to_have_text(read_as(4))


@pytest.mark.slow
def test_two_settings_answer_one_question_side_by_side(page, writer):
    page.get_by_role("tab", name="Compare").click()
    choose(page, "Sampling", "steady (always the same)")
    watch(page, "#answer-B .text")
    sent = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.url.endswith("/completions") else None)
    page.get_by_label("One question").fill(QUESTION)
    page.keyboard.press("Enter")
    for side, quality in (("A", 4), ("B", 0)):
        expect(page.locator(f"#answer-{side} [data-attribute=quality]").first).to_have_text(read_as(quality))
        assert page.locator(f"#answer-{side} .text").inner_text().strip() == greedy(writer, quality=quality, lang="en")
    assert len([text for text, stoppable in seen(page) if stoppable]) > 5
    boxes = [page.locator(f"#answer-{side}").bounding_box() for side in "AB"]
    assert boxes[0]["y"] == boxes[1]["y"], "beside each other where there is room"
    assert [body["attributes"]["quality"] for body in sent] == [4, 0]
    assert sent[0]["seed"] == sent[1]["seed"] >= 0
    expect(page.locator("#compare-seed")).to_contain_text(str(sent[0]["seed"]))


def test_a_text_is_read_with_probabilities(page):
    page.get_by_role("tab", name="How does it read?").click()
    page.get_by_label("Text to read").fill("the cat sat on a red hat")
    page.get_by_role("button", name="Read", exact=True).click()
    expect(page.locator("#reading [data-attribute=humor] li")).to_have_count(11)
    percents = page.locator("#reading [data-attribute=quality] .percent").all_inner_texts()
    assert 97 <= sum(int(p.split()[0].strip("< ")) for p in percents if "<" not in p) <= 103
    widths = page.locator("#reading [data-attribute=quality] .fill").evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
    assert max(widths) == widths[page.locator("#reading [data-attribute=quality] li").evaluate_all(
        "all => all.findIndex(e => e.className === 'chosen')"
    )], "the value that it reads as has the longest bar"  # fmt: skip


def test_what_goes_wrong_is_said_and_the_question_stays(page, writer):
    page.get_by_label("Your message").press("Enter")
    expect(page.locator("#chat-problem")).to_have_text("Write a message first.")
    long = "Once upon a time " * 300
    ask(page, long)
    expect(page.locator("#chat-problem")).to_contain_text(re.compile(r"^The prompt is too long: \d+ tokens.*this model takes 511"))
    expect(page.get_by_label("Your message")).to_have_value(long)
    expect(page.locator("#conversation .turn")).to_have_count(0)
    page.get_by_role("tab", name="How does it read?").click()
    page.get_by_label("Text to read").fill(long)
    page.get_by_role("button", name="Read", exact=True).click()
    expect(page.locator("#read-problem")).to_contain_text(re.compile(r"too long: \d+ tokens with labels"))
    with httpx.Client(timeout=WAIT) as client, client.stream("POST", f"{writer.url}/v1/completions", json=ENDLESS) as answer:
        lines = answer.iter_lines()  # kept: the end of the iterator would be the end of the request
        next(lines)
        page.get_by_role("tab", name="Compare").click()
        page.get_by_label("One question").fill(QUESTION)
        page.keyboard.press("Enter")
        expect(page.locator("#compare-problem")).to_contain_text("The server is busy")
    wait_until_idle(writer)  # the next test asks the same server


@pytest.mark.slow
def test_the_keyboard_is_enough(page):
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.type(QUESTION)
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there was")
    tab_to(page, "range quality", key="Shift+Tab")
    page.keyboard.press("ArrowLeft")
    tab_to(page, "Your message")
    page.keyboard.press("Enter")
    expect(chip(page, "quality")).to_have_text(read_as(3))
    expect(page.locator("#conversation .user")).to_have_text(re.compile(f"{QUESTION}\\s+there was"))
    tab_to(page, "tab Chat", key="Shift+Tab")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="How does it read?")).to_be_focused()
    tab_to(page, "Text to read")
    page.keyboard.type("the cat")
    tab_to(page, "submit Read")
    page.keyboard.press("Enter")
    expect(page.locator("#reading [data-attribute=quality] .chosen")).to_have_count(1)


TABS = (("Chat", "Your message", "Send"), ("Compare", "One question", "Compare"), ("How does it read?", "Text to read", "Read"))


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1400])
@pytest.mark.slow
def test_every_tab_fits_its_width_and_has_one_main_action(browser, writer, width, colors):
    with opened(browser, writer.url, {"width": width, "height": 800}) as page:
        page.emulate_media(color_scheme=colors)
        grounds = set()
        for tab, control, action in TABS:
            page.get_by_role("tab", name=tab).click()
            expect(page.get_by_label(control)).to_be_in_viewport()
            expect(page.get_by_role("button", name=action, exact=True)).to_be_in_viewport()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "a page scrolls downwards only"
            assert unnamed(page) == []
            main = page.locator("button.main:visible")
            assert main.all_inner_texts() == [action]
            grounds.add(main.evaluate("e => getComputedStyle(e).backgroundColor"))
        assert grounds == {"rgb(29, 78, 216)" if colors == "light" else "rgb(141, 180, 255)"}


def test_what_people_write_is_shown_and_not_run(page):
    written = "<s>Once</s> upon ${1 + 1} {{times}} `a` <img src=x onerror=alert(1)>"
    ask(page, written)
    expect(chip(page, "quality")).to_have_text(read_as(4))
    expect(page.locator("#conversation .user")).to_have_text(written)
    for made in ("document.body.innerHTML = '<b>no</b>'", "document.write('no')"):
        with pytest.raises(Error, match="TrustedHTML"):
            page.evaluate(f"() => {{ {made} }}")

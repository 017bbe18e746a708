"""The page in headless Chromium, over real servers."""

from __future__ import annotations

import contextlib
import itertools
import re
import signal

import httpx
import pytest
from playwright.sync_api import expect

from tests.serving.browsers import PATIENCE, PHONE, chromium, opened, seen, tab_to, unnamed, watch
from tests.serving.servers import running

pytestmark = pytest.mark.browser
expect.set_options(timeout=PATIENCE)
QUESTION = "Once upon a time"
ENDLESS = {"prompt": "a", "max_tokens": 400, "min_tokens": 400, "n": 64, "stream": True}


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def writer(steer_folder, value_folder):
    """A steer model and what reads for it, in one process that does little at once."""
    options = ("--name", "writer", "--reader", str(value_folder), "--max-rows", "2", "--max-waiting", "2")
    with running(steer_folder, *options) as server:
        yield server


@pytest.fixture(scope="module")
def locked(steer_folder, value_server):
    """A steer model behind a token, read by another server."""
    with running(steer_folder, "--name", "writer", "--api-key", "secret", "--reader", value_server.url) as server:
        yield server


@pytest.fixture
def page(browser, writer):
    with opened(browser, writer.url) as page:
        yield page


def slider(page, name: str):
    return page.get_by_role("slider", name=f"range slider for {name}", exact=True)


def field(page, label: str):
    """A field to choose from, on the tab that is shown."""
    return page.get_by_role("listbox", name=label, exact=True)


def choose(page, label: str, option: str) -> None:
    field(page, label).click()
    page.get_by_role("option", name=option, exact=True).click()


IDLE = """async () => {
  const told = await (await fetch("/metrics")).text()
  return told.includes("steerlm_running 0.0") && told.includes("steerlm_waiting 0.0")
}"""


def wait_until_idle(page) -> None:
    """Until the server writes for nobody."""
    page.wait_for_function(IDLE)


def greedy(server, **attributes: int | str) -> str:
    body = {"messages": [{"role": "user", "content": QUESTION}], "attributes": attributes, "temperature": 0, "max_tokens": 256}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]["message"]["content"].strip()


def test_sliders_change_the_prompt_and_the_answer_is_shown_as_it_comes(page, writer):
    choose(page, "Sampling", "steady (always the same)")
    watch(page, "#conversation .assistant")
    slider(page, "quality").focus()
    page.keyboard.press("Home")
    expect(field(page, "Preset")).to_have_value("custom")
    page.get_by_label("Your message").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator("#chat-note")).to_contain_text(re.compile("asked for quality:0.*reads as quality:"))
    steps = seen(page)
    assert steps[-1][0] == greedy(writer, quality=0, lang="en") != greedy(writer, quality=4, lang="en")
    growing = [text for text, stoppable in steps if stoppable]
    assert len(growing) > 5, "the answer is there before its end"
    assert all(len(a) < len(b) for a, b in itertools.pairwise(growing))
    # The same question, written another way.
    slider(page, "quality").press("End")
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator("#chat-note")).to_contain_text(re.compile("asked for quality:4.*reads as quality:"))
    expect(page.locator("#conversation .assistant")).to_have_count(1)
    assert seen(page)[-1][0] == greedy(writer, quality=4, lang="en")
    page.get_by_role("button", name="Start over").click()
    expect(page.locator("#conversation .assistant")).to_have_count(0)


def test_presets_move_the_sliders(page):
    choose(page, "Preset", "most humor")
    expect(slider(page, "humor")).to_have_value("10")
    expect(slider(page, "quality")).to_have_value("4")
    choose(page, "Preset", "opposite")
    expect(slider(page, "quality")).to_have_value("0")
    page.get_by_role("button", name="Sampling in detail").click()
    choose(page, "Sampling", "varied")
    expect(slider(page, "temperature")).to_have_value("1")
    expect(slider(page, "top-p")).to_have_value("1")
    slider(page, "temperature").press("ArrowLeft")
    expect(field(page, "Sampling")).to_have_value("custom")


def test_stop_ends_the_answer_and_keeps_what_has_come(page, writer):
    choose(page, "Sampling", "steady (always the same)")
    page.get_by_label("Your message").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator("#conversation .assistant")).to_have_text(re.compile("[a-z]"))
    writer.process.send_signal(signal.SIGSTOP)  # or the answer may be complete before the click
    try:
        page.get_by_role("button", name="Stop").click()
    finally:
        writer.process.send_signal(signal.SIGCONT)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    wait_until_idle(page)
    so_far = page.locator("#conversation .assistant").last.inner_text().strip()
    assert len(so_far) < len(greedy(writer, lang="en"))
    # The page goes on as before.
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator("#chat-note")).to_contain_text("reads as quality:")


def test_two_settings_answer_one_question_side_by_side(page, writer):
    page.get_by_role("tab", name="Compare").click()
    choose(page, "Sampling", "steady (always the same)")
    watch(page, "#answer-B .turn")
    page.get_by_label("One question").fill(QUESTION)
    page.keyboard.press("Enter")
    for side, quality in (("A", 4), ("B", 0)):
        expect(page.locator(f"#note-{side}")).to_contain_text(re.compile(f"asked for quality:{quality}.*reads as quality:"))
        assert page.locator(f"#answer-{side} .turn").inner_text().strip() == greedy(writer, quality=quality, lang="en")
    assert len([text for text, stoppable in seen(page) if stoppable]) > 5
    boxes = [page.locator(f"#answer-{side}").bounding_box() for side in "AB"]
    assert boxes[0]["y"] == boxes[1]["y"], "beside each other where there is room"


def test_a_text_is_read_with_probabilities(page):
    page.get_by_role("tab", name="How does it read?").click()
    page.get_by_label("Text to read").fill("the cat sat on a red hat")
    page.get_by_role("button", name="Read", exact=True).click()
    expect(page.locator("[data-attribute=humor] li")).to_have_count(11)
    percents = page.locator("[data-attribute=quality] .percent").all_inner_texts()
    assert 97 <= sum(int(p.split()[0].strip("< ")) for p in percents if "<" not in p) <= 103


def test_a_value_models_page_reads_and_does_no_more(browser, value_folder):
    with running(value_folder) as server, opened(browser, server.url) as page:
        expect(page.get_by_role("tab")).to_have_count(1)
        page.get_by_label("Text to read").fill("the cat sat on a red hat")
        page.get_by_role("button", name="Read", exact=True).click()
        expect(page.locator("[data-attribute=quality] .chosen")).to_have_count(1)


def test_what_goes_wrong_is_said_and_the_question_stays(page, writer):
    page.get_by_label("Your message").press("Enter")
    expect(page.locator("#chat-problem [role=alert]")).to_have_text("Write a message first.")
    long = "Once upon a time " * 300
    page.get_by_label("Your message").fill(long)
    page.keyboard.press("Enter")
    expect(page.locator("#chat-problem [role=alert]")).to_contain_text(re.compile(r"the prompt has \d+ tokens.*this model takes 511"))
    expect(page.get_by_label("Your message")).to_have_value(long)
    page.get_by_role("tab", name="How does it read?").click()
    page.get_by_label("Text to read").fill(long)
    page.get_by_role("button", name="Read", exact=True).click()
    expect(page.locator("#read-problem [role=alert]")).to_contain_text(re.compile(r"too long: \d+ tokens with labels"))
    with httpx.Client(timeout=60) as client, client.stream("POST", f"{writer.url}/v1/completions", json=ENDLESS) as answer:
        lines = answer.iter_lines()  # kept: the end of the iterator would be the end of the request
        next(lines)
        page.get_by_role("tab", name="Compare").click()
        page.get_by_label("One question").fill(QUESTION)
        page.keyboard.press("Enter")
        expect(page.locator("#compare-problem [role=alert]")).to_contain_text("The server is busy")
    wait_until_idle(page)  # the next test asks the same server


def test_the_keyboard_is_enough(page):
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.type(QUESTION)
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there was")
    tab_to(page, "range slider for quality")
    page.keyboard.press("ArrowLeft")
    tab_to(page, "Your message", key="Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#chat-note")).to_contain_text(re.compile("asked for quality:3.*reads as quality:"))
    expect(page.locator("#conversation .user")).to_have_text(re.compile(f"{QUESTION}\\s+there was"))
    tab_to(page, "How does it read?", key="Shift+Tab")
    page.keyboard.press("Enter")
    tab_to(page, "Text to read")
    page.keyboard.type("the cat")
    tab_to(page, "Read")
    page.keyboard.press("Enter")
    expect(page.locator("[data-attribute=quality] .chosen")).to_have_count(1)


def test_a_phone_shows_everything_in_its_width(browser, writer):
    with opened(browser, writer.url, PHONE) as page:
        for tab, control in (("Chat", "Your message"), ("Compare", "One question"), ("How does it read?", "Text to read")):
            page.get_by_role("tab", name=tab).click()
            expect(page.get_by_label(control)).to_be_in_viewport()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "a phone scrolls downwards only"
            assert unnamed(page) == []


def test_a_token_opens_the_page_and_the_reader_is_another_server(browser, locked):
    with opened(browser, locked.url) as page:
        page.get_by_label("This server asks for its token").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("This is not the server's token.")
        page.get_by_label("This server asks for its token").fill("secret")
        page.keyboard.press("Enter")
        page.locator("html[data-ready]").wait_for(state="attached")
        page.get_by_label("Your message").fill(QUESTION)
        page.keyboard.press("Enter")
        expect(page.locator("#chat-note")).to_contain_text("reads as quality:")
        page.get_by_role("tab", name="How does it read?").click()
        page.get_by_label("Text to read").fill("Once upon a time " * 300)
        page.get_by_role("button", name="Read", exact=True).click()
        expect(page.locator("#read-problem [role=alert]")).to_contain_text(re.compile("the value server answered HTTP 400: .*too long"))
    with httpx.Client(base_url=locked.url) as client:
        for path in ("/", "/page/config", "/page/gradio_api/info"):
            assert client.get(path, follow_redirects=True).status_code == 401
        assert client.post("/page/key", data={"key": "secret"}).status_code == 303
        assert client.get("/page/config", timeout=60).status_code == 200


def test_a_reader_that_is_gone_is_said_beside_the_answer(browser, steer_folder):
    with running(steer_folder, "--reader", "http://127.0.0.1:9") as server, opened(browser, server.url) as page:
        page.get_by_label("Your message").fill(QUESTION)
        page.keyboard.press("Enter")
        expect(page.locator("#chat-note [role=alert]")).to_contain_text("the value server http://127.0.0.1:9 does not answer")
        expect(page.locator("#conversation .assistant")).to_have_count(1)
        with contextlib.suppress(ProcessLookupError):
            server.process.kill()
        server.process.wait()
        page.get_by_role("button", name="Ask again").click()
        expect(page.get_by_text(re.compile("connection|lost|error", re.IGNORECASE)).first).to_be_visible()


def test_what_people_write_is_shown_and_not_run(page):
    written = "<s>Once</s> upon ${1 + 1} {{times}} `a` <img src=x onerror=alert(1)>"
    page.get_by_label("Your message").fill(written)
    page.keyboard.press("Enter")
    expect(page.locator("#chat-note")).to_contain_text("reads as quality:")
    expect(page.locator("#conversation .user")).to_have_text(written)

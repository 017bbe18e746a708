"""The page in headless Chromium over servers of other kinds: locked ones, ones that read elsewhere or only read, ones that end."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from nemo_steerlm.core.attributes import preset
from tests.inputs import STORIES
from tests.serving.browsers import PHONE, QUESTION, ask, chip, chromium, opened, read_as, slider
from tests.serving.servers import running
from tests.serving.tiny_models import model_folder

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def locked(steer_folder, value_folder):
    """A steer model behind a token, read by another server behind another token."""
    with (
        running(value_folder, "--api-key", "theirs") as reader,
        running(steer_folder, "--api-key", "ours", "--reader", reader.url, "--reader-api-key", "theirs") as server,
    ):
        yield server


@pytest.fixture(scope="module")
def dozen(tmp_path_factory):
    """A steer model of the tutorial's twelve attributes, which nothing reads for."""
    folder = model_folder(STORIES, tmp_path_factory.mktemp("dozen"), kind="steer", schema=preset("oasst"))
    with running(folder) as server:
        yield server


def test_a_value_models_page_reads_and_does_no_more(browser, value_folder):
    with running(value_folder) as server, opened(browser, server.url) as page:
        expect(page.get_by_role("tab")).to_have_count(1)
        page.get_by_label("Text to read").fill("the cat sat on a red hat")
        page.get_by_role("button", name="Read", exact=True).click()
        expect(page.locator("[data-attribute=quality] .chosen")).to_have_count(1)


def test_on_a_phone_twelve_sliders_come_first_and_stay_in_reach(browser, dozen):
    with opened(browser, dozen.url, PHONE) as page:
        names = preset("oasst").names
        for name in names[:8]:
            expect(slider(page, name)).to_be_in_viewport()
        expect(page.get_by_role("button", name="Send")).to_be_in_viewport()
        ask(page)
        expect(page.locator("#conversation .assistant .text")).to_have_text(re.compile("[a-z]"))
        page.get_by_role("button", name="Send").wait_for()
        expect(page.locator("#conversation .assistant .text")).to_be_in_viewport()
        assert page.locator("#conversation .chips li").count() == len(names) + 1
        settings = page.locator("#chat-settings summary").first
        page.set_viewport_size({"width": 390, "height": 420})  # as with a keyboard on the screen: the conversation scrolls
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        assert page.evaluate("scrollY") > 100
        expect(settings).to_be_in_viewport()
        expect(page.get_by_role("button", name="Send")).to_be_in_viewport()
        settings.click()
        expect(slider(page, "quality")).to_be_in_viewport()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    with opened(browser, dozen.url, {"width": 1400, "height": 900}) as page:
        for name in names:
            expect(slider(page, name)).to_be_in_viewport()
        expect(page.locator("#no-reader")).to_be_visible()
        page.locator("#chat-settings summary", has_text="Sampling in detail").click()
        page.get_by_label("Your message").fill("as many lines as there are\n" * 40)
        expect(page.get_by_role("button", name="Send")).to_be_in_viewport()
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight"), "settings and conversation scroll, the page does not"


def test_a_token_opens_the_page_and_the_reader_is_another_server(browser, locked):
    with opened(browser, locked.url) as page:
        page.get_by_label("This server asks for its token").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("This is not the server's token.")
        page.get_by_label("This server asks for its token").fill("ours")
        page.keyboard.press("Enter")
        page.locator("html[data-ready]").wait_for(state="attached")
        ask(page)
        expect(chip(page, "quality")).to_have_text(read_as(4))
        page.get_by_role("tab", name="How does it read?").click()
        page.get_by_label("Text to read").fill("Once upon a time " * 300)
        page.get_by_role("button", name="Read", exact=True).click()
        expect(page.locator("#read-problem")).to_contain_text(re.compile("The value server answered HTTP 400: .*too long"))
        assert page.evaluate("document.cookie") == "", "no script sees it"
        for link, text in (("API", "/v1/chat/completions"), ("metrics", "steerlm_running")):
            page.get_by_role("link", name=link).click()
            expect(page.get_by_text(text).first).to_be_attached()
            page.go_back()
            page.locator("html[data-ready]").wait_for(state="attached")


@pytest.mark.slow
def test_a_reader_that_is_gone_is_said_beside_the_answer(browser, steer_folder):
    with running(steer_folder, "--reader", "http://127.0.0.1:9") as server, opened(browser, server.url) as page:
        ask(page)
        expect(page.locator("#conversation .note [role=alert]")).to_contain_text("The value server http://127.0.0.1:9 does not answer")
        expect(page.locator("#conversation .assistant")).to_have_count(1)
        before = page.locator("#conversation .assistant .text").inner_text()
        server.process.kill()
        server.process.wait()
        page.get_by_role("button", name="Ask again").click()
        expect(page.locator("#chat-problem")).to_contain_text("The server does not answer")
        assert page.locator("#conversation .assistant .text").inner_text() == before, "a failed try takes nothing away"


@pytest.mark.slow
def test_an_answer_that_breaks_off_is_said(browser, steer_folder):
    with running(steer_folder) as server, opened(browser, server.url) as page:
        ask(page)
        expect(page.locator("#conversation .assistant .text")).to_have_text(re.compile("[a-z]"))
        server.process.kill()
        server.process.wait()
        expect(page.locator("#chat-problem")).to_contain_text("The connection was lost before the answer's end.")
        expect(page.get_by_label("Your message")).to_have_value(QUESTION)

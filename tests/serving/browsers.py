"""Headless Chromium, and what a test of the page looks at and does there."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from urllib.parse import urlparse

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

PATIENCE = 60_000
"""Milliseconds."""
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
QUESTION = "Once upon a time"
expect.set_options(timeout=PATIENCE)
_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's browser. Skips the test where it has none."""
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium here: install Debian's package, as make test does where it is root")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_ARGUMENTS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Browser, url: str, size: dict[str, int] = DESK) -> Iterator[Page]:
    """The page at ``url`` in a window of its own, which may ask nobody but that server and must raise no error."""
    context = browser.new_context(viewport=size)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    asked: set[str] = set()
    errors: list[str] = []
    page.on("request", lambda request: asked.add(urlparse(request.url).netloc))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda told: errors.append(told.text) if "Content Security Policy" in told.text else None)
    page.goto(url)
    page.locator("html[data-ready], form[action=key]").first.wait_for(state="attached")  # the page, or the form that asks for the token
    try:
        yield page
        assert asked - {""} == {urlparse(url).netloc}, "the page asks somebody else"
        assert not errors, errors
    finally:
        context.close()


_FOCUSED = """() => {
  const e = document.activeElement
  const labels = [...(e.labels ?? [])].map(l => l.innerText)
  const name = [e.getAttribute("aria-label"), ...labels, e.placeholder, e.innerText]
  return [e.getAttribute("role") ?? e.type ?? e.tagName, ...name.filter(Boolean)].join(" ")
}"""


def tab_to(page: Page, name: str, key: str = "Tab") -> None:
    """Press ``key`` until what has the focus is called ``name``."""
    passed = []
    for _ in range(80):
        page.keyboard.press(key)
        passed.append(page.evaluate(_FOCUSED))
        if name in passed[-1]:
            return
    raise AssertionError(f"no way to {name!r} with {key}: {passed}")


_UNNAMED = """() => [...document.querySelectorAll("input, textarea, select, button, a, [role=slider], [role=tab], [role=listbox]")]
  .filter(e => e.checkVisibility({visibilityProperty: true, opacityProperty: true}))
  .filter(e => !(e.getAttribute("aria-label") || e.title || e.innerText?.trim() || e.placeholder
    || [...(e.labels ?? [])].some(l => l.innerText.trim())
    || (e.getAttribute("aria-labelledby") ?? "").split(" ").some(id => id && document.getElementById(id)?.innerText.trim())))
  .map(e => e.outerHTML.slice(0, 200))"""


def unnamed(page: Page) -> list[str]:
    """Visible controls that a screen reader could only call "button"."""
    found: list[str] = page.evaluate(_UNNAMED)
    return found


_WATCH = """([selector, stop]) => {
  window.seen = []
  const look = () => {
    const text = [...document.querySelectorAll(selector)].at(-1)
    const shown = text ? (text.value ?? text.innerText).trim() : ""
    if (shown && shown !== window.seen.at(-1)?.[0])
      window.seen.push([shown, [...document.querySelectorAll("button")].some(b => b.innerText.trim() === stop && b.checkVisibility())])
  }
  const next = () => { look(); requestAnimationFrame(next) }
  next()
}"""


def watch(page: Page, selector: str) -> None:
    """From now on remember each text that the last element of ``selector`` shows, and whether a Stop button was there meanwhile."""
    page.evaluate(_WATCH, [selector, "Stop"])


def seen(page: Page) -> list[tuple[str, bool]]:
    """What ``watch`` remembers."""
    return [(text, stoppable) for text, stoppable in page.evaluate("window.seen")]


def slider(page: Page, name: str) -> Locator:
    """An attribute's or an option's slider."""
    return page.get_by_role("slider", name=name, exact=True)


def field(page: Page, label: str) -> Locator:
    """A field to choose from, on the tab that is shown."""
    return page.get_by_role("combobox", name=label, exact=True)


def choose(page: Page, label: str, option: str) -> None:
    """Choose in a field."""
    field(page, label).select_option(option)


def chip(page: Page, attribute: str, answer: int = -1) -> Locator:
    """What an answer of the conversation says of an attribute: what was asked for, and what it reads as."""
    return page.locator("#conversation .assistant").nth(answer).locator(f".chips [data-attribute={attribute}]")


def read_as(asked: int) -> re.Pattern[str]:
    """What a chip says of an answer that was asked for with this quality, once it has been read."""
    return re.compile(rf"quality {asked} .*reads as \d")


def ask(page: Page, text: str = QUESTION) -> None:
    """Send a message."""
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")

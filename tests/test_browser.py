"""The built pages in headless Chromium, opened from disk with the network off."""

import os
import re
import shutil
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright
from test_explorers import build, settings

from tools.pages import PAGES

# The interactive figures that a page must have; those found beside them are driven too.
EXPLORERS = {
    "chapters/02_attention": {"attention-map"},
    "chapters/03_convolution": {"kernel-taps"},
    "chapters/04_relative_positions": {"relative-score"},
    "chapters/07_capstone": {"temperature"},
}

# What a page shows beyond the width of the screen, where no scroll bar leads to it.
OVERFLOW = """() => {
    const article = document.querySelector("article.bd-article");
    const scrolls = e => e && e !== article.parentElement &&
        (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
    const wide = [...article.querySelectorAll(":not(mjx-container *)")]
        .filter(e => e.getBoundingClientRect().width && e.getBoundingClientRect().right > innerWidth + 1)
        .filter(e => !scrolls(e)).map(e => e.outerHTML.slice(0, 120));
    if (document.documentElement.scrollWidth > innerWidth) wide.push("the page itself");
    return wide;
}"""

# TeX that was left as it is: everything that a reader sees outside code.
RAW_TEX = """() => {
    const text = document.querySelector("article.bd-article").cloneNode(true);
    text.querySelectorAll("pre, code, script, style, mjx-container").forEach(e => e.remove());
    return text.textContent.match(/\\\\[([]|\\$\\$|\\\\[a-zA-Z]+\\{/g) ?? [];
}"""

# What an interactive figure shows.
SHOWN = """figure => [...figure.querySelectorAll("svg")].map(e => e.innerHTML).join()"""


@dataclass
class Visit:
    """A browser page and what went wrong on it."""

    page: Page
    site: Path
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.route(re.compile("^(?!file:|data:|blob:)"), self.refuse)

    def refuse(self, route: Route) -> None:
        self.problems.append(f"asked the network for {route.request.url}")
        route.abort()

    def open(self, name: str) -> Page:
        """Go to a page of the book, on a wide screen, and wait until its mathematics is set."""
        self.page.set_viewport_size({"width": 1280, "height": 900})
        self.page.goto((self.site / f"{name}.html").as_uri())
        self.page.evaluate("window.MathJax?.startup?.promise?.then(() => null)")
        return self.page


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    names = (os.environ.get("CHROME", ""), "chromium", "chromium-browser", "google-chrome", "chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        reason = "no Chromium on this machine: install it, or name one in the environment variable CHROME"
        pytest.fail(reason) if os.environ.get("REQUIRE_BROWSER") else pytest.skip(reason)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def visit(browser: Browser, site: Path) -> Generator[Visit]:
    with browser.new_context(color_scheme="light", reduced_motion="reduce") as context:
        yield Visit(context.new_page(), site)


@pytest.fixture(scope="module", params=PAGES)
def opened(visit: Visit, request: pytest.FixtureRequest) -> Visit:
    visit.problems.clear()
    visit.open(request.param)
    return visit


def test_mathematics_is_set(opened: Visit) -> None:
    assert opened.page.locator(".math:not(:has(mjx-container))").count() == 0
    assert opened.page.locator("mjx-merror").count() == 0
    assert opened.page.evaluate(RAW_TEX) == []


def test_pictures_are_shown(opened: Visit) -> None:
    broken = "[...document.images].filter(e => !e.complete || !e.naturalWidth).map(e => e.src)"
    assert opened.page.evaluate(broken) == []


def test_interactive_figures_change(opened: Visit) -> None:
    """Every control of every interactive figure, moved with the keyboard, changes what the figure shows."""
    for figure in opened.page.locator(".explorer").all():
        for control in figure.locator("input, select").all():
            before = figure.evaluate(SHOWN)
            move(control)
            page_shows = f"([figure, before]) => ({SHOWN})(figure) !== before"
            opened.page.wait_for_function(page_shows, arg=[figure.element_handle(), before], timeout=5000)


@pytest.mark.parametrize("name", build())
def test_page_arithmetic_equals_torch(visit: Visit, name: str) -> None:
    """The bars that the inline script computes are those of Python, over the controls' range."""
    explorer = build()[name]
    visit.page.set_content(explorer._repr_html_())
    for values in settings(explorer):
        script = "([name, data, values]) => window.rcmhaExplorers[name](data, values).bars"
        bars = visit.page.evaluate(script, [name, explorer.data, values])
        assert bars == pytest.approx(explorer.compute(**values), abs=1e-9)
    drawn = visit.page.locator("svg rect").count()
    assert drawn >= len(explorer.labels)


def move(control: Locator) -> None:
    """Change a control as a reader without a mouse does."""
    kind = control.evaluate("e => e.tagName === 'SELECT' ? 'select' : e.type")
    at_end = control.evaluate("e => e.type === 'range' && +e.value >= +e.max || e.selectedIndex === e.length - 1")
    control.focus()
    if kind in ("checkbox", "radio"):
        control.press("Space")
    elif kind == "text":
        control.press_sequentially("a")
    else:
        less, more = {"select": ("ArrowUp", "ArrowDown"), "number": ("ArrowDown", "ArrowUp")}.get(
            kind, ("ArrowLeft", "ArrowRight")
        )
        control.press(less if at_end else more)


def test_accessibility(opened: Visit) -> None:
    """No serious fault that axe-core finds, in the light and in the dark theme."""
    page, scope = opened.page, {"exclude": [["mjx-container"]]}
    options = {"resultTypes": ["violations"], "preload": False}  # preloading reads files, which a browser refuses
    violations = Axe().run(page, scope, options).response["violations"]
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    violations += Axe().run(page, scope, options | {"runOnly": ["color-contrast"]}).response["violations"]
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    assert [
        f"{v['id']}: {node['html'][:200]} {node['failureSummary']}"
        for v in violations
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ] == []


def test_fits_a_phone(opened: Visit) -> None:
    opened.page.set_viewport_size({"width": 375, "height": 800})
    assert opened.page.evaluate(OVERFLOW) == []


def test_no_console_error_and_no_request(opened: Visit) -> None:
    """After all that was done to the page above."""
    assert opened.problems == []


@pytest.mark.parametrize("name", EXPLORERS)
def test_interactive_figures_are_there(visit: Visit, name: str) -> None:
    found = visit.open(name).locator(".explorer").evaluate_all("figures => figures.map(f => f.dataset.name)")
    assert EXPLORERS[name] <= set(found)


def test_sidebar_leads_to_pages(visit: Visit) -> None:
    page = visit.open(PAGES[0])
    for name in PAGES[-1], PAGES[1]:
        page.locator(f".bd-sidebar-primary nav a[href$='{Path(name).name}.html']").click()
        expect(page).to_have_url((visit.site / f"{name}.html").as_uri())


def test_search_finds_a_word(visit: Visit) -> None:
    visit.problems.clear()
    page = visit.open(PAGES[0])
    page.locator(".search-button__button, .search-button-field").locator("visible=true").first.click()
    page.keyboard.type("convolution")
    page.keyboard.press("Enter")
    page.locator("#search-results a[href*='03_convolution.html']").first.click()
    expect(page).to_have_url(re.compile("03_convolution.html"))
    assert visit.problems == []


def test_dark_mode(visit: Visit) -> None:
    page = visit.open(PAGES[0])
    themes = {}
    for _ in range(3):  # automatic, light, dark
        page.locator(".theme-switch-button").locator("visible=true").first.click()
        theme = page.locator("html").get_attribute("data-theme")
        themes[theme] = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
    assert themes.keys() == {"light", "dark"}
    assert themes["light"] != themes["dark"]

"""The explorer's page in headless Chromium, opened from disk as a reader would.

EXPLORER_SCREENSHOT=docs/images/explorer.png makes the screenshot test keep its picture there.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="selenium is missing: pip install -r requirements.txt")

import browsing
import nbformat
from browsing import press
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_annotation_browser import XSS, contrast

from judgelib.explorer import Choice, Page, Record, Rejected, Token
from judgelib.explorer.__main__ import main
from judgelib.provenance import checkout

pytestmark = pytest.mark.skipif(
    not (browsing.CHROMIUM and browsing.CHROMEDRIVER),
    reason="Chromium or its driver is missing: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A browser that keeps a log of its requests."""
    log = {"goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"}}
    with browsing.chromium(tmp_path_factory.mktemp("profile"), log) as browser:
        yield browser


class Open:
    """A page in the browser."""

    def __init__(self, driver: Chrome, page: Page, path: Path) -> None:
        self.driver = driver
        driver.get(page.write(path).as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Exactly the texts of all such elements."""
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return list(self.run(script, selector))

    def details(self, panel: int = 0) -> str:
        return self.texts(".details")[panel]

    def slide(self, value: float, panel: int = 0) -> None:
        script = (
            "const s = document.querySelectorAll('input')[arguments[0]]; s.value = arguments[1];"
            "s.dispatchEvent(new Event('input'))"
        )
        self.run(script, panel, value)

    def having(self, name: str, panel: int = 0) -> list[int]:
        """Places of the tokens of that class."""
        script = (
            "const t = document.querySelectorAll('.text')[arguments[0]].children;"
            "return [...t].flatMap((e, i) => e.classList.contains(arguments[1]) ? [i] : [])"
        )
        return list(self.run(script, panel, name))


@pytest.fixture
def show(driver: Chrome, tmp_path: Path) -> Callable[..., Open]:
    return lambda *records: Open(driver, Page(records, title="A test"), tmp_path / "page.html")


def choices(*names: str) -> tuple[Choice, ...]:
    return tuple(Choice(name, n, 0.5 / (n + 1)) for n, name in enumerate(names))


def token(text: str, origin: str = "matched", cycle: int = 1, **changes: Any) -> Token:
    made = {"id": 7, "name": text, "reason": f"because of {origin}", **changes}
    return Token(text=text, origin=origin, cycle=cycle, **made)


def answer(threshold: float | None = 0.5) -> Record:
    """One token of every origin of a decoding, and two decisions that another threshold flips."""
    gone = Rejected(" five", 9, " apples")
    tokens = (
        token("It", least=True, most=True, probability=0.99),
        token(" is", "judged", most=True, probability=0.8, target=choices(" was", " is")),
        token(" 4", "replaced", most=True, probability=0.25, rejected=gone, id=1,
              target=choices(" 3", " 4"), draft=choices(" five", " 4")),
        token(".", least=True, most=True, probability=0.9, cycle=2),
        token("\n", "bonus", cycle=2),
    )  # fmt: skip
    return Record("Judge", "Match | Judge(0.5)", "2 + 2?", tokens, threshold, drafted=6, accepted=3)


def test_the_keyboard_shows_the_details(show: Callable[..., Open]) -> None:
    page = show(answer())
    page.run("document.querySelector('[role=option][tabindex=\"0\"]').focus()")
    seen = {}
    for key in (Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.END, Keys.ARROW_LEFT, "p"):
        press(page.driver, key)
        place = page.run(
            "return [...document.querySelectorAll('[role=option]')].indexOf(document.activeElement)"
        )
        seen[place] = page.details()
        assert page.having("token")[place] == place
        chosen = page.run(
            "return [...document.querySelectorAll('[aria-selected=true]')].map((e) => e.tabIndex)"
        )
        assert chosen == [0]
        described = page.all("[aria-selected=true]")[0].get_attribute("aria-describedby")
        assert page.texts(f"#{described}") == page.texts(".reason")  # what a screen reader adds
    assert list(seen) == [0, 1, 2, 4, 3]
    assert "token 2 of 5 · id 7 · target call 1 · judge 0.8000 · ✓ accepted anyway" in seen[1]
    assert "because of judged" in seen[1]
    assert (
        "The draft had “·five”, thrown away with what it had written behind it: “·apples”"
        in seen[2]
    )
    assert "·425.0%◀ written" in seen[2] and "The draft's likeliest" in seen[2]
    assert "“↵” token 5 of 5" in seen[4] and "+ bonus" in seen[4]


def test_the_mouse_shows_the_details_for_as_long_as_it_points(show: Callable[..., Open]) -> None:
    page = show(answer())
    assert "“·is”" in page.details()
    ActionChains(page.driver).move_to_element(page.all(".token")[2]).perform()
    assert "“·4”" in page.details()
    ActionChains(page.driver).move_to_element(page.all("h1")[0]).perform()
    assert "“·is”" in page.details()
    page.all(".token")[3].click()
    assert "“.”" in page.details()


def test_the_slider_flips_marks_and_says_what_is_not_known(show: Callable[..., Open]) -> None:
    record = answer()
    page = show(record)
    for threshold in (0.1, 0.25, 0.3, 0.8, 0.805, 1.0, 0.0):
        page.slide(threshold)
        flips = record.flips(threshold)
        assert page.having("flips") == flips
        assert page.having("beyond") == (list(range(flips[0] + 1, 5)) if flips else [])
        marks = "return [...document.querySelectorAll('.flag')].map((e) => e.dataset.mark)"
        first = [mark for mark in page.run(marks) if mark]
        assert first[:1] == (["⇄ would differ from here"] if flips else [])
        assert ("come out differently" in page.texts(".said")[0]) == bool(flips)
        assert page.texts(".dial output") == [f"{threshold:.3f}"]
    assert page.having("flips") == [2]  # at 0 the rejected token would have stayed
    press(page.driver, Keys.TAB)
    page.all(".token")[2].click()
    assert "⇄ At the threshold 0.000 the draft's token would have stayed." in page.details()
    page.all(".dial button")[0].click()
    assert (page.having("flips"), page.having("beyond")) == ([], [])
    assert "As recorded" in page.texts(".said")[0]
    page.all("input")[0].send_keys(Keys.END)  # and by keyboard
    assert page.having("flips") == [1]


def test_records_stand_side_by_side_and_tell_where_they_part(show: Callable[..., Open]) -> None:
    strict = Record("Strict", "Match", "2 + 2?", (token("It"), token(" 4", id=8)))
    page = show(strict, answer())
    left, right = (panel.rect for panel in page.all(".panel"))
    assert left["y"] == right["y"] and left["x"] < right["x"]
    assert len(page.all(".prompt")) == 1
    marks = "return [...document.querySelectorAll('.parts')].map((e) => e.dataset.mark)"
    assert page.run(marks) == ["≠ texts part"]
    assert page.texts(".legend")[1] == (
        "draft matched2✓ accepted anyway1✗ rejected and replaced1+ bonus1"
    )


TAGS = {"HEADER", "H1", "H2", "BUTTON", "DIV", "MAIN", "SECTION", "P", "UL", "LI", "B", "LABEL"}
TAGS |= {"INPUT", "OUTPUT", "SPAN", "DETAILS", "SUMMARY", "DL", "DT", "DD", "TABLE", "CAPTION"}
TAGS |= {"TBODY", "TR", "TH", "TD", "SCRIPT", "NOSCRIPT"}


def test_injections_render_as_text(show: Callable[..., Open]) -> None:
    """Each text of the corpus everywhere a model or a user could put it."""
    for text in ["".join(XSS), *XSS[:3]]:
        nasty = token(
            text, "replaced", name=text, reason=text, rejected=Rejected(text, 1, text),
            target=choices(text), draft=choices(text), probability=0.5,
        )  # fmt: skip
        page = show(Record(text, text, text, (token("a"), nasty), 0.5))
        page.all(".token")[1].click()
        tags = page.run("return [...document.querySelectorAll('body *')].map((e) => e.tagName)")
        assert set(tags) <= TAGS
        assert page.run("return window.pwned ?? null") is None
        assert page.texts(".token") == ["a", text]
        assert page.texts(".prompt") == [text] == page.texts("h2")
        assert page.texts(".reason") == [text]
        assert len(page.all("script")) == 2


EXACT = ("a", "  b", "\n", "\t", "\r\n", "\u00a0", "\u200b", "\u202e", "", "", "€", "é🙂", "👩‍👩‍👧")
EXACT += (
    "שלום",
    " עולם",
    "مرحبا",
    "\ufeff",
    "e\u0301",
    "\x00\x07",
    "\u2066",
    "<b>&amp;",
    "\n\n",
    "",
)


def test_the_text_is_exact(show: Callable[..., Open]) -> None:
    tokens = [token(text, name=text or "⟨E2⟩") for text in EXACT]
    page = show(Record("t", "r", "p", tuple(tokens)))
    assert tuple(page.texts(".token")) == EXACT
    assert page.texts(".text") == ["".join(EXACT)]
    places = [element.rect["x"] for element in page.all(".token")[13:15]]
    assert places[0] > places[1]  # the second Hebrew word stands to the left of the first
    marks = "return [...document.querySelectorAll('.text [data-mark]')].map((e) => e.dataset.mark)"
    shown = [mark for mark in page.run(marks) if mark]
    for mark in ("·", "↵", "→", "U+000D", "U+00A0", "U+200B", "U+202E", "…", "U+0000"):
        assert mark in shown
    family = EXACT.index("👩‍👩‍👧")  # its joiners stay within it, else it would fall apart
    assert "U+200D" not in shown and page.all(".token")[family].text == EXACT[family]
    names = [page.all(".token")[place].get_attribute("aria-label") for place in (1, family)]
    assert [name.split(",")[0] for name in names] == [" space  space b", EXACT[family]]
    assert page.having("turns") == [EXACT.index("\u202e"), EXACT.index("\u2066")]


def test_nothing_is_requested_and_nothing_is_refused(show: Callable[..., Open]) -> None:
    driver = show(answer()).driver
    driver.get_log("performance")
    driver.get_log("browser")
    show(answer()).slide(0.1)
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [one["request"]["url"].split("/")[-1] for one in sent] == ["page.html"]
    assert driver.get_log("browser") == []  # no script failed, no policy was broken
    tried = "return fetch('http://127.0.0.1:1/').then(() => 'sent', (e) => String(e))"
    assert "Failed to fetch" in driver.execute_script(tried)
    assert "Content Security Policy" in driver.get_log("browser")[0]["message"]


COLOURS = """
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if ((numbers(colour)[3] ?? 1) > 0) return colour;
  }
  return 'rgb(255, 255, 255)';
};
const shown = [];
for (const e of document.querySelectorAll('body *')) {
  if (['SCRIPT', 'NOSCRIPT', 'INPUT'].includes(e.tagName)) continue;
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (own) shown.push([e.className || e.tagName, getComputedStyle(e).color, ground(e)]);
  const before = getComputedStyle(e, '::before');
  if (!['none', 'normal', '""'].includes(before.content)) {
    const filled = (numbers(before.backgroundColor)[3] ?? 1) > 0;
    const paper = filled ? before.backgroundColor : ground(e);
    shown.push([e.className + '::before', before.color, paper]);
  }
}
return shown;
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_is_enough_in_both_themes(show: Callable[..., Open], theme: str) -> None:
    labels = [token("x", name, 0) for name in ("acceptable", "unacceptable", "ignored")]
    page = show(answer(), Record("t", "r", "2 + 2?", (*labels, *answer().tokens)))
    page.run(f"document.documentElement.dataset.theme = '{theme}'")
    page.run("document.querySelector('.guide').open = true")
    found = page.run(COLOURS)
    page.slide(0.9)
    page.all(".token")[1].click()
    found += page.run(COLOURS)
    names = {name for name, _, _ in found}
    assert {"flag::before", "gone::before", "parts::before", "cycle::before", "would"} <= names
    assert {"chip judged", "chip ignored", "facts", "said", "reason"} <= names
    assert [one for one in found if contrast(one[1], one[2]) < 4.5] == []
    ring = page.all("[aria-selected=true]")[0].value_of_css_property("outline-color")
    assert contrast(ring, page.run("return getComputedStyle(document.body).backgroundColor")) >= 3


def test_the_theme_can_be_chosen(show: Callable[..., Open]) -> None:
    page = show(answer())
    grounds = []
    for _ in range(3):
        grounds.append(page.all("body")[0].value_of_css_property("background-color"))
        page.all("header button")[0].click()
    assert grounds[2] != grounds[1] and grounds[0] in grounds[1:]


def test_it_survives_nbconvert(driver: Chrome, tmp_path: Path) -> None:
    from nbconvert import HTMLExporter

    data = {"text/html": Page([answer()])._repr_html_(), "text/plain": "a page"}
    output = nbformat.v4.new_output("execute_result", data=data, execution_count=1)  # type: ignore[no-untyped-call]
    cell = nbformat.v4.new_code_cell("page", outputs=[output])  # type: ignore[no-untyped-call]
    book = nbformat.v4.new_notebook(cells=[cell])  # type: ignore[no-untyped-call]
    html, _ = HTMLExporter(template_name="basic").from_notebook_node(book)
    path = tmp_path / "exported.html"
    path.write_text(f"<!doctype html><meta charset=utf-8>{html}", "utf-8")
    driver.get(path.as_uri())
    driver.switch_to.frame(driver.find_element(By.CSS_SELECTOR, "iframe"))
    assert driver.execute_script("return document.querySelector('.text').textContent") == (
        answer().text
    )
    driver.find_element(By.CSS_SELECTOR, ".token").click()
    assert "“It” token 1 of 5" in driver.find_element(By.CSS_SELECTOR, ".details").text
    assert driver.execute_script("return window.origin") == "null"  # no way to the notebook


def test_screenshot(driver: Chrome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command on the sandbox, as the README shows it."""
    monkeypatch.setenv("JUDGELIB_ROOT", str(checkout()))
    page = tmp_path / "explorer.html"
    question = ["--profile", "sandbox-full", "--task", "sandbox-math", "--number", "3"]
    assert main([*question, "--output", str(page)]) == 0
    driver.set_window_size(1240, 900)
    driver.get(page.as_uri())
    strict, judge = driver.find_elements(By.CSS_SELECTOR, ".panel")
    assert strict.find_elements(By.CSS_SELECTOR, ".token.judged") == []
    judge.find_elements(By.CSS_SELECTOR, ".token.judged")[0].click()
    path = Path(os.environ.get("EXPLORER_SCREENSHOT", tmp_path / "explorer.png"))
    path.parent.mkdir(parents=True, exist_ok=True)
    driver.set_window_size(1240, driver.execute_script("return document.body.scrollHeight") + 160)
    ActionChains(driver).move_to_element(driver.find_element(By.TAG_NAME, "h1")).perform()
    driver.find_element(By.TAG_NAME, "body").screenshot(str(path))
    width, height = struct.unpack(">II", path.read_bytes()[16:24])  # of the PNG's header
    assert 1100 <= width <= 1240
    assert 500 <= height <= 1200
    assert re.search(r"\d+ tokens in \d+ target calls", driver.page_source)

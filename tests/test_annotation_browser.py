"""The annotation widget driven for real: by keys and mouse in Chromium, and in JupyterLab.

ANNOTATION_SCREENSHOT=docs/images/annotation.png makes the screenshot test keep its picture there.
"""

from __future__ import annotations

import json
import os
import re
import signal
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="selenium is missing: pip install -r requirements.txt")

import browsing
from browsing import Bench, Lab, Shown, press, wait
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from judgelib.annotation import Annotator, Item, save_items

pytestmark = pytest.mark.skipif(
    not (browsing.CHROMIUM and browsing.CHROMEDRIVER),
    reason="Chromium or its driver is missing: apt-get install chromium chromium-driver",
)


def item(name: str, *tokens: str, question: str = "2 + 2?", right: str = "4") -> Item:
    ids = tuple(range(len(tokens)))
    return Item(name, f"q-{name}", "math", question, right, tokens, ids, (1,), "draft-model")


def split(text: str) -> tuple[str, ...]:
    """Words with the space before them, and everything else alone."""
    return tuple(re.findall(r" ?\w+|[^\w]", text))


PLAIN = [item(str(number), "It", " is", " 5", ".") for number in range(4)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="module")
def driver(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """The browser; the server is there first, to start up while tests that need none run."""
    with browsing.chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def bench(driver: Chrome, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Shows items; the file of decisions is `ada.jsonl`."""
    opened: list[Annotator] = []

    def show(*items: Item) -> Bench:
        opened.append(Annotator(items or PLAIN, tmp_path / "ada.jsonl", "Ada"))
        return Bench(driver, opened[-1])

    yield show
    for annotator in opened:
        annotator.close()


def written(path: Path) -> list[tuple[str, int | None, int | None]]:
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [(line["verdict"], line["start"], line["stop"]) for line in found]


# Keys


def test_every_decision_by_keyboard(bench: Callable[..., Bench], tmp_path: Path) -> None:
    shown = bench()
    right = Keys.ARROW_RIGHT
    shown.press(right, right, Keys.ENTER)
    shown.press("a")
    shown.press("u")
    shown.press("z", Keys.BACKSPACE, "x")
    shown.press(Keys.END, "X", "A")
    assert written(tmp_path / "ada.jsonl") == [
        ("error", 2, 3),
        ("correct", None, None),
        ("unsure", None, None),
        ("undo", None, None),
        ("undo", None, None),
        ("error", 0, 1),
        ("error", 3, 4),
        ("correct", None, None),
    ]
    assert "✓ Saved in ada.jsonl: all correct. All 4 items are decided." in shown.text(".status")
    assert shown.text(".count") == "Item 4 of 4 · 4 decided"


def test_undo_goes_back_to_the_first_decision_and_selects_its_tokens(
    bench: Callable[..., Bench],
) -> None:
    shown = bench()
    shown.press(Keys.ARROW_RIGHT)
    shown.press(Keys.ARROW_RIGHT, holding=Keys.SHIFT)
    shown.press(Keys.ENTER, "a", "u", "z", "z", "z")
    assert shown.text(".count") == "Item 1 of 4 · 0 decided"
    assert (shown.selected(), shown.focused()) == ([1, 2], 2)
    assert "✓ Undone, and saved in ada.jsonl" in shown.text(".status")
    shown.press("z")
    assert shown.text(".status") == "There is nothing to undo."


def test_arrows_move_and_shift_extends(bench: Callable[..., Bench]) -> None:
    shown = bench()
    seen = []
    for key, holding in (
        (Keys.ARROW_LEFT, ""),
        (Keys.END, ""),
        (Keys.ARROW_RIGHT, ""),
        (Keys.ARROW_LEFT, Keys.SHIFT),
        (Keys.ARROW_LEFT, Keys.SHIFT),
        (Keys.ARROW_LEFT, ""),
        (Keys.END, Keys.SHIFT),
        (Keys.HOME, Keys.SHIFT),
        (Keys.HOME, ""),
    ):
        shown.press(key, holding=holding)
        seen.append((shown.focused(), shown.selected()))
    assert seen == [
        (0, [0]),
        (3, [3]),
        (3, [3]),
        (2, [2, 3]),
        (1, [1, 2, 3]),
        (0, [0]),
        (3, [0, 1, 2, 3]),
        (0, [0]),
        (0, [0]),
    ]


def test_up_and_down_move_by_line(bench: Callable[..., Bench]) -> None:
    tokens = split("aaa bbb ccc ddd\nee\n\nfff ggg hhh iii jjj")
    shown = bench(item("lines", *tokens))
    seen = []
    for key in [Keys.ARROW_RIGHT] * 2 + [Keys.ARROW_DOWN] * 4 + [Keys.ARROW_UP] * 4:
        shown.press(key)
        seen.append(tokens[shown.focused() or 0])
    # The second and third lines are short; the column is that of the token one comes from.
    assert seen == [" bbb", " ccc", "\n", "\n", "fff", "fff", "\n", "ee", "aaa", "aaa"]


def test_up_and_down_follow_lines_that_the_window_breaks(bench: Callable[..., Bench]) -> None:
    shown = bench(item("long", *split("word " * 300)))
    script = "return [...document.querySelectorAll('.token')].map((e) => e.getClientRects()[0].top)"
    tops = shown.driver.execute_script(script)
    places = []
    for _ in range(3):
        shown.press(Keys.ARROW_DOWN)
        places.append(tops[shown.focused() or 0])
    assert places == sorted(set(tops))[1:4]


def test_moving_between_items(bench: Callable[..., Bench]) -> None:
    shown = bench()
    shown.press("a")
    places = [shown.text(".count")[:6]]
    for key, holding in (("n", ""), ("p", ""), ("p", ""), ("P", Keys.SHIFT), ("P", Keys.SHIFT)):
        shown.press(key, holding=holding)
        places.append(shown.text(".count")[:6])
    assert places == ["Item 2", "Item 3", "Item 2", "Item 4", "Item 3", "Item 2"]
    shown.press("P", holding=Keys.SHIFT)
    assert "You decided: all correct" in shown.text(".verdict")


def test_help_lists_the_keys_and_takes_no_decision(bench: Callable[..., Bench]) -> None:
    shown = bench()
    shown.press(Keys.ARROW_RIGHT, "?")
    dialog = shown.one("dialog")
    assert dialog.is_displayed()
    keys = ("← →", "↑ ↓", "Home End", "Enter or x", "a", "u", "z or Backspace", "n p", "?", "Esc")
    assert [key for key in keys if key not in dialog.text] == []
    shown.press("a", "z", Keys.ARROW_RIGHT)
    assert shown.text(".count") == "Item 1 of 4 · 0 decided"
    shown.press(Keys.ESCAPE)
    assert (dialog.is_displayed(), shown.focused()) == (False, 1)
    shown.press("?", "?")
    assert (dialog.is_displayed(), shown.focused()) == (False, 1)


def test_no_key_reaches_the_page_around(bench: Callable[..., Bench]) -> None:
    shown = bench()
    shown.press(*"anpuzxXbcdm01?", Keys.ESCAPE, Keys.ENTER, Keys.ARROW_DOWN, Keys.BACKSPACE)
    shown.press("a", "s", holding=Keys.CONTROL)
    assert shown.driver.execute_script("return window.leaked") == []
    assert shown.one("").get_attribute("data-lm-suppress-shortcuts") == "true"


def test_neither_shortcuts_of_the_browser_nor_held_keys_decide(
    bench: Callable[..., Bench],
) -> None:
    shown = bench()
    shown.press("a", "u", "z", holding=Keys.CONTROL)
    held = "new KeyboardEvent('keydown', {key: 'a', repeat: true, bubbles: true})"
    shown.driver.execute_script(f"document.activeElement.dispatchEvent({held})")
    shown.deliver()
    assert (shown.annotator.decisions, shown.annotator.turn) == ({}, "0:0")


def test_a_button_has_the_keys_of_a_button(bench: Callable[..., Bench], tmp_path: Path) -> None:
    shown = bench()
    shown.press(Keys.TAB, Keys.TAB)  # past "First wrong token" to "All correct"
    shown.press(Keys.ENTER)
    assert written(tmp_path / "ada.jsonl") == [("correct", None, None)]
    assert shown.focused() == 0


def test_the_mouse_does_it_too(bench: Callable[..., Bench], tmp_path: Path) -> None:
    shown = bench()
    chain = ActionChains(shown.driver, duration=0)
    tokens = shown.tokens()
    chain.click(tokens[1]).key_down(Keys.SHIFT).click(tokens[2]).key_up(Keys.SHIFT).perform()
    for label in ("First wrong token", "Unsure", "All correct", "Undo"):
        button = f"//button[contains(., '{label}')]"
        shown.driver.find_element(By.XPATH, button).click()
        shown.deliver()
    assert written(tmp_path / "ada.jsonl") == [
        ("error", 1, 3),
        ("unsure", None, None),
        ("correct", None, None),
        ("undo", None, None),
    ]


# What is saved, and what is said about it


def test_saved_is_said_only_when_it_is(bench: Callable[..., Bench], tmp_path: Path) -> None:
    shown = bench()
    press(shown.driver, "a")
    assert (shown.text(".status"), written(tmp_path / "ada.jsonl")) == ("… Saving", [])
    assert shown.one("").get_attribute("aria-busy") == "true"
    press(shown.driver, "u", "z")
    assert "Still saving" in shown.text(".status")
    assert [message["verdict"] for message in shown.deliver()] == ["correct"]
    assert "✓ Saved" in shown.text(".status")
    assert shown.one("").get_attribute("aria-busy") == "false"


HURRY = "const real = setTimeout; window.setTimeout = (call, time) => real(call, time / 50)"


def test_a_kernel_that_does_not_answer_is_told(bench: Callable[..., Bench]) -> None:
    shown = bench()
    shown.driver.execute_script(HURRY)
    press(shown.driver, "a")
    wait(lambda: "Not saved: the kernel does not answer" in shown.text(".status"), 3)
    assert shown.text(".count") == "Item 1 of 4 · 0 decided"
    late = shown.deliver()  # it only was slow
    assert len(late) == 1
    assert "✓ Saved" in shown.text(".status")
    assert shown.text(".count") == "Item 2 of 4 · 1 decided"


def test_a_second_try_after_a_slow_answer_does_not_decide_the_next_item(
    bench: Callable[..., Bench], tmp_path: Path
) -> None:
    shown = bench()
    shown.driver.execute_script(HURRY)
    press(shown.driver, "a")
    wait(lambda: "Not saved" in shown.text(".status"), 3)
    press(shown.driver, "a")
    assert len(shown.deliver()) == 2
    assert len(written(tmp_path / "ada.jsonl")) == 1
    assert "out of date" in shown.text(".status")


def test_a_closed_connection_is_told_at_once(bench: Callable[..., Bench]) -> None:
    shown = bench()
    shown.driver.execute_script("window.model.send = () => { throw new Error('closed'); }")
    press(shown.driver, "a")
    assert "Not saved" in shown.text(".status")


def test_a_refusal_is_shown_with_its_reason(bench: Callable[..., Bench], tmp_path: Path) -> None:
    shown = bench()
    (tmp_path / "ada.jsonl").unlink()
    shown.press("a")
    assert "Not done: No such file or directory" in shown.text(".status")
    assert shown.text(".count") == "Item 1 of 4 · 0 decided"


def test_a_view_that_is_taken_down_hears_no_more(bench: Callable[..., Bench]) -> None:
    shown = bench()
    shown.driver.execute_script("window.close()")
    shown.push({})  # would throw
    assert shown.tokens() == []


# Text of models

XSS = [
    "<script>window.pwned = 1; alert(1)</script>",
    "<img src=x onerror='window.pwned = 1; alert(1)'>",
    '"><svg onload=window.pwned=1>',
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "</span></div></section><h1>out</h1>",
    "<a href='javascript:window.pwned=1'>click</a>",
    "<style>* { display: none }</style>",
    "&lt;b&gt; &amp; &#x3C;script&#x3E;",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<!-- --!> <template><b>x</b></template>",
    "${alert(1)} {{7*7}} \\u003cscript\\u003e $x^2$ **bold** [a](javascript:alert(1))",
    "' onfocus='window.pwned=1' autofocus='",
    "__proto__",
]


def attack() -> list[Item]:
    """Each text of the corpus everywhere: whole, and cut between `<` and its name."""
    cut = [tuple(part for part in re.split(r"(<)", text) if part) for text in XSS]
    whole = [item(f"w{n}", text, question=text, right=text) for n, text in enumerate(XSS)]
    parts = [item(f"c{n}", *text, right="".join(text)) for n, text in enumerate(cut)]
    return [*whole, *parts]


TAGS = {"SECTION", "DIV", "SPAN", "PROGRESS", "H3", "P", "BUTTON", "KBD", "DIALOG", "TABLE"}
TAGS |= {"TBODY", "TR", "TH", "TD"}
INSIDE = """
const all = [...document.querySelectorAll('.judgelib-annotation, .judgelib-annotation *')];
const texts = [...document.querySelectorAll('.judgelib-annotation .text')];
const names = new Set(all.flatMap((e) => e.getAttributeNames()));
const tags = new Set(all.map((e) => e.tagName));
return [[...tags], [...names], texts.map((e) => e.textContent), window.pwned ?? null];
"""
ATTRIBUTES = {"class", "role", "dir", "tabindex", "type", "scope", "open", "max", "value"}
ATTRIBUTES |= {"data-mark", "data-lm-suppress-shortcuts"}


def assert_harmless(shown: Shown) -> list[str]:
    """Nothing but our own elements; question, right answer and judged answer as displayed."""
    tags, attributes, texts, pwned = shown.driver.execute_script(INSIDE)  # fails at an open alert
    assert set(tags) <= TAGS
    assert {name for name in attributes if not name.startswith("aria-")} <= ATTRIBUTES
    assert pwned is None
    return list(texts)


def test_text_of_models_never_becomes_html(bench: Callable[..., Bench]) -> None:
    items = attack()
    shown = bench(*items)
    for _ in items:
        now = shown.annotator.item
        assert assert_harmless(shown) == [now.question, now.right, now.answer]
        shown.press("a")
    assert len(shown.annotator.decisions) == len(items)


def test_the_source_has_no_way_to_make_html_of_text() -> None:
    source = (browsing.ASSETS / "widget.js").read_text("utf-8")
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|Function\("
    assert not re.search(ways + r"|createContextualFragment|https?:|fetch\(|srcdoc", source)


UNSEEN = ("a", " ", "  b", "\n", "\t", "\r\n", "\u00a0", "\u200b", "\u202e", "abc", "\u2066", "")
UNSEEN += ("\x00\x07", "é🙂", "שלום", "\ufeff", "\n\n", "")


def test_what_cannot_be_seen_is_marked_and_the_text_stays_exact(
    bench: Callable[..., Bench],
) -> None:
    shown = bench(item("unseen", *UNSEEN))
    tokens = shown.tokens()
    assert tuple(token.get_property("textContent") for token in tokens) == UNSEEN
    script = "return [...arguments[0].querySelectorAll('[data-mark]')].map((e) => e.dataset.mark)"
    marks = [shown.driver.execute_script(script, token) for token in tokens]
    assert marks == [
        [], ["·"], ["·", "·"], ["↵"], ["→"], ["U+000D", "↵"], ["U+00A0"], ["U+200B"], ["U+202E"],
        [], ["U+2066"], ["…"], ["U+0000", "U+0007"], [], [], ["U+FEFF"], ["↵", "↵"], ["■ end"],
    ]  # fmt: skip
    names = [token.get_attribute("aria-label") for token in tokens]
    assert names[1:4] == [" space ", " space  space b", " new line "]
    assert (names[8], names[11], names[-1]) == (
        " U+202E ",
        "part of the next character",
        "end of the answer",
    )
    # The override stays in its token: the letters after it run as they are written.
    left = [tokens[8].rect["x"], tokens[9].rect["x"]]
    assert left == sorted(left)


# Access


def test_roles_and_names(bench: Callable[..., Bench]) -> None:
    shown = bench()
    assert shown.one(".tokens").aria_role == "listbox"
    assert shown.one(".tokens").accessible_name == "Answer under judgement, token by token"
    assert {token.aria_role for token in shown.tokens()} == {"option"}
    assert all(token.accessible_name for token in shown.tokens())
    assert shown.one(".status").aria_role == "status"
    buttons = shown.driver.find_elements(By.CSS_SELECTOR, ".bar button")
    assert [button.accessible_name for button in buttons][:2] == [
        "Enter First wrong token",
        "a All correct",
    ]
    stops = [token.get_attribute("tabindex") for token in shown.tokens()]
    assert stops == ["0", "-1", "-1", "-1"]  # one stop for Tab, arrows within


COLOURS = """
const shown = [];
const background = (e) => {
  for (; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(colour)) return colour;
  }
  return 'rgb(255, 255, 255)';
};
for (const e of document.querySelectorAll('.judgelib-annotation, .judgelib-annotation *')) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (own) shown.push([e.className || e.tagName, getComputedStyle(e).color, background(e)]);
  const before = getComputedStyle(e, '::before');
  if (!['none', 'normal'].includes(before.content))
    shown.push([e.className + '::before', before.color, background(e)]);
}
return shown;
"""


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("light", ["true", "false"])
def test_contrast_is_enough_in_both_themes(bench: Callable[..., Bench], light: str) -> None:
    shown = bench(item("a", "a", " b", "\u200b", "c"))
    shown.driver.execute_script(f"document.body.dataset.jpThemeLight = '{light}'")
    shown.press(Keys.ARROW_RIGHT, Keys.ENTER)  # decided: ✗ and the verdict are on display
    found = shown.driver.execute_script(COLOURS)
    assert {"count", "token wrong::before", "status saved", "verdict", "KBD"} <= {
        n for n, _, _ in found
    }
    assert luminance(found[0][2]) > 0.9 if light == "true" else luminance(found[0][2]) < 0.1
    poor = [(name, ink, paper) for name, ink, paper in found if contrast(ink, paper) < 4.5]
    assert poor == []
    (shown.annotator.path).unlink()
    shown.press("a")
    problem = [pair for name, *pair in shown.driver.execute_script(COLOURS) if "problem" in name]
    assert contrast(*problem[0]) >= 4.5
    ring = shown.tokens()[1].value_of_css_property("outline-color")
    panel = shown.one(".tokens").value_of_css_property("background-color")
    assert contrast(ring, panel) >= 3


def test_the_focus_is_framed(bench: Callable[..., Bench]) -> None:
    shown = bench()
    shown.press(Keys.ARROW_RIGHT)
    widths = [token.value_of_css_property("outline-style") for token in shown.tokens()]
    assert widths == ["none", "solid", "none", "none"]


# JupyterLab

CELL = """import os
from pathlib import Path

from judgelib.annotation import annotate, load_items

Path("kernel.pid").write_text(str(os.getpid()))
annotate(load_items("items.jsonl"), "ada.jsonl", annotator="Ada")"""


class Notebook(Shown):
    """A notebook in JupyterLab whose first cell shows the widget."""

    def __init__(self, driver: Chrome, lab: Lab, name: str, *cells: str) -> None:
        super().__init__(driver)
        self.lab, self.name = lab, name
        driver.get(lab.write(name, cells))
        wait(lambda: self.cells() == len(cells) and self.at("jp-Notebook-cell"))

    def at(self, name: str) -> bool:
        """Whether the focus is on an element of that class."""
        script = "return document.activeElement.classList.contains(arguments[0])"
        return bool(self.driver.execute_script(script, name))

    def cells(self) -> int:
        return len(self.driver.find_elements(By.CSS_SELECTOR, ".jp-Notebook-cell"))

    def run(self) -> None:
        """Run the cell that has the focus, and go into its widget by Tab."""
        idle = (By.CSS_SELECTOR, ".jp-Notebook-ExecutionIndicator[data-status=idle]")
        wait(lambda: self.lab.ready(self.name) and self.driver.find_elements(*idle))
        old = self.driver.find_elements(By.CSS_SELECTOR, ".judgelib-annotation")
        press(self.driver, Keys.ENTER, holding=Keys.CONTROL)
        wait(
            lambda: (
                self.driver.find_elements(By.CSS_SELECTOR, ".judgelib-annotation") not in ([], old)
            )
        )
        wait(lambda: self.tab_to("token"), 5)

    def tab_to(self, name: str, *, back: bool = False) -> bool:
        press(self.driver, Keys.TAB, holding=Keys.SHIFT if back else "")
        return self.at(name)

    def decide(self, *keys: str) -> None:
        """Press keys, the last of which decides, and wait until that is saved."""
        press(self.driver, *keys)
        wait(lambda: "✓" in self.text(".status"))


def dismiss(driver: Chrome) -> None:
    """Close JupyterLab's message that the kernel died."""
    wait(lambda: driver.find_elements(By.CSS_SELECTOR, ".jp-Dialog"))
    press(driver, Keys.ENTER)
    wait(lambda: not driver.find_elements(By.CSS_SELECTOR, ".jp-Dialog"))


def test_in_jupyterlab_by_keyboard_with_a_kernel_that_dies(lab: Lab, driver: Chrome) -> None:
    save_items([*PLAIN, *attack()[:2]], lab.folder / "items.jsonl")
    book = Notebook(driver, lab, "killed.ipynb", CELL, "untouched = 1")
    book.run()
    book.decide(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ENTER)
    book.decide("a")
    book.decide("u")
    book.decide("z")
    press(driver, *"bddmyc00", Keys.ESCAPE)  # shortcuts of the notebook, were they to get there
    press(driver, "b", holding=Keys.CONTROL)  # and one of the whole window: the side bar
    assert driver.find_element(By.ID, "jp-left-stack").rect["width"] == 0
    file = lab.folder / "ada.jsonl"
    before = written(file)
    assert [verdict for verdict, _, _ in before] == ["error", "correct", "unsure", "undo"]
    assert book.cells() == 2

    os.kill(int((lab.folder / "kernel.pid").read_text()), signal.SIGKILL)
    dismiss(driver)
    wait(lambda: book.at("token") or book.tab_to("token"), 5)
    press(driver, "a")
    wait(lambda: "Not saved: the kernel does not answer" in book.text(".status"))
    assert written(file) == before

    wait(lambda: book.tab_to("jp-Notebook-cell", back=True), 5)
    book.run()
    assert book.text(".count") == "Item 3 of 6 · 2 decided"
    for decision in "aaaa":
        book.decide(decision)
        assert_harmless(book)
    assert "All 6 items are decided" in book.text(".status")
    for left in range(5, -1, -1):  # undo reaches behind the kernel's death
        press(driver, "z")
        wait(lambda left=left: book.text(".count").endswith(f"· {left} decided"))
    assert (book.selected(), book.cells()) == ([2], 2)
    assert len(written(file)) == 4 + 4 + 6


EXAMPLE = item(
    "apples",
    *split(
        "Tom starts with 3 bags of 4 apples, so he has 3 * 4 = 12 apples.\n"
        "He gives 5 of them to Ann, which leaves 12 - 5 = 8 apples.\n"
        "He buys 2 more: 8 + 2 = 10.\n\nAnswer: 10"
    ),
    question="Tom has 3 bags with 4 apples each. He gives 5 apples to Ann and then buys 2 more. "
    "How many apples does he have now?",
    right="3 bags of 4 apples are 3 * 4 = 12 apples.\nAfter giving 5 away he has 12 - 5 = 7.\n"
    "With 2 more he has 7 + 2 = 9.\n\nAnswer: 9",
)


SHOW = """from judgelib.annotation import annotate, load_items

annotate(load_items("example.jsonl"), "decisions/ada.jsonl", annotator="Ada")"""


def test_screenshot(lab: Lab, driver: Chrome, tmp_path: Path) -> None:
    items = [replace(EXAMPLE, id=str(number)) for number in range(12)]
    save_items(items, lab.folder / "example.jsonl")
    book = Notebook(driver, lab, "example.ipynb", SHOW)
    book.run()
    for verdict in "aau":
        book.decide(verdict)
    press(driver, *[Keys.ARROW_RIGHT] * EXAMPLE.tokens.index(" 8"))
    assert book.selected() == [EXAMPLE.tokens.index(" 8")]
    path = Path(os.environ.get("ANNOTATION_SCREENSHOT", tmp_path / "annotation.png"))
    path.parent.mkdir(parents=True, exist_ok=True)
    driver.find_element(By.CSS_SELECTOR, ".jp-Notebook-cell").screenshot(str(path))
    width, height = struct.unpack(">II", path.read_bytes()[16:24])  # of the PNG's header
    assert 1000 <= width <= 1200
    assert 300 <= height <= 900

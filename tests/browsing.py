"""A headless Chromium, a bench that shows the widget without Jupyter, and a real JupyterLab."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import urlopen

import nbformat
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from judgelib.annotation.annotator import Annotator
from judgelib.annotation.widget import answer, page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--force-device-scale-factor=1", "--window-size=1200,900",
)  # fmt: skip
ASSETS = Path(sys.modules["judgelib.annotation.widget"].__file__ or "").parent
QUIET = {Keys.ARROW_LEFT, Keys.ARROW_RIGHT, Keys.ARROW_UP, Keys.ARROW_DOWN, Keys.HOME, Keys.END}
Found = TypeVar("Found")


@contextmanager
def chromium(profile: Path, capabilities: Mapping[str, Any] | None = None) -> Iterator[Chrome]:
    """A browser with a fresh profile and no way to the network but loopback."""
    options = ChromeOptions()
    for name, value in (capabilities or {}).items():
        options.set_capability(name, value)
    assert CHROMIUM and CHROMEDRIVER
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    driver = Chrome(options, Service(CHROMEDRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def press(driver: Chrome, *keys: str, holding: str = "") -> None:
    """Press keys one after the other, wherever the focus is."""
    chain = ActionChains(driver, duration=0)
    if holding:
        chain.key_down(holding)
    for key in keys:
        chain.send_keys(key)
    if holding:
        chain.key_up(holding)
    chain.perform()


def wait(what: Callable[[], Found | None], seconds: float = 90) -> Found:
    """What the function returns once that is true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


class Shown:
    """The widget as it is on the screen."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, f".judgelib-annotation {selector}")

    def text(self, selector: str) -> str:
        """Exactly the text of the first element, also where it is not displayed."""
        script = "return document.querySelector('.judgelib-annotation ' + arguments[0]).textContent"
        return str(self.driver.execute_script(script, selector))

    def tokens(self) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, ".judgelib-annotation [role=option]")

    def focused(self) -> int | None:
        """Index of the token that has the focus."""
        found = self._tokens_where("token === document.activeElement")
        return found[0] if found else None

    def selected(self) -> list[int]:
        """Indices of the tokens that are selected."""
        return self._tokens_where("token.ariaSelected === 'true'")

    def _tokens_where(self, what: str) -> list[int]:
        tokens = "[...document.querySelectorAll('[role=option]')]"
        script = f"return {tokens}.flatMap((token, index) => {what} ? [index] : [])"
        return list(self.driver.execute_script(script))


MOUNT = """
const [source, style, page, done] = arguments;
document.title = 'bench';
document.body.replaceChildren();
document.head.append(Object.assign(document.createElement('style'), {textContent: style}));
const place = document.body.appendChild(document.createElement('div'));
const heard = [];
window.sent = [];
window.leaked = [];
window.addEventListener('keydown', (event) => window.leaked.push(event.key));
window.model = {
  get: (name) => window.pageNow,
  on: (name, call) => heard.push(call),
  off: (name, call) => heard.splice(heard.indexOf(call), 1),
  send: (message) => window.sent.push(message),
};
window.push = (page) => { window.pageNow = page; for (const call of heard) call(); };
window.pageNow = page;
const url = URL.createObjectURL(new Blob([source], {type: 'text/javascript'}));
import(url).then((module) => {
  window.close = module.default.render({model: window.model, el: place});
  document.querySelector('[role=option]').focus();
  done(true);
});
"""


class Bench(Shown):
    """The widget's own page and Python side, joined by hand: fast, and any answer can be late."""

    def __init__(self, driver: Chrome, annotator: Annotator) -> None:
        super().__init__(driver)
        self.annotator = annotator
        driver.get("data:text/html;charset=utf-8,<!doctype html><html lang=en><body></body></html>")
        source, style = ((ASSETS / f"widget.{kind}").read_text("utf-8") for kind in ("js", "css"))
        driver.execute_async_script(MOUNT, source, style, page(annotator))

    def press(self, *keys: str, holding: str = "") -> None:
        """Press keys and let Python answer each that sends something."""
        for key in keys:
            press(self.driver, key, holding=holding)
            if key not in QUIET:
                self.deliver()

    def deliver(self) -> list[Any]:
        """Give Python what was sent, and the browser each answer; the messages."""
        messages: list[Any] = self.driver.execute_script("return window.sent.splice(0)")
        self.push(*[answer(self.annotator, message) for message in messages])
        return messages

    def push(self, *pages: dict[str, Any]) -> None:
        if pages:
            self.driver.execute_script("arguments[0].forEach(window.push)", pages)


class Lab:
    """A JupyterLab server on loopback with its own home; `folder` is what it shows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.folder.mkdir(parents=True)
        self._home = folder / "home"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._log = open(folder / "lab.log", "wb")  # noqa: SIM115
        self._server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *self._options()],
            env=self._environment(),
            cwd=self.folder,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def _options(self) -> list[str]:
        return [
            "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--port={self.port}",
            "--ServerApp.port_retries=0", "--IdentityProvider.token=test",
            f"--ServerApp.root_dir={self.folder}", "--LabApp.news_url=",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            "--LabApp.extension_manager=readonly",
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        settings = self._home / "settings" / "@jupyterlab"
        (settings / "apputils-extension").mkdir(parents=True)
        news = settings / "apputils-extension" / "notification.jupyterlab-settings"
        news.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
        folders = {
            f"JUPYTER_{name}_DIR": str(self._home / name.lower())
            for name in ("CONFIG", "DATA", "RUNTIME")
        }
        own = {"HOME": str(self._home), "IPYTHONDIR": str(self._home / "ipython")}
        own["JUPYTERLAB_SETTINGS_DIR"] = str(self._home / "settings")
        own["PYTHONPATH"] = str(ASSETS.parents[1])
        return {**os.environ, **folders, **own}

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.terminate()  # which stops its kernels, too
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._log.close()

    def write(self, name: str, cells: Sequence[str]) -> str:
        """Write a notebook of code cells; its address when the server is up."""
        book = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
        book.cells = [
            nbformat.v4.new_code_cell(cell)  # type: ignore[no-untyped-call]
            for cell in cells
        ]
        book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(book, self.folder / name)  # type: ignore[no-untyped-call]
        wait(self._up, 60)
        return f"http://127.0.0.1:{self.port}/doc/tree/{name}?token=test"

    def ready(self, name: str) -> bool:
        """Whether a notebook's kernel waits for work and a browser is connected to it."""
        address = f"http://127.0.0.1:{self.port}/api/sessions?token=test"
        with urlopen(address, timeout=10) as reply:
            kernels = [entry["kernel"] for entry in json.load(reply) if entry["path"] == name]
        return any(k["execution_state"] == "idle" and k["connections"] for k in kernels)

    def _up(self) -> bool:
        assert self._server.poll() is None, Path(self._log.name).read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

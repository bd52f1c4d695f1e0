// The annotation widget. Python and the disk hold the state: `page` is what they say, and a decision
// is shown as saved only when a page answers its message. Text of models and of users is set as
// text nodes only and can never become markup.

const LATE = 5000; // milliseconds without an answer after which a decision counts as not saved

const ACTIONS = [
  { name: "error", keys: ["Enter", "x"], label: "First wrong token" },
  { name: "correct", keys: ["a"], label: "All correct" },
  { name: "unsure", keys: ["u"], label: "Unsure" },
  { name: "undo", keys: ["z", "Backspace"], label: "Undo" },
  { name: "previous", keys: ["p"], label: "Previous undecided" },
  { name: "next", keys: ["n"], label: "Next undecided" },
  { name: "help", keys: ["?"], label: "Keys" },
];

const HELP = [
  ["← →", "previous, next token"],
  ["↑ ↓", "line above, below"],
  ["Home End", "first, last token"],
  ["Shift + any of these", "extend the selection, if the mistake is several tokens long"],
  ["Enter or x", "the selected tokens are the first mistake"],
  ["a", "all tokens are correct"],
  ["u", "unsure: this answer will not be used"],
  ["z or Backspace", "undo the last decision, as often as you like"],
  ["n p", "next, previous undecided item"],
  ["Shift + n, Shift + p", "next, previous item, decided or not"],
  ["?", "show or hide these keys"],
  ["Esc", "close this list"],
  ["Mouse", "click a token, Shift + click to extend, then press a button"],
];

const NAMES = { " ": "space", "\n": "new line", "\t": "tab" };
const MARKS = { " ": "·", "\n": "↵", "\t": "→" };
const UNSEEN = /[\p{C}\p{Z}]/u; // controls, formats (bidi!), separators, lone surrogates

export default {
  render({ model, el }) {
    const desk = new Desk(model, el);
    return () => desk.close();
  },
};

class Desk {
  constructor(model, el) {
    this.model = model;
    this.turn = null; // of the page whose item is on display
    this.sent = null; // the last message
    this.waiting = false;
    this.build(el);
    this.listen();
    this.show();
  }

  build(el) {
    this.progress = make("progress", "", { "aria-label": "Items decided" });
    this.count = make("span", "count");
    this.domain = make("span", "domain");
    this.question = make("div", "text", { dir: "auto" });
    this.right = make("div", "text", { dir: "auto" });
    this.tokens = make("div", "text tokens", {
      role: "listbox",
      "aria-multiselectable": "true",
      "aria-label": "Answer under judgement, token by token",
      dir: "auto",
    });
    this.place = make("p", "place");
    this.verdict = make("p", "verdict");
    this.status = make("p", "status", { role: "status", "aria-live": "polite" });
    this.help = makeHelp();
    const head = make("div", "head", {}, [this.count, this.domain, this.progress]);
    const answers = make("div", "answers", {}, [
      section("A right answer", this.right),
      section("Answer under judgement", this.tokens, this.place, this.verdict),
    ]);
    this.root = make(
      "section",
      "judgelib-annotation",
      {
        "aria-label": "Find the first wrong token",
        // JupyterLab hears keys before the page does; this tells it to leave them alone.
        "data-lm-suppress-shortcuts": "true",
      },
      [head, section("Question", this.question), answers, this.toolbar(), this.status, this.help],
    );
    el.append(this.root);
  }

  toolbar() {
    const bar = make("div", "bar", { role: "toolbar", "aria-label": "Decisions" });
    for (const action of ACTIONS) {
      const key = make("kbd", "", {}, [action.keys[0]]);
      const button = make("button", "", { type: "button" }, [key, " ", action.label]);
      button.addEventListener("click", () => this.act(action.name, false));
      bar.append(button);
    }
    return bar;
  }

  listen() {
    this.update = () => this.show();
    this.model.on("change:page", this.update);
    this.root.addEventListener("keydown", (event) => this.press(event));
    for (const name of ["keypress", "keyup"]) {
      this.root.addEventListener(name, (event) => event.stopPropagation());
    }
    this.tokens.addEventListener("mousedown", (event) => {
      if (event.shiftKey) event.preventDefault(); // which would select text
    });
    this.tokens.addEventListener("click", (event) => {
      const token = event.target.closest("[role=option]");
      if (token) this.select(this.options.indexOf(token), event.shiftKey);
    });
  }

  close() {
    clearTimeout(this.timer);
    this.model.off("change:page", this.update);
    this.root.remove();
  }

  // What Python says

  show() {
    const page = this.model.get("page");
    const changed = page.turn !== this.turn;
    if (changed) this.showItem(page);
    if (page.reply && page.reply.id === this.sent?.id) this.settle(page, changed);
  }

  showItem(page) {
    const held = this.root.contains(document.activeElement);
    this.page = page;
    this.turn = page.turn;
    this.count.textContent = `Item ${page.position + 1} of ${page.total} · ${page.decided} decided`;
    this.domain.textContent = page.domain;
    this.progress.max = page.total;
    this.progress.value = page.decided;
    this.question.textContent = page.question;
    this.right.textContent = page.right;
    this.showTokens(page);
    const shown = page.undone ?? page.decision;
    this.anchor = shown?.start ?? 0;
    this.select(shown ? Math.max((shown.stop ?? 1) - 1, 0) : 0, true, held);
  }

  showTokens(page) {
    const { start, stop } = page.decision ?? {};
    this.options = page.tokens.map((text, index) => {
      const last = index === page.tokens.length - 1;
      const token = makeToken(text, last);
      token.classList.toggle("wrong", index >= start && index < stop);
      return token;
    });
    this.tokens.replaceChildren(...this.options);
    this.verdict.textContent = page.decision
      ? `You decided: ${describe(page.decision)}. A new decision replaces it.`
      : "";
  }

  settle({ reply, file, decided, total }, changed) {
    clearTimeout(this.timer);
    this.waiting = false;
    const { kind } = this.sent;
    const done = decided === total ? ` All ${total} items are decided.` : "";
    if (reply.problem) this.say("problem", `⚠ Not done: ${reply.problem}`);
    else if (kind === "decide") this.say("saved", `✓ Saved in ${file}: ${describe(this.sent)}.${done}`);
    else if (kind === "undo" && changed) this.say("saved", `✓ Undone, and saved in ${file}.`);
    else if (kind === "undo") this.say("", "There is nothing to undo.");
    else this.say("", changed ? "" : "There is no other item to go to.");
  }

  say(kind, text) {
    this.status.className = `status ${kind}`;
    this.status.textContent = text;
    this.root.setAttribute("aria-busy", String(kind === "waiting"));
  }

  // What the annotator does

  press(event) {
    event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const onButton = event.target.closest("button") && [" ", "Enter"].includes(event.key);
    if (onButton || (this.help.open && event.key !== "?")) return; // the browser knows these
    const target = this.goal(event.key);
    const action = ACTIONS.find(({ keys }) => keys.includes(plain(event.key)));
    if (target === undefined && !action) return;
    event.preventDefault();
    if (target !== undefined) this.select(target, event.shiftKey);
    else if (!event.repeat) this.act(action.name, event.shiftKey); // a key held down decides once
  }

  goal(key) {
    switch (key) {
      case "ArrowLeft":
        return this.cursor - 1;
      case "ArrowRight":
        return this.cursor + 1;
      case "ArrowUp":
        return this.lineBeside(-1);
      case "ArrowDown":
        return this.lineBeside(1);
      case "Home":
        return 0;
      case "End":
        return this.options.length - 1;
    }
  }

  // The token nearest to the cursor in the line above (-1) or below (1), by what is on the screen.
  lineBeside(way) {
    const spots = this.options.map(centre);
    const here = spots[this.cursor];
    const half = here.height / 2;
    const beyond = spots.filter(({ y }) => (y - here.y) * way > half);
    const line = way * Math.min(...beyond.map(({ y }) => y * way));
    const onLine = beyond.filter(({ y }) => Math.abs(y - line) <= half);
    const near = (best, spot) => (Math.abs(spot.x - here.x) < Math.abs(best.x - here.x) ? spot : best);
    return onLine.length ? spots.indexOf(onLine.reduce(near)) : this.cursor;
  }

  select(index, extend, focus = true) {
    this.cursor = Math.min(Math.max(index, 0), this.options.length - 1);
    if (!extend) this.anchor = this.cursor;
    const [start, stop] = this.span();
    this.options.forEach((token, i) => {
      token.tabIndex = i === this.cursor ? 0 : -1;
      token.setAttribute("aria-selected", String(i >= start && i < stop));
    });
    this.place.textContent = `${tokenNumbers(start, stop)} of ${this.options.length} selected`;
    if (focus) this.options[this.cursor].focus();
  }

  span() {
    return [Math.min(this.anchor, this.cursor), Math.max(this.anchor, this.cursor) + 1];
  }

  act(name, shift) {
    if (name === "help") return this.toggleHelp();
    if (this.waiting) return this.say("waiting", "… Still saving the last decision; wait for it.");
    const [start, stop] = this.span();
    if (name === "error") this.send({ kind: "decide", verdict: name, start, stop });
    else if (name === "undo") this.send({ kind: "undo" });
    else if (name === "next") this.send({ kind: "move", by: 1, undecided: !shift });
    else if (name === "previous") this.send({ kind: "move", by: -1, undecided: !shift });
    else this.send({ kind: "decide", verdict: name });
  }

  send(message) {
    this.sent = { ...message, id: `${Date.now()}-${Math.random()}`, turn: this.turn };
    this.waiting = true;
    this.say("waiting", "… Saving");
    this.timer = setTimeout(() => this.giveUp(), LATE);
    try {
      this.model.send(this.sent);
    } catch {
      this.giveUp();
    }
  }

  giveUp() {
    clearTimeout(this.timer);
    this.waiting = false;
    const advice = "Restart it and run this cell again; what was saved before is safe.";
    this.say("problem", `⚠ Not saved: the kernel does not answer. ${advice}`);
  }

  toggleHelp() {
    if (this.help.open) this.help.close();
    else this.help.showModal();
  }
}

// Elements

function make(tag, name, attributes = {}, children = []) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function section(title, ...children) {
  return make("div", "part", {}, [make("h3", "", {}, [title]), ...children]);
}

function makeHelp() {
  const rows = HELP.map(([keys, what]) =>
    make("tr", "", {}, [make("th", "", { scope: "row" }, [keys]), make("td", "", {}, [what])]),
  );
  const close = make("button", "", { type: "button" }, ["Close"]);
  const dialog = make("dialog", "", { "aria-label": "Keys" }, [
    make("h3", "", {}, ["Keys"]),
    make("table", "", {}, [make("tbody", "", {}, rows)]),
    close,
  ]);
  close.addEventListener("click", () => dialog.close());
  return dialog;
}

// One token; its textContent is the exact text, marks for what cannot be seen come from the style.
function makeToken(text, last) {
  const token = make("span", "token", { role: "option", "aria-label": spoken(text, last) });
  for (const part of text.match(/[^\p{C}\p{Z}]+|[\p{C}\p{Z}]/gu) ?? []) {
    token.append(UNSEEN.test(part) ? makeUnseen(part) : part);
  }
  token.classList.toggle("breaks", text.endsWith("\n"));
  if (!text) token.append(make("span", "empty", { "data-mark": last ? "■ end" : "…" }));
  return token;
}

function makeUnseen(character) {
  const kind = NAMES[character]?.replace(" ", "") ?? "other";
  const mark = MARKS[character] ?? codePoint(character);
  return make("span", kind, { "data-mark": mark }, [character]);
}

function spoken(text, last) {
  if (!text) return last ? "end of the answer" : "part of the next character";
  return text.replace(/[\p{C}\p{Z}]/gu, (character) => {
    return ` ${NAMES[character] ?? codePoint(character)} `;
  });
}

function codePoint(character) {
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

function tokenNumbers(start, stop) {
  return stop - start === 1 ? `Token ${stop}` : `Tokens ${start + 1} to ${stop}`;
}

function describe({ verdict, start, stop }) {
  if (verdict === "error") return `${tokenNumbers(start, stop).toLowerCase()} wrong`;
  return verdict === "correct" ? "all correct" : "unsure";
}

function centre(element) {
  const box = element.getClientRects()[0];
  return { x: (box.left + box.right) / 2, y: (box.top + box.bottom) / 2, height: box.height };
}

function plain(key) {
  return key.length === 1 ? key.toLowerCase() : key;
}

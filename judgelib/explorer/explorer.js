// The token explorer. Every text is set as a text node or as generated content and can never become
// markup; marks are drawn by the style, so that the text in the page stays exactly the text.
"use strict";

const NAMES = { " ": "space", "\n": "new line", "\t": "tab" };
const MARKS = { " ": "·", "\n": "↵", "\t": "→" };
const UNSEEN = /^[\p{C}\p{Z}]$/u; // controls, formats (bidi!), separators, lone surrogates
// What is seen together (joiners hold letters and emoji together), and single unseen characters.
const PARTS = /(?:[^\p{C}\p{Z}]|(?<=[^\p{C}\p{Z}])[\u200c\u200d](?=[^\p{C}\p{Z}]))+|[\p{C}\p{Z}]/gu;
const TURNS = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/; // explicit directions
const DECIDED = ["matched", "judged", "replaced"];
const THEMES = ["system", "light", "dark"];

const data = JSON.parse(document.getElementById("data").textContent);

class Panel {
  constructor(record, number, asked) {
    this.record = record;
    this.threshold = record.threshold;
    this.chosen = 0;
    this.reason = `reason-${number}`;
    const brief = record.tokens.some(({ target }) => target.length) ? "" : "brief";
    this.details = make("div", `details ${brief}`, { id: `details-${number}` });
    this.text = make("div", "text", { role: "listbox", "aria-label": `${record.title}: the answer` });
    this.flags = record.tokens.map(() => mark("flag", ""));
    this.options = record.tokens.map((token, place) => this.option(token, place));
    this.text.append(...this.options);
    const title = make("h2", "", { id: `title-${number}` }, [record.title]);
    this.root = make("section", "panel", { "aria-labelledby": title.id }, [
      make("div", "", {}, [title, ...asked]),
      make("p", "facts", {}, [facts(record)]),
      legend(record),
      this.dial(number),
      this.text,
      this.details,
    ]);
    this.listen();
    this.choose(this.firstOfInterest(), false);
    this.reapply();
  }

  // The text

  option(token, place) {
    const { record } = this;
    const option = make("span", `token ${token.origin}`, { role: "option" });
    const parts = written(token, place === record.tokens.length - 1);
    // Lines break behind a leading space: the marks go with the word.
    const lead = token.text?.[0] === " " && token.text.length > 1 ? parts.slice(0, 1) : [];
    option.append(...lead, ...this.marks(token, place, lead.length), ...parts.slice(lead.length));
    option.classList.toggle("turns", TURNS.test(token.text ?? ""));
    return option;
  }

  marks(token, place, spaced) {
    const { tokens, parts } = this.record;
    const marks = [this.flags[place]];
    if (place === parts) marks.unshift(mark("parts", "≠ texts part"));
    if (token.cycle && token.cycle !== tokens[place - 1]?.cycle) marks.push(mark("cycle", token.cycle));
    if (token.rejected) {
      const gone = token.rejected[0];
      marks.push(mark("gone", visible(spaced && gone.length > 1 ? gone.replace(/^ /, "") : gone)));
    }
    const sign = data.origins[token.origin].mark + (token.origin === "judged" ? hundredths(token) : "");
    return sign ? [...marks, mark("mark", sign)] : marks;
  }

  listen() {
    this.text.addEventListener("click", (event) => this.choose(this.at(event), true));
    this.text.addEventListener("mouseover", (event) => this.show(this.at(event)));
    this.text.addEventListener("mouseleave", () => this.show(this.chosen));
    this.text.addEventListener("keydown", (event) => this.press(event));
  }

  at(event) {
    const option = event.target.closest("[role=option]");
    return option ? this.options.indexOf(option) : this.chosen;
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const goal = this.goal(event.key);
    if (goal === undefined) return;
    event.preventDefault();
    this.choose(goal, true);
  }

  goal(key) {
    const last = this.options.length - 1;
    switch (key) {
      case "ArrowLeft":
        return Math.max(this.chosen - 1, 0);
      case "ArrowRight":
        return Math.min(this.chosen + 1, last);
      case "ArrowUp":
        return this.lineBeside(-1);
      case "ArrowDown":
        return this.lineBeside(1);
      case "Home":
        return 0;
      case "End":
        return last;
      case "n":
        return this.ofInterest(1);
      case "p":
        return this.ofInterest(-1);
    }
  }

  // The token nearest to the chosen one in the line above (-1) or below (1), as on the screen.
  lineBeside(way) {
    const spots = this.options.map(centre);
    const here = spots[this.chosen];
    const beyond = spots.filter(({ y }) => (y - here.y) * way > here.height / 2);
    const line = way * Math.min(...beyond.map(({ y }) => y * way));
    const onLine = beyond.filter(({ y }) => Math.abs(y - line) <= here.height / 2);
    const near = (best, spot) => (Math.abs(spot.x - here.x) < Math.abs(best.x - here.x) ? spot : best);
    return onLine.length ? spots.indexOf(onLine.reduce(near)) : this.chosen;
  }

  // The next token (1) or the one before (-1) that is not what both models would write.
  ofInterest(way) {
    const { tokens } = this.record;
    for (let place = this.chosen + way; tokens[place]; place += way) {
      if (!["matched", "acceptable", "ignored"].includes(tokens[place].origin)) return place;
    }
    return this.chosen;
  }

  firstOfInterest() {
    const wanted = ["judged", "replaced", "unacceptable"];
    return Math.max(0, this.record.tokens.findIndex(({ origin }) => wanted.includes(origin)));
  }

  choose(place, focus) {
    this.chosen = place;
    this.options.forEach((option, i) => {
      option.tabIndex = i === place ? 0 : -1;
      option.setAttribute("aria-selected", String(i === place));
      if (i === place) option.setAttribute("aria-describedby", this.reason);
      else option.removeAttribute("aria-describedby");
    });
    this.show(place);
    if (focus) this.options[place]?.focus();
  }

  // The details of one token

  show(place) {
    const token = this.record.tokens[place];
    if (!token) return;
    const { tokens } = this.record;
    const cycle = token.cycle ? ` · target call ${token.cycle}` : "";
    const judge = token.probability === undefined ? "" : ` · judge ${token.probability.toFixed(4)}`;
    const about = ` token ${place + 1} of ${tokens.length} · id ${token.id}${cycle}${judge} · `;
    const origin = `${data.origins[token.origin].mark} ${data.origins[token.origin].label}`.trim();
    this.details.replaceChildren(
      make("p", "", {}, [make("span", "name", {}, [quoted(token.name)]), about, make("b", "", {}, [origin])]),
      make("p", "reason", { id: this.reason }, [token.reason ?? ""]),
      ...this.behind(token),
      ...this.would(token),
      make("div", "models", {}, [
        alternatives("The target's likeliest", token.target, token, this.record),
        alternatives("The draft's likeliest", token.draft, token, this.record),
      ]),
    );
  }

  behind({ rejected }) {
    if (!rejected) return [];
    const name = make("span", "name", {}, [quoted(rejected[0])]);
    const rest = rejected[2] ? [", thrown away with what it had written behind it: ", make("span", "name", {}, [quoted(rejected[2])])] : [];
    return [make("p", "", {}, ["The draft had ", name, ...rest])];
  }

  would(token) {
    if (this.threshold === this.record.threshold || !flips(token, this.threshold)) return [];
    const at = `At the threshold ${this.threshold.toFixed(3)} `;
    const then =
      token.origin === "replaced"
        ? "the draft's token would have stayed."
        : "the draft's token would have been rejected.";
    return [make("p", "would", {}, [`⇄ ${at}${then}`])];
  }

  // Another threshold

  dial(number) {
    const { threshold } = this.record;
    if (threshold === null) return make("p", "hint", {}, this.record.cycles ? ["No judge was asked here."] : []);
    this.slider = make("input", "", {
      type: "range", min: "0", max: "1", step: "0.005", id: `threshold-${number}`,
    });
    this.slider.value = threshold;
    this.shown = make("output", "", { for: this.slider.id });
    this.said = make("p", "said", { role: "status" });
    const reset = make("button", "", { type: "button" }, ["As recorded"]);
    reset.addEventListener("click", () => this.turn(threshold, true));
    this.slider.addEventListener("input", () => this.turn(Number(this.slider.value), false));
    const label = make("label", "", { for: this.slider.id }, ["Try another threshold"]);
    return make("div", "dial", {}, [label, this.slider, this.shown, reset, this.said]);
  }

  turn(threshold, slide) {
    this.threshold = threshold;
    if (slide) this.slider.value = threshold;
    this.reapply();
  }

  reapply() {
    const { tokens } = this.record;
    const flipped = tokens.flatMap((token, i) => (flips(token, this.threshold) ? [i] : []));
    const first = flipped[0] ?? tokens.length;
    this.options.forEach((option, i) => {
      option.classList.toggle("flips", flipped.includes(i));
      option.classList.toggle("beyond", i > first);
      this.flags[i].dataset.mark = i === first ? flag(tokens[i]) : flipped.includes(i) ? "⇄" : "";
      option.setAttribute("aria-label", spoken(tokens[i], i === tokens.length - 1, flipped.includes(i), i > first));
    });
    if (this.slider) {
      this.shown.textContent = this.threshold.toFixed(3);
      this.slider.setAttribute("aria-valuetext", this.threshold.toFixed(3));
      this.said.textContent = this.verdict(flipped);
    }
    this.show(this.chosen);
  }

  verdict(flipped) {
    const { threshold, tokens } = this.record;
    if (this.threshold === threshold) {
      return threshold === 1
        ? "As recorded: at 1 the judge accepts nothing, which is strict verification."
        : "As recorded: the judge accepts what it finds likelier than this to be acceptable.";
    }
    if (!flipped.length) return "No recorded decision would be another one: the text stays as it is.";
    const many = flipped.length === 1 ? "1 recorded decision" : `${flipped.length} recorded decisions`;
    return (
      `⇄ ${many} would come out differently, the first at token ${flipped[0] + 1} of ${tokens.length}. ` +
      "Behind that the text would not be this one."
    );
  }
}

// The judge's decision, as Record.flips_at has it: compared in float32, as the rule compares.
function flips({ origin, least, most, probability }, threshold) {
  if (threshold === null || !DECIDED.includes(origin)) return false;
  const above = probability !== undefined && Math.fround(probability) > Math.fround(threshold);
  return (least || (most && above) || false) !== (origin !== "replaced");
}

// Where the draft's token is the target's own choice too, the other decision writes it as well.
function flag({ origin, id, rejected }) {
  const same = origin === "matched" || id === rejected?.[1];
  return `⇄ ${same ? "may" : "would"} differ from here`;
}

// Elements

function make(tag, name, attributes = {}, children = []) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function mark(name, text) {
  return make("span", name, { "data-mark": text, "aria-hidden": "true" });
}

function facts(record) {
  const { tokens, cycles, drafted, accepted, finish, parts } = record;
  const said = [`${tokens.length} tokens`];
  if (cycles) {
    said[0] += ` in ${cycles} target calls: ${(tokens.length / cycles).toFixed(1)} a call`;
    said.push(`${accepted} of ${drafted} drafted tokens kept`);
  } else said.push(record.rule);
  if (finish) said.push({ eos: "ended by itself", stop: "stopped", length: "cut off" }[finish]);
  if (parts !== null) said.push(`the same text up to token ${parts}`);
  return said.join(" · ");
}

function legend(record) {
  const chips = Object.entries(data.origins)
    .filter(([name]) => record.counts[name])
    .map(([name, { label, mark: sign }]) => {
      const count = make("b", "", {}, [String(record.counts[name])]);
      return make("li", `chip ${name}`, {}, [`${sign} ${label}`.trim(), count]);
    });
  return make("ul", "legend", { "aria-label": "Legend, with numbers of tokens" }, chips);
}

// The token's own text; what cannot be seen gets a mark.
function written(token, last) {
  const text = token.text ?? "";
  const parts = text.match(PARTS) ?? [];
  if (!text) return [mark("unseen", last && token.name.length > 1 && !token.name.startsWith("⟨") ? "■ end" : "…")];
  return parts.map((part) => (UNSEEN.test(part) ? unseen(part) : part));
}

function unseen(character) {
  const kind = NAMES[character]?.replace(" ", "") ?? "other";
  return make("span", `unseen ${kind}`, { "data-mark": MARKS[character] ?? codePoint(character) }, [character]);
}

function visible(text) {
  return text.replace(PARTS, (part) => (UNSEEN.test(part) ? (MARKS[part] ?? `[${codePoint(part)}]`) : part));
}

function quoted(text) {
  return `“${visible(text)}”`;
}

function codePoint(character) {
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

function hundredths({ probability }) {
  return probability === undefined ? "" : (Math.floor(probability * 100) / 100).toFixed(2).replace(/^0/, "");
}

function spoken(token, last, flipped, beyond) {
  const text = token.text || (last ? "end of the answer" : "part of a character");
  const name = (part) => (UNSEEN.test(part) && token.text ? ` ${NAMES[part] ?? codePoint(part)} ` : part);
  const read = text.replace(PARTS, name);
  const said = [read, data.origins[token.origin].label];
  if (token.probability !== undefined) said.push(`judge ${token.probability.toFixed(3)}`);
  if (flipped) said.push("would be decided otherwise");
  if (beyond) said.push("the text would differ from before here");
  return said.join(", ");
}

function alternatives(title, choices, token, record) {
  if (!choices?.length) return make("div");
  const rows = choices.map(([name, id, probability]) => {
    const share = make("div", "share");
    share.style.width = `${100 * probability}%`;
    const signs = [id === token.id ? "◀ written" : "", id === token.rejected?.[1] ? "◁ rejected" : ""];
    return make("tr", id === token.id ? "written" : "", {}, [
      make("th", "", { scope: "row" }, [visible(name)]),
      make("td", "bar", {}, [share]),
      make("td", "number", {}, [(100 * probability).toFixed(1) + "%"]),
      make("td", "", {}, [signs.join(" ").trim()]),
    ]);
  });
  const heat = record.temperature === 1 ? "" : `, at temperature ${record.temperature}`;
  return make("table", "", {}, [make("caption", "", {}, [title + heat]), make("tbody", "", {}, rows)]);
}

function centre(element) {
  const boxes = element.getClientRects();
  const box = boxes[boxes.length - 1];
  return { x: (box.left + box.right) / 2, y: (box.top + box.bottom) / 2, height: box.height };
}

// The page

function guide() {
  const used = Object.entries(data.origins).filter(([name]) => data.records.some((r) => r.counts[name]));
  const list = used.flatMap(([name, { label, mark: sign, meaning }]) => [
    make("dt", `chip ${name}`, {}, [`${sign} ${label}`.trim()]),
    make("dd", "", {}, [meaning]),
  ]);
  const lines = [
    "Point at a token, or go to a text with Tab and use ← → ↑ ↓ Home End: its history stands below the text. " +
      "n and p go to the next and the previous token of interest.",
  ];
  if (data.records.some(({ cycles }) => cycles)) {
    lines.push(
      "A bar with a small number begins each target call. A token that was rejected is struck through; the text " +
        "itself does not hold it.",
    );
  }
  if (data.records.some(({ threshold }) => threshold !== null)) {
    lines.push(
      "The slider asks of every recorded decision how it would come out at another threshold. From the first that " +
        "would change, the text itself would be another one, which only decoding again can tell.",
    );
  }
  return make("details", "guide", {}, [
    make("summary", "", {}, ["How to read this"]),
    ...lines.map((line) => make("p", "", {}, [line])),
    make("dl", "", {}, list),
  ]);
}

function themes() {
  const button = make("button", "", { type: "button" });
  let now = 0;
  const name = () => (button.textContent = `Theme: ${THEMES[now]}`);
  button.addEventListener("click", () => {
    now = (now + 1) % THEMES.length;
    if (now) document.documentElement.dataset.theme = THEMES[now];
    else delete document.documentElement.dataset.theme;
    name();
  });
  name();
  return button;
}

const prompts = [...new Set(data.records.map(({ prompt }) => prompt))];
const asked = (prompt) => make("div", "prompt", {}, [prompt]);
const own = prompts.length > 1; // else the one prompt stands above all
const panels = data.records.map((record, n) => new Panel(record, n, own ? [asked(record.prompt)] : []));
document.body.append(
  make("header", "", {}, [make("h1", "", {}, [data.title]), themes()]),
  ...(own ? [] : prompts.map(asked)),
  panels.length ? guide() : make("p", "hint", {}, ["There is nothing to show."]),
  make("main", "panels", {}, panels.map(({ root }) => root)),
);

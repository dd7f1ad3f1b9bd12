// A pane: an answer as it streams in, token by token, its counters, and what went wrong.

import { element, named, push, signed } from "./?tokens.js";

const ARROWS = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"]);

export class Answer {
  // `inspect(answer, index)` opens a token; `follow(answer, index)`: the focus came to it.
  constructor(section, { inspect, follow }) {
    this.title = section.querySelector("h2").textContent;
    this.steps = [];
    this.alpha = 0;
    this._section = section;
    this._text = section.querySelector(".text");
    this._inspect = inspect;
    this._text.addEventListener("keydown", (event) => this._key(event));
    this._text.addEventListener("click", (event) => this._clicked(event));
    this._text.addEventListener("focusin", (event) => {
      this._tabStop(event.target);
      follow(this, this._index(event.target));
    });
    this._count();
  }

  begin(alpha) {
    this.alpha = alpha;
    this.steps = [];
    this._usage = null;
    this._outOfBudget = false;
    this._began = performance.now();
    this._seconds = 0;
    this._bytes = new TextDecoder();
    this._text.replaceChildren();
    this._say(".problem", "");
    this._say(".spoken", "");
    this._say(".strength-tag", `α = ${alpha === 0 ? "0" : alpha.toFixed(1)}`);
    this._section.dataset.state = "running";
    this._count();
  }

  add(event) {
    const choice = event.choices[0];
    for (const step of choice?.steering?.steps ?? []) this._token(step);
    this._outOfBudget ||= choice?.steering?.finish === "budget";
    if (event.usage) this._usage = event.usage.upstream;
    this._seconds = (performance.now() - this._began) / 1000;
    this._count();
  }

  // `state` is done, stopped or failed; `message` says what went wrong.
  end(state, message = "") {
    this._section.dataset.state = state;
    const budget = "A cap on calls or money is reached; nothing more was asked.";
    this._say(".problem", this._outOfBudget ? budget : message);
    this._count();
    const how = state === "done" ? "" : ", not complete";
    this._say(".spoken", `${this.title}${how}: ${this._text.innerText}`);
  }

  focus(index) {
    this._text.children[index]?.focus();
  }

  mark(index) {
    for (const token of this._text.children) token.classList.remove("open");
    this._text.children[index]?.classList.add("open");
  }

  _token(step) {
    const token = element("span", "token");
    const shift = this.alpha * step.offset;
    token.setAttribute("role", "button");
    token.tabIndex = this.steps.length ? -1 : 0;
    token.dataset.push = push(shift);
    if (step.rank !== 0) token.dataset.changed = "";
    this._write(token, step);
    const changed = step.rank === 0 ? "" : ", not the hosted model's first choice";
    token.setAttribute("aria-label", `${named(step.token)}, ${signed(shift)} nats${changed}`);
    this.steps.push(step);
    this._text.append(token);
  }

  _write(token, step) {
    if (step.bytes === null) {
      token.classList.add("special");
      token.append(step.token === "<|end|>" ? "end" : step.token);
      return;
    }
    const text = this._bytes.decode(new Uint8Array(step.bytes), { stream: true });
    const [, space, rest] = text.match(/^( *)([^]*)$/);
    const word = element("span", "word"); // apart from the space, which may end a line
    for (const [at, line] of rest.split("\n").entries()) {
      if (at) word.append(element("span", "return", "↵"), "\n");
      word.append(line);
    }
    if (!text) word.append(element("span", "return", "·")); // a character still open
    token.append(space, word);
  }

  _count() {
    const usage = this._usage, tokens = this.steps.length;
    const changed = this.steps.filter((step) => step.rank !== 0).length;
    const cached = this.steps.filter((step) => step.source === "cache").length;
    const list = this._section.querySelector(".counters");
    const counters = [
      ["tokens", tokens || "–"],
      ["changed", this.alpha && tokens ? changed : "–"],
      ["upstream calls", usage ? usage.calls : "–"],
      ["calls a token", usage && tokens ? (usage.calls / tokens).toFixed(2) : "–"],
      ["billed tokens", usage ? usage.prompt_tokens + usage.completion_tokens : "–"],
      ["cost", usage?.cost == null ? "–" : money(usage)],
      ["from cache", tokens ? cached : "–"],
      ["time", this._seconds ? `${this._seconds.toFixed(2)} s` : "–"],
    ];
    list.replaceChildren(
      ...counters.map(([name, value]) => {
        const pair = element("div");
        pair.append(element("dt", "", name), element("dd", "", value));
        return pair;
      }),
    );
  }

  _say(selector, text) {
    this._section.querySelector(selector).textContent = text;
  }

  _index(target) {
    return [...this._text.children].indexOf(target.closest(".token"));
  }

  _tabStop(target) {
    for (const token of this._text.children) token.tabIndex = token === target ? 0 : -1;
  }

  _clicked(event) {
    const index = this._index(event.target);
    if (index < 0) return;
    this.focus(index);
    this._inspect(this, index);
  }

  _key(event) {
    const index = this._index(event.target);
    if (event.key === "Enter" || event.key === " ") this._inspect(this, index);
    else if (ARROWS.has(event.key)) this.focus(this._neighbour(event.key, index));
    else return;
    event.preventDefault();
  }

  _neighbour(key, index) {
    const last = this._text.children.length - 1;
    if (key === "Home") return 0;
    if (key === "End") return last;
    if (key === "ArrowLeft") return Math.max(0, index - 1);
    if (key === "ArrowRight") return Math.min(last, index + 1);
    return this._beyond(key === "ArrowUp" ? -1 : 1, index);
  }

  // The nearest token of the line above (-1) or below (1); the same one where there is none.
  _beyond(direction, index) {
    const boxes = [...this._text.children].map((token) => token.getBoundingClientRect());
    const here = boxes[index];
    const other = boxes.filter((box) => direction * (box.top - here.top) > here.height / 2);
    if (!other.length) return index;
    const line = Math.min(...other.map((box) => direction * box.top)) * direction;
    const near = other.filter((box) => Math.abs(box.top - line) < here.height / 2);
    const distance = (box) => Math.abs(box.left + box.right - here.left - here.right);
    return boxes.indexOf(near.reduce((a, b) => (distance(b) < distance(a) ? b : a)));
  }
}

function money(usage) {
  return `${usage.estimated ? "≈ " : ""}${Number(usage.cost.toPrecision(2))}`;
}

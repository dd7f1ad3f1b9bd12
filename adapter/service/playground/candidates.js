// The panel of one token: every candidate's probability before and after steering.

import { element, named, push, share, signed } from "./?tokens.js";

const FAINT = 0.001; // candidates below that before and after are folded away

export class Candidates {
  constructor(section) {
    this._section = section;
    this._more = section.querySelector(".more");
    this._more.addEventListener("click", () => this._unfold());
  }

  get open() {
    return !this._section.hidden;
  }

  close() {
    this._section.hidden = true;
  }

  show(step, { number, title, alpha }) {
    const heading = this._section.querySelector("h2");
    heading.replaceChildren(
      `${title}, token ${number} `,
      element("code", "", named(step.token)),
    );
    this._section.querySelector(".facts").replaceChildren(...facts(step, alpha));
    this._section.querySelector("tbody").replaceChildren(...rows(step, alpha));
    const faint = this._section.querySelectorAll(".faint").length;
    this._more.textContent = `Show ${faint} more, each below 0.1 %`;
    this._more.hidden = !faint;
    this._section.hidden = false;
  }

  _unfold() {
    for (const row of this._section.querySelectorAll(".faint")) row.hidden = false;
    this._more.hidden = true;
  }
}

function facts(step, alpha) {
  const rank = step.rank === null ? "not shown by it" : `its choice no. ${step.rank + 1}`;
  const told = [
    ["offset Δ", `${signed(step.offset)} nats`],
    ["pushed by α·Δ", `${signed(alpha * step.offset)} nats`],
    ["hosted model", rank],
    ["status", step.status],
    ["source", step.source],
    ["flags", step.flags.join(", ") || "none"],
  ];
  return told.map(([name, value]) => {
    const item = element("li");
    item.append(element("span", "", name), " ", element("b", "", value));
    return item;
  });
}

function rows(step, alpha) {
  const same = (one) => one.token === step.token && String(one.bytes) === String(step.bytes);
  const shown = step.candidates.some(same) ? step.candidates : [step, ...step.candidates];
  const before = shown.map((one) => Math.exp(one.upstream_logprob));
  const after = shown.map((one) => Math.exp(one.logprob));
  const first = before.indexOf(Math.max(...before));
  const made = shown.map((one, at) => {
    const marks = [same(one) ? "taken" : "", at === first ? "hosted first" : ""].filter(Boolean);
    const made = row(named(one.token), [before[at], after[at]], one.offset, { marks, alpha });
    made.hidden = !marks.length && Math.max(before[at], after[at]) < FAINT;
    if (made.hidden) made.classList.add("faint");
    return made;
  });
  const rest = [before, after].map((all) => Math.max(0, 1 - all.reduce((a, b) => a + b, 0)));
  return [...made, row("all others", rest, null, { marks: [], alpha })];
}

function row(name, [before, after], offset, { marks, alpha }) {
  const made = element("tr", offset === null ? "others" : "");
  if (marks.includes("taken")) made.classList.add("taken");
  const head = element("th", "candidate");
  head.scope = "row";
  head.append(element("code", "", name), ...marks.map((mark) => element("small", "", mark)));
  const bars = element("td", "bars");
  bars.setAttribute("aria-hidden", "true");
  bars.append(bar("before", before), bar("after", after));
  const moved = element("td", "number");
  if (offset !== null) {
    const chip = element("span", "sample", signed(offset));
    chip.dataset.push = push(alpha * offset);
    moved.append(chip);
  }
  made.append(
    head,
    bars,
    element("td", "number", share(before)),
    element("td", "number after", share(after)),
    moved,
  );
  return made;
}

function bar(kind, p) {
  const made = element("div", `bar ${kind}`);
  const filled = element("i");
  filled.style.width = `${100 * p}%`;
  made.append(filled);
  return made;
}

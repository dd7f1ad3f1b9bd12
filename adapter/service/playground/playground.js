// The page: reads the form, asks twice at once (α = 0 and the chosen one), stops, opens tokens.

import { Answer } from "./?answer.js";
import { Candidates } from "./?candidates.js";
import { Refusal, ask, models } from "./?stream.js";

const $ = (id) => document.getElementById(id);
const KEY = "adapter-key";
const callbacks = { inspect, follow };
const upstream = new Answer($("upstream"), callbacks);
const steered = new Answer($("steered"), callbacks);
const candidates = new Candidates($("candidates"));
let opened = null; // { answer, index } of the panel
let running = null; // the AbortController of the run

function state(text, failed = false) {
  $("state").textContent = text;
  $("state").classList.toggle("failed", failed);
}

// --- models and key

async function loadModels() {
  const list = $("model"), chosen = list.value || wanted.get("model");
  try {
    const names = await models($("key").value);
    list.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
    state("");
  } catch (error) {
    list.replaceChildren(new Option("none", ""));
    const key = error.status === 401;
    state(key ? "This service wants an API key: enter one above." : error.message, !key);
    if (key) $("key").focus();
  }
}

function keepKey() {
  sessionStorage.setItem(KEY, $("key").value);
  loadModels();
}

// --- a run

function body(alpha, seed) {
  const temperature = Number($("temperature").value);
  const lookahead = $("lookahead").value;
  return {
    model: $("model").value,
    ...(chat() ? { messages: messages() } : { prompt: $("prompt").value }),
    max_tokens: Number($("tokens").value),
    temperature,
    ...(temperature > 0 ? { seed } : {}), // one seed for both: what differs is steering
    stream: true,
    stream_options: { include_usage: true },
    steering: {
      alpha,
      lookahead: /^\d+$/.test(lookahead) ? Number(lookahead) : lookahead,
      trace: "candidates",
    },
  };
}

function messages() {
  const system = $("system").value.trim();
  const user = { role: "user", content: $("prompt").value };
  return system ? [{ role: "system", content: system }, user] : [user];
}

function chat() {
  return $("ask").elements.mode.value === "chat";
}

async function run() {
  if (running || !$("ask").reportValidity()) return;
  closePanel();
  running = new AbortController();
  const seed = crypto.getRandomValues(new Uint32Array(1))[0];
  busy(true);
  if (matchMedia("(max-width: 46rem)").matches) $("answers").scrollIntoView();
  state("Both are being asked …");
  const told = await Promise.all([
    fill(upstream, 0, seed, running.signal),
    fill(steered, Number($("alpha").value), seed, running.signal),
  ]);
  running = null;
  busy(false);
  const worst = ["failed", "stopped", "done"].find((how) => told.includes(how));
  const words = {
    done: "Done. Open a token to see its candidates.",
    stopped: "Stopped: nothing more is asked of the hosted model.",
    failed: "An answer is not complete; what went wrong stands below it. Run to try again.",
  };
  state(words[worst], worst === "failed");
}

async function fill(answer, alpha, seed, signal) {
  answer.begin(alpha);
  try {
    const path = chat() ? "v1/chat/completions" : "v1/completions";
    const events = ask(path, body(alpha, seed), $("key").value, signal);
    for await (const event of events) answer.add(event);
    answer.end("done");
    return "done";
  } catch (error) {
    if (signal.aborted) {
      answer.end("stopped");
      return "stopped";
    }
    if (!(error instanceof Refusal)) console.error(error);
    answer.end("failed", error instanceof Refusal ? error.message : "The page met an error.");
    return "failed";
  }
}

function busy(yes) {
  $("run").disabled = yes;
  $("stop").disabled = !yes;
  if (yes && document.activeElement === document.body) $("stop").focus();
}

function stop() {
  running?.abort();
}

// --- the panel of one token

function inspect(answer, index) {
  opened?.answer.mark(-1);
  opened = { answer, index };
  answer.mark(index);
  const place = { number: index + 1, title: answer.title, alpha: answer.alpha };
  candidates.show(answer.steps[index], place);
  $("candidates").scrollIntoView({ block: "nearest" });
}

function follow(answer, index) {
  if (candidates.open && index >= 0) inspect(answer, index);
}

function closePanel() {
  if (!opened) return;
  const { answer, index } = opened;
  opened = null;
  candidates.close();
  answer.mark(-1);
  answer.focus(index);
}

// --- wiring

const wanted = new URLSearchParams(location.hash.slice(1));

function prefill() {
  for (const id of ["prompt", "system", "alpha", "lookahead", "temperature", "tokens"]) {
    if (wanted.has(id)) $(id).value = wanted.get(id);
  }
  if (wanted.has("mode")) $("ask").elements.mode.value = wanted.get("mode");
  $("key").value = sessionStorage.getItem(KEY) ?? "";
  showAlpha();
  showMode();
}

function showAlpha() {
  $("alpha-value").textContent = Number($("alpha").value).toFixed(1);
}

function showMode() {
  $("system-field").hidden = !chat();
  $("prompt").placeholder = chat() ? "Your message" : "Text for the model to go on with";
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
$("ask").addEventListener("change", showMode);
$("alpha").addEventListener("input", showAlpha);
$("key").addEventListener("change", keepKey);
$("stop").addEventListener("click", stop);
$("close").addEventListener("click", closePanel);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (candidates.open) closePanel();
    else stop();
  } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    run();
  }
});

prefill();
loadModels();

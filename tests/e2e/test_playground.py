"""The playground in a real Chromium: asked, read, driven by keys, failed at, stopped, attacked."""

import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest

from adapter.adapter import Adapter
from adapter.demo.almanac import questions
from adapter.demo.engine import Engine, EngineOptions
from adapter.demo.stage import STEERED, WEIGHTS, settings_for
from adapter.service.app import create_app
from adapter.service.playground import POLICY
from adapter.settings import Settings
from tests.support.configured import settings_for as tiny_settings
from tests.support.scripted import Reply, classic, events, scripted
from tests.support.scripted_adapter import HANG, HELLO, ScriptedAdapter, alternative, ending, step
from tests.support.sockets import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
]
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]
WAIT = 30_000
DONE = "#{}[data-state=done]"


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as runner:
        running = runner.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield running
        running.close()


@pytest.fixture
def open_page(browser):
    """Opens pages; afterwards none of them has asked elsewhere, met an error or broken its policy.

    A page may be refused what the test has it ask for: `page.expected` are parts of such messages.
    """
    contexts, pages = [], []

    def opened(address: str, **options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 860}} | options))
        context.set_default_timeout(WAIT)
        contexts.append(context)
        page = context.new_page()
        page.asked, page.said, page.expected = [], [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.said.append((message.type, message.text)))
        page.on("pageerror", lambda error: page.said.append(("error", str(error))))
        page.address = address
        pages.append(page)
        page.goto(f"{address}/")
        return page

    yield opened
    for page in pages:
        elsewhere = [u for u in page.asked if not u.startswith((f"{page.address}/", "data:"))]
        assert elsewhere == []
        errors = [text for kind, text in page.said if kind in ("error", "warning")]
        assert [e for e in errors if not any(part in e for part in page.expected)] == []
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def almanac() -> Iterator[str]:
    """The address of a service in front of the demo's models, with prices."""
    with Engine(WEIGHTS / "hosted.gguf", EngineOptions(alias="hosted", threads=1)) as engine:
        given = settings_for(engine.base_url)
        for model in given["models"].values():
            model["upstream"]["price"] = {"input": 0.5, "output": 1.5}
        settings = Settings.model_validate(given)
        with serving(create_app(Adapter.from_settings(settings), settings)) as address:
            yield address


@pytest.fixture
def scripted_service():
    """Starts a service in front of a scripted adapter; gives its address."""
    settings = tiny_settings("http://127.0.0.1:9/v1")
    stops = []

    def started(adapter: ScriptedAdapter) -> str:
        running = serving(create_app(adapter, settings))
        stops.append(running)
        return running.__enter__()

    yield started
    for running in stops:
        running.__exit__(None, None, None)


def loaded(page) -> None:
    playwright.expect(page.locator("#model")).not_to_have_value("", timeout=WAIT)


def ask(page, prompt: str, **fields: str) -> None:
    loaded(page)
    page.fill("#prompt", prompt)
    for name, value in fields.items():
        target = page.locator(f"#{name}")
        if target.evaluate("e => e.tagName") == "SELECT":
            target.select_option(value)
        else:
            target.fill(value)
    page.click("#run")


def finished(page) -> None:
    page.wait_for_selector(DONE.format("upstream"))
    page.wait_for_selector(DONE.format("steered"))
    playwright.expect(page.locator("#run")).to_be_enabled()


def counters(page, pane: str) -> dict[str, str]:
    names, values = (page.locator(f"#{pane} {tag}").all_inner_texts() for tag in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def percent(text: str) -> float:
    return float(text.removesuffix(" %").removeprefix("< "))


def test_a_question_gives_tinted_tokens_and_candidates_to_read(almanac, open_page):
    question = questions()[0][0]
    body = {"model": STEERED, "prompt": question.prompt, "max_tokens": 16, "temperature": 0}
    traced = body | {"steering": {"trace": "candidates"}}
    told = httpx.post(f"{almanac}/v1/completions", json=traced, timeout=60).json()
    steps = told["choices"][0]["steering"]["steps"]
    changed = [number for number, one in enumerate(steps) if one["rank"] != 0]
    assert changed  # else the question shows nothing

    page = open_page(almanac)
    ask(page, question.prompt, tokens="16")
    finished(page)
    tokens = page.locator("#steered .token")
    texts = tokens.evaluate_all("all => all.map((one) => one.textContent)")
    assert texts == ["end" if one["bytes"] is None else one["token"] for one in steps]
    marked = tokens.evaluate_all("all => all.map((one) => 'changed' in one.dataset)")
    assert [number for number, mark in enumerate(marked) if mark] == changed
    pushes = tokens.evaluate_all("all => all.map((one) => Number(one.dataset.push))")
    assert all(p * one["offset"] >= 0 for p, one in zip(pushes, steps, strict=True))
    assert max(map(abs, pushes)) >= 3
    looks = tokens.evaluate_all("all => all.map((one) => getComputedStyle(one).backgroundColor)")
    lines = tokens.evaluate_all("all => all.map((one) => getComputedStyle(one).textDecorationLine)")
    for push, look, line in zip(pushes, looks, lines, strict=True):
        assert (line == "underline") == (push != 0)
        assert look == looks[pushes.index(push)]
    assert len(set(looks)) == len(set(pushes))
    assert set(
        page.locator("#upstream .token").evaluate_all("a => a.map(o => o.dataset.push)")
    ) == {"0"}

    tokens.nth(changed[0]).click()
    one = steps[changed[0]]
    assert one["status"] in page.inner_text("#candidates .facts")
    rows = page.locator("#candidates tbody tr:not([hidden])")
    shares = [
        [percent(cell) for cell in row.locator("td.number").all_inner_texts()[:2]]
        for row in rows.all()
    ]
    assert sum(before for before, _ in shares) == pytest.approx(100, abs=2)
    assert sum(after for _, after in shares) == pytest.approx(100, abs=2)
    taken = page.locator("#candidates tr.taken")
    before, after = (percent(c) for c in taken.locator("td.number").all_inner_texts()[:2])
    assert after > before
    widths = taken.locator(".bar i").evaluate_all("all => all.map((bar) => bar.style.width)")
    assert [float(w.removesuffix("%")) for w in widths] == pytest.approx([before, after], abs=0.1)
    assert f"{one['offset']:+.2f}".replace("-", "−") in taken.inner_text()
    folded = page.locator("#candidates tbody tr[hidden]").count()
    page.click("#candidates .more")
    assert page.locator("#candidates tbody tr[hidden]").count() == 0
    assert folded + rows.count() >= len(one["candidates"])

    seen = counters(page, "steered")
    assert seen["tokens"] == str(len(steps))
    assert seen["changed"] == str(len(changed))
    assert seen["from cache"] == str(len(steps))  # the same question was asked above
    assert (seen["upstream calls"], seen["calls a token"]) == ("0", "0.00")
    ask(page, question.prompt + " It is", tokens="4")
    finished(page)
    seen = counters(page, "steered")
    assert int(seen["upstream calls"]) > 0
    assert float(seen["cost"].removeprefix("≈ ")) > 0


def focused(page, condition: str, key: str = "Tab", most: int = 20) -> None:
    """Press a key until the focused element fulfils a condition."""
    for _ in range(most):
        page.keyboard.press(key)
        if page.evaluate(f"(() => {{ const e = document.activeElement; return {condition}; }})()"):
            return
    raise AssertionError(f"{key} never came to {condition}")


def test_the_keyboard_is_enough(almanac, open_page):
    page = open_page(almanac)
    loaded(page)
    focused(page, "e.id === 'prompt'")
    page.keyboard.type(questions()[0][1].prompt)
    focused(page, "e.id === 'alpha'")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#alpha-value") == "1.1"
    focused(page, "e.id === 'tokens'")
    page.keyboard.press("Control+a")
    page.keyboard.type("8")
    focused(page, "e.id === 'run'")
    page.keyboard.press("Enter")
    finished(page)
    assert "1.1" in page.inner_text("#steered .strength-tag")
    playwright.expect(page.locator("#steered .spoken")).to_contain_text("Steered: ")
    focused(page, "e.closest('#steered') && e.matches('.token')")
    page.keyboard.press("End")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert "token 2" in page.inner_text("#candidates-title")
    page.keyboard.press("ArrowRight")  # the open panel follows
    assert "token 3" in page.inner_text("#candidates-title")
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"
    page.keyboard.press("Escape")
    assert page.locator("#candidates").is_hidden()
    here = "[...document.querySelectorAll('#steered .token')].indexOf(document.activeElement)"
    assert page.evaluate(here) == 2
    page.keyboard.press("Control+Enter")
    finished(page)


def test_an_upstream_that_fails_in_mid_stream_is_told_and_recovered_from(open_page):
    one = classic({"token_id:50": -0.1}, text="x", finish=None)
    with scripted(events(one, done=False)) as upstream:
        settings = tiny_settings(upstream.base_url)
        with serving(create_app(Adapter.from_settings(settings), settings)) as address:
            page = open_page(address)
            ask(page, "The harbour", tokens="4", lookahead="stream")
            page.wait_for_selector("#upstream[data-state=failed]")
            page.wait_for_selector("#steered[data-state=failed]")
            assert page.locator("#steered .token").count() == 1  # what came stays
            for pane in ("upstream", "steered"):
                problem = page.locator(f"#{pane} .problem")
                assert "no connection to the upstream" in problem.inner_text()
                assert problem.get_attribute("role") == "alert"
            playwright.expect(page.locator("#state")).to_contain_text("not complete")
            assert page.locator("#run").is_enabled()

            upstream.replies = [Reply(body=classic({"token_id:50": -0.1}))]
            ask(page, "The harbour master", tokens="1", lookahead="1")
            finished(page)
            assert page.inner_text("#steered .problem") == ""
            assert page.locator("#steered .token").count() == 1


def test_a_refusal_before_the_stream_is_told(almanac, open_page):
    page = open_page(almanac)
    page.expected = ["status of 400"]
    page.check("input[value=chat]", force=True)
    ask(page, "Who is it?")
    page.wait_for_selector("#steered[data-state=failed]")
    assert "chat template" in page.inner_text("#steered .problem")


def test_stop_hangs_up(scripted_service, open_page):
    adapter = ScriptedAdapter(script=(step("Hi"), HANG))
    page = open_page(scripted_service(adapter))
    ask(page, "p")
    page.wait_for_selector("#steered .token")
    page.click("#stop")
    page.wait_for_selector("#steered[data-state=stopped]")
    assert adapter.cancelled.wait(WAIT / 1000)
    playwright.expect(page.locator("#state")).to_contain_text("Stopped")
    adapter.script = HELLO
    ask(page, "p")
    finished(page)


def test_a_budget_that_ended_an_answer_is_told(scripted_service, open_page):
    script = (step("Hi"), ending("length", out_of_budget=True))
    page = open_page(scripted_service(ScriptedAdapter(script=script)))
    ask(page, "p")
    finished(page)
    assert "cap on calls or money" in page.inner_text("#steered .problem")


def test_text_of_models_is_never_markup(scripted_service, open_page):
    bad = "<img src=x onerror=\"document.title='owned'\"></script><style>*{display:none}</style>"
    script = (step(bad, shown=(alternative(bad, -0.5),), rank=1), ending())
    page = open_page(scripted_service(ScriptedAdapter(script=script)))
    ask(page, bad)
    finished(page)
    assert page.locator("#steered .token").text_content() == bad
    page.locator("#steered .token").click()
    assert page.locator("#candidates tbody code").first.text_content() == bad.replace(" ", "␣")
    assert page.locator("img, body style, body script").count() == 0
    assert page.title() == "adapter · playground"
    page.expected = ["TrustedHTML"]
    with pytest.raises(playwright.Error, match="TrustedHTML"):
        page.evaluate("text => { document.body.innerHTML = text; }", bad)


def test_the_policy_holds(scripted_service, open_page):
    address = scripted_service(ScriptedAdapter())
    names = ["", "?playground.js", "?playground.css", "?stream.js", "?answer.js"]
    names += ["?candidates.js", "?tokens.js"]
    for name in names:
        got = httpx.get(f"{address}/{name}")
        assert got.status_code == 200
        assert got.headers["content-security-policy"] == POLICY
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["referrer-policy"] == "no-referrer"
    missing = [
        httpx.get(f"{address}/{n}").status_code for n in ("?__init__.py", "?../app.py", "?x")
    ]
    assert missing == [404, 404, 404]
    page = open_page(address)
    loaded(page)
    page.expected = ["Content Security Policy", "TrustedScript"]
    with scripted(Reply()) as elsewhere:
        with pytest.raises(playwright.Error):
            page.evaluate("url => fetch(url)", elsewhere.base_url)
        image = "url => document.body.append(Object.assign(new Image(), { src: url }))"
        page.evaluate(image, elsewhere.base_url)
        page.wait_for_timeout(200)
        assert elsewhere.connections == 0
    assert all("Content Security Policy" in text for kind, text in page.said if kind == "error")
    page.asked = [url for url in page.asked if not url.startswith(elsewhere.address)]


def test_a_key_is_asked_for_sent_and_kept_in_the_tab_only(scripted_service, open_page):
    seen = SimpleNamespace(keys=[])
    page = open_page(scripted_service(ScriptedAdapter()))
    loaded(page)

    def guarded(route):
        seen.keys.append(route.request.headers.get("authorization"))
        if seen.keys[-1] == "Bearer sk-one":
            return route.continue_()
        return route.fulfill(status=401, json={"error": {"message": "this API key is not known"}})

    page.route("**/v1/**", guarded)
    page.expected = ["status of 401"]
    page.reload()
    playwright.expect(page.locator("#state")).to_contain_text("API key")
    assert page.evaluate("document.activeElement.id") == "key"
    page.fill("#key", "sk-one")
    page.keyboard.press("Tab")
    loaded(page)
    ask(page, "p")
    finished(page)
    assert seen.keys[0] is None
    assert set(seen.keys[1:]) == {"Bearer sk-one"}
    assert page.evaluate("Object.values(sessionStorage)") == ["sk-one"]
    assert page.evaluate("localStorage.length + document.cookie.length") == 0


CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const light = (colour, ground) => {
    canvas.fillStyle = ground;
    canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const rgb = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255);
    const [r, g, b] = rgb.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const pane = document.querySelector(".pane");
  const card = getComputedStyle(pane).backgroundColor;
  return [...document.querySelectorAll(".scale i")].map((swatch) => {
    const tint = light(getComputedStyle(swatch).backgroundColor, card);
    const ink = light(getComputedStyle(pane).color, card);
    return (Math.max(tint, ink) + 0.05) / (Math.min(tint, ink) + 0.05);
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone_in_both_themes(almanac, open_page, scheme):
    page = open_page(
        almanac,
        viewport={"width": 360, "height": 740},
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    ask(page, questions()[0][0].prompt, tokens="16")
    assert page.evaluate("document.getAnimations().length") == 0
    finished(page)
    page.locator("#steered .token").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    contrasts = page.evaluate(CONTRAST)
    assert len(contrasts) == 9
    assert min(contrasts) >= 4.5

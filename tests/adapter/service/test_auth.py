"""Keys in front of every route (F1, F2)."""

import hashlib
import itertools
import json
import random
from collections.abc import Iterator

import httpx
import openai
import pytest
from starlette.routing import Route

from adapter.service.app import create_app
from adapter.service.auth import OPEN
from tests.support.keys import KEY, OTHER, bearer, key_settings, status_of
from tests.support.scripted_adapter import ScriptedAdapter
from tests.support.sockets import serving

BODY = {"model": "m", "prompt": "p"}
RAW = json.dumps(BODY).encode()
JSON = (b"content-type", b"application/json")
RIGHT = (b"authorization", b"Bearer " + KEY.encode())
SEED = 7


@pytest.fixture(scope="module")
def guarded(settings):
    return settings.model_copy(update={"keys": (key_settings("one", KEY, tenant="t"),)})


@pytest.fixture(scope="module")
def adapter() -> ScriptedAdapter:
    return ScriptedAdapter()


@pytest.fixture(scope="module")
def app(adapter, guarded):
    return create_app(adapter, guarded)


@pytest.fixture(scope="module")
def address(app) -> Iterator[str]:
    with serving(app) as address:
        yield address


def routes(app) -> list[tuple[str, str]]:
    """Every method and path of the app that needs a key: a new route is covered by itself."""
    assert all(isinstance(route, Route) for route in app.routes)
    found = [route for route in app.routes if route.path not in OPEN]
    return [(m, r.path.replace("{name:path}", "m")) for r in found for m in r.methods]


def targets(path: str) -> list[str]:
    """Ways to write a path that some server or other takes for it, or for an open one."""
    return [
        path,
        f"/{path}",
        f"{path}/",
        f"{path}/.",
        f"{path}%2e",
        f"{path}.",
        f"/./{path.removeprefix('/')}",
        f"/healthz/..{path}",
        f"/healthz{path}",
        f"/healthz;{path}",
        f"/readyz%2f..{path}",
        f"/%2e%2e{path}",
        f"/..{path}",
        path.upper(),
        path.replace("v1", "%76%31"),
        f"{path}?x=/healthz",
        f"{path}?",
        f"{path}%00",
        f"{path}%3f/healthz",
        f"http://127.0.0.1{path}",
        f"/healthz%20{path}",
    ]


HOSTS: list[list[bytes]] = [
    [b"127.0.0.1"], [b"x/?"], [b"x/#"], [b"x/healthz?"], [b"x"], [b"evil:80/healthz#"],
    [b"a", b"b"], [],
]  # fmt: skip

DIGEST = hashlib.sha256(KEY.encode()).hexdigest().encode()
WRONG: list[list[tuple[bytes, bytes]]] = [
    [],
    *(
        [(b"authorization", value)]
        for value in (
            b"", b"Bearer", b"Bearer ", b"Bearer none", b"Bearer " + OTHER.encode(), KEY.encode(),
            b"Basic " + KEY.encode(), b"Bearer " + KEY.encode()[:-1], b"Bearer " + DIGEST,
            b"Bearer " + KEY.encode() + b"x", b"Bearer " + KEY.encode() + b" x",
            b"Bearer " + KEY.upper().encode(), b"Bearer \xff\xfe", b"Bearer *", b"Bearer null",
            b"Bearer Bearer " + KEY.encode(), b'Bearer "' + KEY.encode() + b'"',
        )
    ),
    [RIGHT, (b"authorization", b"Bearer none")],
    [RIGHT, RIGHT],
    [(b"x-api-key", KEY.encode())],
    [(b"proxy-authorization", b"Bearer " + KEY.encode())],
    [(b"cookie", b"authorization=Bearer " + KEY.encode())],
    [(b"x-original-url", b"/healthz"), (b"x-forwarded-prefix", b"/healthz")],
]  # fmt: skip


def attempts(app) -> list[tuple[str, bytes, list[tuple[bytes, bytes]]]]:
    """Method, target and headers of requests without a right key."""
    made = []
    for (method, path), hosts, wrong in itertools.product(routes(app), HOSTS, WRONG):
        headers = [(b"host", host) for host in hosts] + wrong + [JSON]
        for target, verb in itertools.product(targets(path), (method, "HEAD", "OPTIONS")):
            made.append((verb, target.encode(), headers))
    return made


def passed(address: str, tries) -> list:
    """The attempts that were answered as asked."""
    return [t for t in tries if 200 <= (status_of(address, *t, RAW) or 400) < 300]


@pytest.mark.parametrize("count", [1_000, pytest.param(20_000, marks=pytest.mark.full)])
def test_nothing_answers_without_a_key(app, address, adapter, settings, count):
    """F1: routes of the app, written in many ways, with hostile hosts and other keys."""
    every = attempts(app)
    tries = random.Random(SEED).sample(every, count)
    assert len(every) > 20_000
    adapter.asked.clear()
    assert passed(address, tries) == []
    assert adapter.asked == []
    with serving(create_app(ScriptedAdapter(), settings)) as unguarded:
        assert len(passed(unguarded, tries[:1_000])) > 20, "requests no route answers show nothing"


def test_every_route_answers_with_a_key(app, address):
    for method, path in routes(app):
        status = status_of(address, method, path.encode(), [(b"host", b"x"), RIGHT, JSON], RAW)
        assert status not in (None, 401, 404, 405), path


@pytest.mark.parametrize("path", sorted(OPEN))
def test_health_needs_no_key(address, path):
    assert httpx.get(address + path).status_code != 401


@pytest.mark.parametrize("root", ["", "/healthz", "/", "/v1", "/x"])
@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_behind_another_root_or_protocol_nothing_answers_either(app, root, kind):
    """F1: what no client can choose, but a server in front can."""
    for _, path in routes(app):
        for full in (path, root + path):
            sent = []

            async def send(message, sent=sent):
                sent.append(message)

            async def receive():
                return {"type": "http.request", "body": RAW}

            scope = {
                "type": kind, "method": "POST", "path": full, "raw_path": full.encode(),
                "root_path": root, "query_string": b"", "headers": [JSON], "http_version": "1.1",
                "scheme": "http", "server": ("x", 80), "client": ("x", 1),
                "extensions": {"websocket.http.response": {}}, "subprotocols": [],
            }  # fmt: skip
            await app(scope, receive, send)
            assert sent[0].get("status") == 401, sent


def test_a_refusal_is_in_the_official_shape(address):
    response = httpx.post(f"{address}/v1/completions", json=BODY)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"], error["param"]) == (
        401,
        "invalid_api_key",
        "invalid_request_error",
        None,
    )
    assert response.headers["x-request-id"]
    with openai.OpenAI(base_url=f"{address}/v1", api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            client.models.list()
        assert "wrong" not in raised.value.message


def test_the_official_client_comes_in_with_its_key(address, adapter):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY) as client:
        assert client.completions.create(**BODY).choices[0].text == "Hi there"
        assert client.models.retrieve("m").id == "m"
    assert adapter.asked[-1].tenant == "t"


@pytest.mark.parametrize("spelling", ["Bearer {}", "bearer {}", "BEARER   {}"])
def test_the_scheme_may_be_written_in_any_case(address, spelling):
    headers = {"authorization": spelling.format(KEY)}
    assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 200


def test_every_key_is_known_by_its_own_name(settings):
    names = [f"name {i}" for i in range(5)]
    keys = tuple(key_settings(name, KEY + name.split()[1]) for name in names)
    adapter = ScriptedAdapter()
    with serving(create_app(adapter, settings.model_copy(update={"keys": keys}))) as address:
        for name in names:
            response = httpx.post(
                f"{address}/v1/completions", json=BODY, headers=bearer(KEY + name.split()[1])
            )
            assert response.status_code == 200
        assert httpx.get(f"{address}/v1/models", headers=bearer(KEY)).status_code == 401
    assert [asked.tenant for asked in adapter.asked] == names


def test_keys_are_nowhere_to_be_seen(address, guarded, caplog):
    with caplog.at_level("DEBUG"):
        httpx.post(f"{address}/v1/completions", json=BODY, headers=bearer(KEY))
        answer = httpx.post(f"{address}/v1/completions", json=BODY, headers=bearer(KEY + "x"))
    shown = answer.text + caplog.text + repr(guarded) + str(answer.headers)
    for secret in (KEY, DIGEST.decode()):
        assert not any(secret[at : at + 8] in shown for at in range(len(secret) - 7))


NAMES = [
    b"authorization", b"host", b"content-type", b"content-encoding", b"cache-control", b"accept",
    b"accept-encoding", b"expect", b"cookie", b"forwarded", b"x-forwarded-for", b"x-request-id",
    b"transfer-encoding", b"connection", b"upgrade", b"te", b"range", b"origin", b"x-stainless-os",
    b"x-should-retry", b"traceparent", b"if-none-match", b"content-length",
]  # fmt: skip


def hostile(luck: random.Random, large: bool) -> list[tuple[bytes, bytes]]:
    """A few headers of any bytes, empty, doubled, broken by line ends, or of up to 1 MB."""
    kinds = [
        lambda: b"",
        lambda: luck.randbytes(luck.randrange(1, 60)),
        lambda: bytes(luck.randrange(128, 256) for _ in range(20)),
        lambda: "ключ\u2028é".encode(),
        lambda: b"a\r\nx-injected: 1",
        lambda: b"a\r\n\r\nGET /v1/models HTTP/1.1",
        lambda: b"a\nb\x00c\x7f",
        lambda: b"," * 500,
        lambda: b"Bearer " + luck.randbytes(30),
        lambda: RIGHT[1] + b"\xff",
        lambda: b"-1",
        lambda: b"99999999999999999999999",
        lambda: b"chunked, gzip;q=" + b"9" * 50,
    ]
    made = [(luck.choice(NAMES), luck.choice(kinds)()) for _ in range(luck.randrange(1, 4))]
    if large:
        made.append((luck.choice(NAMES), b"x" * luck.choice([2**14, 2**16, 2**20])))
    if luck.random() < 0.3:
        made.append((luck.randbytes(8), b"x"))
    return made


def test_hostile_headers_are_refused(address):
    """F2: 1,000 requests with and without a right key; 0 5xx."""
    luck = random.Random(SEED)
    counts: dict[int | None, int] = {}
    for number in range(1_000):
        headers = hostile(luck, large=number % 10 == 0)
        if number % 2:
            headers = [RIGHT, JSON, (b"host", b"x"), *headers]
        status = status_of(address, "POST", b"/v1/completions", headers, RAW)
        counts[status] = counts.get(status, 0) + 1
    assert not [status for status in counts if status is not None and status >= 500], counts
    assert counts[400] > 100
    assert counts[401] > 20
    assert counts.get(None, 0) < 100  # a reset can overtake the answer
    assert httpx.get(f"{address}/v1/models", headers=bearer(KEY)).status_code == 200

"""Every route there is, tried as somebody would who wants a file of the server's, over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

import httpx
import pytest
import uvicorn
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import BaseRoute, Route
from starlette.staticfiles import StaticFiles

import nemo_steerlm.serving
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.serving.app import create_app
from nemo_steerlm.serving.bodies import BodyRoute
from nemo_steerlm.serving.generate import ALLOWED_KEYS
from nemo_steerlm.serving.schemas import AttributesBody, ChatBody, CompletionBody
from nemo_steerlm.serving.server import bind
from nemo_steerlm.serving.service import Service, Settings
from nemo_steerlm.serving.startup import local_model
from tests.serving.servers import WAIT

CANARY = "the canary sings in the mine"
STATIC = Path(nemo_steerlm.serving.__file__).parent / "page" / "static"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
FORMERLY = (
    "/page/gradio_api/file",
    "/page/gradio_api/queue/join",
    "/page/gradio_api/call/answer",
    "/page/run/predict",
    "/page/upload",
    "/static",
)
"""Where the page's files were once served from, and where others serve theirs."""


class App(NamedTuple):
    app: object
    url: str


@contextlib.contextmanager
def listening(service: Service, *mounted: tuple[str, object]) -> Iterator[App]:
    """The app as ``steerlm serve`` has it, in a thread of this process, so that its routes can be asked for."""
    app = create_app(service, page=True)
    for path, other in mounted:
        app.mount(path, other)
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield App(app, f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


class KeptService(Service):
    """Leaves its models to the next app."""

    def close(self) -> None:
        """See Service."""


@pytest.fixture(scope="module")
def models(steer_folder, value_folder):
    models = [local_model(folder, EngineOptions(max_rows=4, device="cpu"), max_waiting=64) for folder in (steer_folder, value_folder)]
    yield models
    for model in models:
        model.close()


def service(models, **settings) -> Service:
    made = KeptService(models[0], Settings(**settings))
    made.reader = KeptService(models[1], Settings(name="reader"))
    return made


@pytest.fixture(scope="module")
def open_app(models):
    with listening(service(models)) as app:
        yield app


@pytest.fixture(scope="module")
def locked_app(models):
    with listening(service(models, api_key="sesame")) as app:
        yield app


@pytest.fixture(scope="module")
def canary(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "canary.txt"
    path.write_text(CANARY)
    return path


def leaves(routes: list[BaseRoute], prefix: str = "") -> Iterator[tuple[str, BaseRoute]]:
    """Every route with its whole path, those of mounted apps and included routers too."""
    for route in routes:
        path = prefix + getattr(route, "path", "")
        # A mounted app has its own routes, an included router is kept whole.
        inner = [getattr(route, "app", None), getattr(route, "original_router", None)]
        below = next((one.routes for one in inner if hasattr(one, "routes")), None)
        if below is None:
            yield path, route
        else:
            yield from leaves(below, path + getattr(getattr(route, "include_context", None), "prefix", ""))


def spellings(canary: Path) -> list[str]:
    """Names of the canary, and of a host that is not this one, as paths."""
    relative = [os.path.relpath(canary, start) for start in (STATIC, Path.cwd())]
    deep = "../" * 20 + str(canary).lstrip("/")
    names = [str(canary), *relative, deep, deep.replace("../", "....//"), f"file://{canary}"]
    encoded = [quote(name, safe="") for name in (str(canary), deep)]
    dotted = deep.replace("..", "%2e%2e")
    twice = quote(quote(deep, safe=""), safe="")
    return [
        *names,
        *encoded,
        dotted,
        twice,
        deep.replace("/", "\\"),
        f"{canary}%00.js",
        "http://evil.example/",
        "/evil.example/",
        "\\evil.example",
    ]


def bodies(canary: Path) -> list[tuple[str, bytes]]:
    """Bodies that name the canary where a file could be meant, with their types."""
    data = {"path": str(canary), "url": f"file://{canary}", "meta": {"_type": "gradio.FileData"}}
    everywhere = {
        "data": [data], "fn_index": 0, "session_hash": "s", "messages": [{"role": "user", "content": data}], "prompt": data,
        "attributes": data, "conversations": [{"conversations": [data], "system": data, "mask": data}], "sentences": [data],
    }  # fmt: skip
    part = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{canary}"\r\n\r\nx\r\n--b--\r\n'
    return [
        ("application/json", json.dumps(everywhere).encode()),
        ("application/json", json.dumps(data).encode()),
        ("application/x-www-form-urlencoded", f"key={quote(str(canary))}&path={quote(str(canary))}".encode()),
        ("multipart/form-data; boundary=b", part.encode()),
    ]


def attempts(app: App, canary: Path) -> Iterator[tuple[str, str, str, bytes]]:
    """Method, path, content type and body of every request worth trying."""
    paths = [*{path: None for path, _ in leaves(app.app.routes)}, *FORMERLY]
    names = spellings(canary)
    for path in paths:
        plain = path.replace("{name:path}", "x")
        for name in names:
            target = path.replace("{name:path}", name) if "{" in path else f"{plain.rstrip('/')}/{name}"
            yield "GET", target, "", b""
            yield "GET", f"{plain}?path={quote(name)}&file={quote(name)}&url={quote(name)}&next={quote(name)}", "", b""
        for method in METHODS:
            for kind, body in bodies(canary):
                yield method, plain, kind, body
    for method in ("GET", "POST"):
        yield from ((method, f"/{name}", "", b"") for name in names)


def broken_into(app: App, canary: Path, headers: dict[str, str]) -> list[str]:
    """The requests that got more than they should: the canary, a redirect to elsewhere, or the server to fail."""
    found = []
    host = urlsplit(app.url).netloc
    connection = http.client.HTTPConnection(host, timeout=WAIT)
    for method, path, kind, body in attempts(app, canary):
        connection.request(method, path, body or None, headers | ({"Content-Type": kind} if kind else {}))  # as it is: no path is tidied
        answer = connection.getresponse()
        text = answer.read()
        location = answer.getheader("Location")
        elsewhere = location is not None and urlsplit(urljoin(app.url + path, location.replace("\\", "/"))).netloc != host
        if CANARY.encode() in text or b"root:x:0" in text or elsewhere or answer.status >= 500:
            found.append(f"{method} {path} {kind}: {answer.status} {location or ''} {text[:80]!r}")
    connection.close()
    return found


def test_no_route_gives_a_file_away_fails_or_leads_elsewhere(open_app, locked_app, canary):
    paths = {path for path, _ in leaves(open_app.app.routes)}
    assert {"/", "/page/", "/page/page.css", "/v1/chat/completions", "/generate", "/docs", "/v1/models/{name:path}"} <= paths
    assert broken_into(open_app, canary, {}) == []
    assert broken_into(locked_app, canary, {}) == []
    assert broken_into(locked_app, canary, {"Authorization": "Bearer sesame"}) == []


FIELDS = sorted({*ChatBody.model_fields, *CompletionBody.model_fields, *AttributesBody.model_fields, *ALLOWED_KEYS, "key", "data", "path"})
USER = {"role": "user", "content": "Hi", "from": "User", "value": "Hi"}
LIKELY = (
    USER, [USER], [{"conversations": [USER], "system": "", "mask": ""}], "Hi", ["Hi"], {"quality": 1}, {"5": 1.0}, "none",
    0, 1, 2, -1, 0.5, 10**20, True, None, "", [], {}, [[5]], "\x00", "../../etc/passwd", "file:///etc/passwd",
)  # fmt: skip
VALUES = st.sampled_from(LIKELY) | st.recursive(
    st.sampled_from(LIKELY) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
SHORT = {"/v1/completions": {"max_tokens": 2}, "/v1/chat/completions": {"max_tokens": 2}, "/generate": {"tokens_to_generate": 2}}
NEEDED = {"/v1/completions": "prompt", "/v1/chat/completions": "messages", "/v1/attributes": "messages", "/generate": "sentences"}
"""Without it a body is refused before anything else in it is looked at."""


@settings(max_examples=40, suppress_health_check=list(HealthCheck), database=None)
@given(draw=st.data())
def test_whatever_is_sent_to_any_route_is_answered_and_no_server_fails(open_app, canary, draw):
    """Every route of the app at each turn, as it is mounted and not as its document says: an upgrade's new ones too."""
    connection = http.client.HTTPConnection(urlsplit(open_app.url).netloc, timeout=WAIT)
    for path, route in leaves(open_app.app.routes):
        fields = draw.draw(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), VALUES, max_size=4))
        if path in NEEDED and draw.draw(st.booleans()):
            fields = {NEEDED[path]: draw.draw(st.sampled_from(LIKELY[:5]))} | fields
        whole = json.dumps(fields | SHORT.get(path, {})).encode()
        body = draw.draw(st.just(whole) | st.binary(max_size=40) | st.integers(0, len(whole)).map(lambda end, whole=whole: whole[:end]))
        tail = draw.draw(st.sampled_from(["", "", "/", "?a=%00&key=1", "%2e%2e/", f"/..{canary}"]))
        method = draw.draw(st.sampled_from([*(route.methods or ()), *METHODS]))
        kind = draw.draw(st.sampled_from(["application/json", "application/json", "text/plain", "multipart/form-data", ""]))
        connection.request(method, path.replace("{name:path}", "steerlm") + tail, body, {"Content-Type": kind} if kind else {})
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status < 500, (method, path, tail, body, said)
        assert CANARY.encode() not in said
    connection.close()


def test_what_serves_files_is_found_out(models, canary):
    with listening(service(models), ("/assets", StaticFiles(directory="/"))) as app:
        assert not_a_function(app.app.routes) == ["/assets"]
        assert [line for line in broken_into(app, canary, {}) if CANARY in line]


def not_a_function(routes: list[BaseRoute]) -> list[str]:
    """Paths of the routes that are no function of ours: mounted apps, files, sockets."""
    return [path for path, route in leaves(routes) if type(route) not in (Route, APIRoute, BodyRoute)]


def test_nothing_is_mounted_and_no_module_serves_files(open_app):
    assert not_a_function(open_app.app.routes) == []
    for path, route in leaves(open_app.app.routes):
        assert route.endpoint.__module__.startswith(("nemo_steerlm.", "fastapi.applications")), f"{path} is answered by {route.endpoint}"
        assert "{" not in path or path == "/v1/models/{name:path}", f"{path} takes part of a path: keep it from the disk"
    for file in Path(nemo_steerlm.serving.__file__).parent.rglob("*.py"):
        found = [name for name in ("StaticFiles", "FileResponse", "UploadFile", "mount(") if name in file.read_text()]
        assert not found, f"{file.name} has {found}: the page's files are a list in page/routes.py"


def test_the_pages_files_are_those_of_its_folder(open_app):
    with httpx.Client(base_url=open_app.url) as client:
        for file in STATIC.iterdir():
            answer = client.get(f"/page/{file.name}")
            if file.suffix == ".html":
                assert answer.status_code == 404
            else:
                assert (answer.status_code, answer.content) == (200, file.read_bytes()), f"{file.name} is not in the list of page/routes.py"
        index = client.get("/", follow_redirects=True)
        assert index.content == (STATIC / "index.html").read_bytes()
        policy = index.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert client.head("/page/").headers["content-security-policy"] == policy
        assert client.get("/page/main.js").headers["content-type"].startswith("text/javascript")


def test_without_the_token_there_is_a_form_and_nothing_of_the_model(locked_app):
    with httpx.Client(base_url=locked_app.url) as client:
        opened = set()
        for path, route in leaves(locked_app.app.routes):
            for method in route.methods - {"HEAD"}:
                if client.request(method, path).status_code != 401:
                    opened.add(path)
        files = {f"/page/{file.name}" for file in STATIC.iterdir() if file.suffix != ".html"}
        assert opened == {"/", "/page", "/health/live", "/health/ready", *files}
        form = client.get("/page/")
        assert (form.status_code, form.content) == (401, (STATIC / "login.html").read_bytes())


def _logged_in(app: App) -> dict[str, str]:
    answer = httpx.post(f"{app.url}/page/key", data={"key": "sesame"}, headers={"Origin": app.url}, timeout=WAIT)
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "sesame" not in cookie
    return {"Cookie": cookie.partition(";")[0]}


CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


@pytest.mark.parametrize(
    ("said", "reads", "asks"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 200, 200),
        ({"Sec-Fetch-Site": "none"}, 200, 200),
        ({"Sec-Fetch-Site": "same-site"}, 401, 401),
        ({"Sec-Fetch-Site": "cross-site"}, 401, 401),
        ({}, 200, 401),
        ({"Origin": "SELF"}, 200, 200),
        ({"Origin": "http://127.0.0.1:1"}, 401, 401),
        ({"Origin": "null"}, 401, 401),
    ],
)
def test_the_cookie_is_worth_the_token_to_this_servers_own_pages_only(locked_app, said, reads, asks):
    said = {name: locked_app.url if value == "SELF" else value for name, value in said.items()}
    with httpx.Client(base_url=locked_app.url, headers=_logged_in(locked_app) | said) as client:
        for path in ("/page/", "/docs", "/openapi.json", "/metrics", "/v1/models"):
            assert client.get(path).status_code == reads, path
        assert client.post("/v1/chat/completions", json=CHAT).status_code == asks
        assert client.post("/v1/attributes", json={"messages": [{"role": "assistant", "content": "Hi"}]}).status_code == asks
        assert client.put("/generate", json={"sentences": ["a"], "tokens_to_generate": 1}).status_code == asks


def test_what_is_not_the_token_opens_nothing(locked_app):
    with httpx.Client(base_url=locked_app.url) as client:
        for body in (b"key=wrong", b"", b"key=", b"key=%ff%fe", b"&" * 100, b"key=sesame\x00", b"\xff", b"key[]=sesame"):
            refused = client.post("/page/key", content=body)
            assert refused.status_code == 401
            assert "set-cookie" not in refused.headers
        assert b"This is not the server's token." in refused.content
        assert b"hidden" not in refused.content
        assert client.post("/page/key", data={"key": "sesame"}, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 401
        assert client.post("/page/key", content=b"key=sesame&" + b"x" * 10_000).status_code == 413
        for cookie in ("steerlm_0=1", _logged_in(locked_app)["Cookie"][:-1], "a=b; =;;", '"', "\xff"):
            assert client.get("/metrics", headers={"Cookie": cookie.encode("latin-1")}).status_code == 401

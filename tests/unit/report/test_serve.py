"""The live server over real sockets: who gets in, and that a page hears of what a run does."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

pytest.importorskip("uvicorn", reason="needs the serve extra")
pytest.importorskip("starlette", reason="needs the serve extra")

from fedsdr.errors import RunError
from fedsdr.report import gate as patience
from fedsdr.report.gate import Server, listen, loopback
from growing_runs import add, finish, round_row, under_way


@dataclass(frozen=True)
class Site:
    folder: Path
    server: Server
    client: httpx.Client  # with the cookie

    @property
    def base(self) -> str:
        return self.server.address.partition("/?")[0]

    @property
    def port(self) -> int:
        return int(self.base.rpartition(":")[2])

    @property
    def token(self) -> str:
        return parse_qs(urlsplit(self.server.address).query)["token"][0]

    def ids(self) -> dict[str, str]:
        """Name -> id, read off the page."""
        page = self.client.get("/").text
        found = re.findall(r'<a href="/run/([0-9a-f]{16})"><bdi>([^<]*)</bdi>', page)
        return {name: id for id, name in found}

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.client.get(path, headers=headers)

    def raw(self, method: str, target: str, headers: dict[str, str]) -> tuple[int, bytes]:
        """As it stands: no library cleans the target or the headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, target, skip_host=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()

    def cookie(self) -> dict[str, str]:
        return {"Host": f"127.0.0.1:{self.port}", "Cookie": f"fedsdr-{self.port}={self.token}"}


@contextmanager
def serving(folder: Path, include_texts: bool = False) -> Generator[Site]:
    folder.mkdir(exist_ok=True)
    server = listen(folder, "127.0.0.1", 0, include_texts)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with httpx.Client(base_url=server.address.partition("/?")[0], timeout=60) as client:
            assert client.get(server.address).status_code == 303
            yield Site(folder, server, client)
    finally:
        server.stop()
        thread.join(timeout=60)
        assert not thread.is_alive()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    under_way(tmp_path / "runs" / "first", 2)
    (tmp_path / "secret.txt").write_text("top secret")
    with serving(tmp_path / "runs") as found:
        yield found


def test_the_token_is_traded_for_a_cookie_and_leaves_the_address(site: Site) -> None:
    answer = httpx.get(site.server.address)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "domain" not in cookie
    assert len(site.token) >= 43  # 256 bits


@pytest.mark.parametrize("path", ["/", "/run/0", "/compare", "/events", "/nothing", "/?token="])
def test_without_the_token_every_address_answers_the_same(site: Site, path: str) -> None:
    answer = httpx.get(site.base + path)
    assert answer.status_code == 403
    assert answer.text == httpx.get(site.base + "/").text
    assert "first" not in answer.text


def test_a_wrong_token_is_refused_even_with_the_right_cookie(site: Site) -> None:
    for wrong in ("x", site.token[:-1], site.token + "x", site.token.swapcase(), "é", ""):
        assert site.client.get("/", params={"token": wrong}).status_code == 403
        bad = {"Host": f"127.0.0.1:{site.port}", "Cookie": f"fedsdr-{site.port}={wrong!a}"}
        assert site.raw("GET", "/", bad)[0] == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"])
def test_only_reading_is_answered(site: Site, method: str) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in site.folder.rglob("*"))
    for path in ("/", f"/run/{site.ids()['first']}", "/compare", "/events"):
        answer = site.client.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, HEAD"
    assert sorted((p, p.stat().st_mtime_ns) for p in site.folder.rglob("*")) == before


def test_head_ends(site: Site) -> None:
    for path in ("/", "/events"):
        answer = site.client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:{port}",
            "0.0.0.0:{port}",
        ),
        *(
            "[::ffff:127.0.0.1]",
            "127.0.0.1@evil.example",
            "evil.example:127.0.0.1",
            "",
            "127.0.0.1:x",
        ),
    ],
)
def test_a_name_that_was_made_to_point_here_is_refused(site: Site, host: str) -> None:
    headers = {**site.cookie(), "Host": host.format(port=site.port)}
    status, body = site.raw("GET", f"/?token={site.token}", headers)
    assert status in (400, 403)
    assert b"first" not in body
    assert site.raw("GET", "/", headers)[0] in (400, 403)


def test_names_of_this_machine_are_answered(site: Site) -> None:
    for host in ("127.0.0.1", f"localhost:{site.port}", "[::1]:9999"):  # a forwarded port differs
        assert site.raw("GET", "/", {**site.cookie(), "Host": host})[0] == 200


def test_no_host_at_all_is_refused(site: Site) -> None:
    headers = {k: v for k, v in site.cookie().items() if k != "Host"}
    assert site.raw("GET", "/", headers)[0] in (400, 403)


@pytest.mark.parametrize(
    "target",
    [
        "/run/..",
        "/run/../../secret.txt",
        "/run/..%2f..%2fsecret.txt",
        "/run/%2e%2e/%2e%2e/secret.txt",
        "/run/..%5c..%5csecret.txt",
        "/run//etc/passwd",
        "/run/first",
        "/run/first/run.json",
        "/run/%00",
        "/run/",
        "/secret.txt",
        "/../secret.txt",
        "//etc/passwd",
        "/static/../../secret.txt",
        "/compare?run=../secret.txt",
        "/compare?run=/etc/passwd",
        "/compare?run=first",
        "/compare?run=%2e%2e%2fsecret.txt&run=x",
    ],
)
def test_no_address_is_a_path(site: Site, target: str) -> None:
    status, body = site.raw("GET", target, site.cookie())
    assert status == 404
    assert b"secret" not in body.lower()
    assert b"root:" not in body
    assert str(site.folder.parent).encode() not in body


def test_every_answer_is_guarded(site: Site) -> None:
    seen = {
        "page": site.get("/"),
        "run": site.get(f"/run/{site.ids()['first']}"),
        "not there": site.get("/nothing"),
        "refused": httpx.get(site.base),
        "token": httpx.get(site.server.address),
        "changed": site.client.post("/"),
        "events": site.client.head("/events"),
    }
    for what, answer in seen.items():
        headers = answer.headers
        assert headers["cache-control"] == "no-store", what
        assert headers["x-content-type-options"] == "nosniff", what
        assert headers["referrer-policy"] == "no-referrer", what
        assert "default-src 'none'" in headers["content-security-policy"], what
        assert "frame-ancestors 'none'" in headers["content-security-policy"], what
        assert "server" not in headers, what
        assert "access-control-allow-origin" not in headers, what


def test_the_pages_policy_allows_its_own_script_and_server_only(site: Site) -> None:
    policy = site.get(f"/run/{site.ids()['first']}").headers["content-security-policy"]
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["connect-src"] == "'self'"
    assert "unsafe" not in policy
    assert all(source.startswith("'sha256-") for source in parts["script-src"].split())


def test_the_report_shows_the_run(site: Site) -> None:
    answer = site.get(f"/run/{site.ids()['first']}")
    assert answer.status_code == 200
    assert 'data-live="/events?run=' in answer.text
    assert "under way" in answer.text or "running" in answer.text


def test_runs_are_compared(site: Site) -> None:
    finish(under_way(site.folder / "second", 4))
    ids = site.ids()
    assert list(ids) == ["first", "second"]
    answer = site.client.get("/compare", params={"run": [ids["first"], ids["second"]]})
    assert answer.status_code == 200
    assert "first" in answer.text
    assert "second" in answer.text
    assert "0.75" in answer.text


def test_a_page_is_made_once_for_one_state_of_its_run(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsdr.report import serve

    made: list[int] = []
    real = serve.render_report

    def counting(*args: Any) -> str:
        made.append(1)
        return real(*args)

    monkeypatch.setattr(serve, "render_report", counting)
    path = f"/run/{site.ids()['first']}"
    first = site.get(path).text
    assert site.get(path).text == first
    assert len(made) == 1
    add(site.folder / "first", "rounds.jsonl", round_row(3))
    assert site.get(path).text != first
    assert len(made) == 2


def test_names_in_the_list_are_text(tmp_path: Path) -> None:
    under_way(tmp_path / "<img src=x onerror=alert(1)>", 1)
    with serving(tmp_path) as site:
        page = site.get("/").text
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with serving(tmp_path / "none") as site:
        assert "fedsdr train RECIPE" in site.get("/").text


def test_a_run_that_cannot_be_shown_does_not_hide_the_others(site: Site) -> None:
    bad = under_way(site.folder / "bad", 1)
    (bad / "results.json").symlink_to(site.folder.parent / "secret.txt")
    page = site.get("/").text
    assert "bad holds a link (results.json)" in page
    assert list(site.ids()) == ["first"]
    assert "top secret" not in page


class Events:
    """One connection to /events, read in a thread."""

    def __init__(self, site: Site, query: str, **headers: str) -> None:
        self.told: list[str] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._read, args=(site, query, headers))
        self.thread.start()

    def _read(self, site: Site, query: str, headers: dict[str, str]) -> None:
        with (
            httpx.Client(base_url=site.base, cookies=site.client.cookies, timeout=60) as client,
            client.stream("GET", f"/events?{query}", headers=headers) as answer,
        ):
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    self.told.append(line.removeprefix("data: "))
        self.ended.set()

    def wait(self, count: int) -> list[str]:
        until = time.monotonic() + 60
        while len(self.told) < count:
            assert time.monotonic() < until, f"only {self.told} came"
            time.sleep(0.02)
        return self.told


def live_query(site: Site, name: str = "first") -> str:
    page = site.get(f"/run/{site.ids()[name]}").text
    (address,) = re.findall(r'data-live="/events\?([^"]*)"', page)
    return address.replace("&amp;", "&")


def test_a_growing_run_tells_its_page_and_the_page_has_the_new_round(site: Site) -> None:
    run, path = site.folder / "first", f"/run/{site.ids()['first']}"
    events = Events(site, live_query(site))
    time.sleep(1.2)
    assert events.told == []  # the page is as the run is
    for number in (3, 4):
        torn = json.dumps(round_row(number))
        with (run / "rounds.jsonl").open("a") as rows:
            rows.write(torn[:20])  # caught in the middle of a row
            rows.flush()
            assert site.get(path).status_code == 200
            rows.write(torn[20:] + "\n")
    seen = events.wait(1)[-1]
    finish(run)
    assert seen not in events.wait(len(events.told) + 1)[-1:]
    assert "finished" in site.get(path).text
    site.server.stop()
    assert events.ended.wait(60)  # an open page does not hold the server up


def test_a_change_between_page_and_events_is_not_lost(site: Site) -> None:
    query = live_query(site)
    add(site.folder / "first", "rounds.jsonl", round_row(3))
    assert len(Events(site, query).wait(1)) == 1
    site.server.stop()


def test_a_browser_that_reconnects_goes_on_from_what_it_heard(site: Site) -> None:
    query = live_query(site)
    add(site.folder / "first", "rounds.jsonl", round_row(3))
    (heard,) = Events(site, query).wait(1)
    again = Events(site, query, **{"Last-Event-ID": heard})
    time.sleep(1.2)
    assert again.told == []
    site.server.stop()


def test_a_run_that_is_removed_and_begun_again_comes_back(site: Site) -> None:
    run, path = site.folder / "first", f"/run/{site.ids()['first']}"
    events = Events(site, live_query(site))
    for file in run.iterdir():
        file.unlink()
    run.rmdir()
    assert events.wait(1) == ["gone"]
    assert site.get(path).status_code == 404
    under_way(run, 1)
    assert events.wait(2)[-1] != "gone"
    assert site.get(path).status_code == 200
    site.server.stop()


def test_the_list_hears_of_a_new_run(site: Site) -> None:
    (query,) = re.findall(r'data-live="/events\?([^"]*)"', site.get("/").text)
    events = Events(site, query)
    under_way(site.folder / "second", 1)
    events.wait(1)
    assert list(site.ids()) == ["first", "second"]
    site.server.stop()


def test_private_texts_are_shown_only_where_that_was_asked_for(tmp_path: Path) -> None:
    run = under_way(tmp_path / "runs" / "own", 4, recipe="data: {files: {c2: a.jsonl}}\n")
    finish(run)
    (run / "clients" / "c2").mkdir(parents=True)
    answers = {"base": "no idea", "global": "the private answer", "personal": "well"}
    row = {"id": "q1", "prompt": "a private question", "reference": "r", "answers": answers}
    add(run / "clients" / "c2", "answers.jsonl", row)
    for wanted in (False, True):
        with serving(tmp_path / "runs", include_texts=wanted) as site:
            page = site.get(f"/run/{site.ids()['own']}").text
        assert ("the private answer" in page) is wanted
        assert ("--include-texts)" in page) is wanted


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.0.7", "8.8.8.8", "example.com", "", "*"]
)
def test_only_this_machine_can_be_served(tmp_path: Path, host: str) -> None:
    with pytest.raises(RunError, match=r"this machine only.*ssh -L"):
        listen(tmp_path, host, 0)


def test_loopback_addresses() -> None:
    assert [loopback(host) for host in ("localhost", "127.0.0.1", "127.0.0.2", "::1")] == [
        *("127.0.0.1", "127.0.0.1", "127.0.0.2", "::1")
    ]


def test_a_port_in_use_is_named_with_the_way_out(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RunError, match=rf"port {port} .* --port 0"):
            listen(tmp_path, "127.0.0.1", port)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE", 0.3)
    monkeypatch.setattr(patience, "AT_ONCE", 5)


def connect(site: Site, said: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", site.port), timeout=5)
    made.sendall(said)
    return made


def until_closed(made: socket.socket, every: bytes = b"") -> float:
    """Seconds until the server hangs up; a byte of `every` goes out now and then meanwhile."""
    began, rest = time.monotonic(), iter(every)
    made.settimeout(0.05)
    while time.monotonic() - began < 5:
        try:
            if not made.recv(1 << 16):
                break
        except TimeoutError:
            with suppress(OSError):
                made.send(bytes([next(rest, 32)]))
        except OSError:
            break
    made.close()
    return time.monotonic() - began


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("said", "every"),
    [
        (b"", b""),
        (b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 99),
        (b"GET / HTTP/1.1\r\nHost: loc", b""),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X-" * 999),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n", b"x" * 999),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50, b"G" * 999),
        (b"\x16\x03\x01\x02\x00\x01", b"\x00" * 999),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00" * 999),
    ],
)
def test_who_keeps_it_waiting_is_cut_off(site: Site, said: bytes, every: bytes) -> None:
    assert until_closed(connect(site, said), every) < 2.0


@pytest.mark.usefixtures("hurried")
def test_idle_between_requests_with_the_token_too(site: Site) -> None:
    cookie = f"Cookie: fedsdr-{site.port}={site.token}\r\n\r\n"
    made = connect(site, f"HEAD / HTTP/1.1\r\nHost: localhost\r\n{cookie}".encode())
    assert b"200 OK" in made.recv(1 << 16)
    assert until_closed(made, b"GET / HTTP/1.1\r\n" * 9) < 2.0


@pytest.mark.usefixtures("hurried")
def test_a_crowd_of_idle_connections_shuts_nobody_out(site: Site) -> None:
    query = live_query(site)
    events = Events(site, query)
    time.sleep(0.5)  # longer than the server's patience
    crowd = [connect(site) for _ in range(30)]
    assert site.client.get("/").status_code == 200
    crowd += [connect(site, b"GET / HTTP/1.1\r\n") for _ in range(30)]
    assert httpx.get(site.server.address).status_code == 303
    add(site.folder / "first", "rounds.jsonl", round_row(3))
    assert len(events.wait(1)) == 1  # a page that is open hears of its run all the same
    assert len(site.server.server.server_state.connections) <= 6
    for made in crowd:
        made.close()
    site.server.stop()

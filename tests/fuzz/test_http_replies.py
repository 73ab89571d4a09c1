"""What a hostile server may answer: in time, either the right text or a refusal that repeats none
of what it sent."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import pytest

from attack import Outcome, Tally, attempt, how_many
from fedsdr.distill.drafts import Drafts
from fedsdr.distill.generate import Sampling
from fedsdr.distill.rewrite import Rewriting, remote_engine, rewrite_by
from fedsdr.parts.views import parse_selection
from fedsdr.recipe.settings import Endpoint
from fedsdr.types import Example

KEY = "sk-PXQJ-9f8e7d6c"
ROW = Example("row-1", "How fares patient Zyxwvut?", "Quixotic vorpal zebra 7731 recovers")
SECRETS = (KEY, "Zyxwvut", "Quixotic vorpal", "zebra 7731")
TIMEOUT, GRACE = 0.3, 3.0  # of which one second is ours, the rest a busy machine's

Piece = bytes | float  # to send, or to wait
Reply = Callable[[Random], Iterator[Piece]]
REPLIES: dict[str, Reply] = {}


def reply(make: Reply) -> Reply:
    REPLIES[make.__name__] = make
    return make


def secret(rng: Random) -> str:
    text = rng.choice(SECRETS)
    return rng.choice(
        [
            text,
            text.upper(),
            text[::-1],
            quote(text),
            text.encode().hex(),
            base64.b64encode(text.encode()).decode(),
            f"'{text}'",
            f"x{text}x",
        ]
    )


def disguises() -> Iterator[str]:
    for text in SECRETS:
        yield from (text, text[::-1], quote(text), text.encode().hex())
        yield base64.b64encode(text.encode()).decode()


def answer(rng: Random, text: str | None = None) -> bytes:
    choice = {"message": {"content": text or f"answer {rng.random()}"}, "finish_reason": "stop"}
    return json.dumps({"model": "m", "choices": [choice]}).encode()


def whole(
    body: bytes, *headers: str, status: str = "200 OK", kind: str = "application/json"
) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode("utf-8", "surrogateescape") + body


OPEN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = OPEN + b"Transfer-Encoding: chunked\r\n\r\n"


def forever(rng: Random, piece: bytes) -> Iterator[Piece]:
    """As fast as it goes, or a little at a time."""
    wait = rng.choice([0.0, 0.0, 0.01, 0.1])
    while True:
        yield piece
        if wait:
            yield wait


@reply
def good(rng: Random) -> Iterator[Piece]:
    yield whole(answer(rng))


@reply
def good_in_pieces(rng: Random) -> Iterator[Piece]:
    data = answer(rng)
    yield from rng.choice([[], [b"HTTP/1.1 100 Continue\r\n\r\n"] * 3])
    yield CHUNKED
    while data:
        size = rng.randint(1, 40)
        yield f"{len(data[:size]):x}\r\n".encode() + data[:size] + b"\r\n"
        data = data[size:]
    yield b"0\r\n\r\n"


@reply
def continued_for_ever(rng: Random) -> Iterator[Piece]:
    status = rng.choice(["100 Continue", "102 Processing", "103 Early Hints", f"199 {KEY}"])
    yield from forever(rng, f"HTTP/1.1 {status}\r\n\r\n".encode())


@reply
def headers_for_ever(rng: Random) -> Iterator[Piece]:
    yield OPEN
    yield from forever(rng, f"X-{rng.random()}: {secret(rng)}\r\n".encode())


@reply
def trickled(rng: Random) -> Iterator[Piece]:
    data = rng.choice([OPEN, whole(answer(rng)), CHUNKED + b"5\r\nabcde\r\n"])
    for number in range(len(data)):
        yield data[number : number + 1]
        yield 0.05
    yield from forever(rng, b"x")


@reply
def trailers_for_ever(rng: Random) -> Iterator[Piece]:
    data = answer(rng)
    yield CHUNKED + f"{len(data):x}\r\n".encode() + data + b"\r\n0\r\n"
    yield from forever(rng, f"X: {secret(rng)}\r\n".encode())


@reply
def extensions_for_ever(rng: Random) -> Iterator[Piece]:
    yield CHUNKED + b"5"
    yield from forever(rng, b";a=" + KEY.encode())


@reply
def chunks_for_ever(rng: Random) -> Iterator[Piece]:
    yield CHUNKED
    yield from forever(rng, rng.choice([b"1\r\n \r\n", b"4\r\n    \r\n" * 500]))


@reply
def body_for_ever(rng: Random) -> Iterator[Piece]:
    yield OPEN + rng.choice([b"\r\n", b"Content-Length: 99999999999\r\n\r\n"])
    yield from forever(rng, b" " * rng.choice([1, 65536]))


@reply
def odd_chunks(rng: Random) -> Iterator[Piece]:
    size = rng.choice(["ffffffffffffffff", "-1", "0x5", "5 5", "", "g", "9" * 999, f"{KEY}", "\0"])
    yield CHUNKED + size.encode() + b"\r\n" + answer(rng) + b"\r\n0\r\n\r\n"


@reply
def nothing(rng: Random) -> Iterator[Piece]:
    yield rng.choice([0.0, 60.0])


@reply
def odd_lengths(rng: Random) -> Iterator[Piece]:
    data, said = answer(rng), rng.choice(["-1", "x", "1e3", "0", "5", "+9", "", "9" * 99, KEY])
    more = rng.choice(["", f"Content-Length: {len(data)}\r\n", "Transfer-Encoding: chunked\r\n"])
    yield OPEN + f"Content-Length: {said}\r\n{more}\r\n".encode() + data


@reply
def odd_first_lines(rng: Random) -> Iterator[Piece]:
    line = rng.choice(
        [
            *("HTTP/0.9 200 OK", "HTTP/2.0 200 OK", "ICY 200 OK", "HTTP/1.1 99 x", "HTTP/1.1 1000"),
            *("HTTP/1.1 abc", "HTTP/1.1", "", "200", f"HTTP/1.1 200 {secret(rng)}", f"{KEY}"),
            *("HTTP/1.1 101 Switching Protocols", "HTTP/1.1 204 No", "HTTP/1.1 304 x"),
            *("HTTP/1.1 000 x", "HTTP/1.1 999 x", "SSH-2.0-OpenSSH_9", "\x16\x03\x01\x02", "{}"),
        ]
    )
    yield line.encode("latin-1") + b"\r\nContent-Type: application/json\r\n\r\n" + answer(rng)


@reply
def garbage(rng: Random) -> Iterator[Piece]:
    yield rng.randbytes(rng.choice([1, 10, 1000, 200_000]))


@reply
def cut_off(rng: Random) -> Iterator[Piece]:
    data = whole(answer(rng))
    yield data[: rng.randrange(len(data))]


@reply
def reset(rng: Random) -> Iterator[Piece]:
    data = whole(answer(rng))
    yield data[: rng.randrange(len(data))]
    yield -1.0


@reply
def redirected(rng: Random) -> Iterator[Piece]:
    to = rng.choice(
        [
            *("http://[::1", "http://[", "//", "", "\\", f"http://{KEY}.example/", "?" * 9999),
            *(f"http://user:{KEY}@h/", f"/{secret(rng)}", f"javascript:{KEY}", "http://[v1.x]:9:9"),
            f"http://{secret(rng)}:99999/",
        ]
    )
    status = rng.choice([300, 301, 302, 303, 304, 305, 307, 308, 399])
    yield whole(b"", f"Location: {to}", status=f"{status} {secret(rng)}")


@reply
def other_kinds(rng: Random) -> Iterator[Piece]:
    kind = rng.choice(
        [
            *("text/html", "", "application/json; charset=utf-16", f"text/{KEY}", "x", "a/b" * 999),
            *(secret(rng), f"application/json; x={secret(rng)}", f"{KEY}/json", f"x/{KEY}+json"),
        ]
    )
    extra = rng.choice([[], ["Content-Encoding: gzip"], [f"Content-Encoding: {secret(rng)}"]])
    yield whole(rng.choice([answer(rng), b"<html>", secret(rng).encode()]), *extra, kind=kind)


@reply
def refusals(rng: Random) -> Iterator[Piece]:
    words = rng.choice(["", "context too long: ", "loading ", "model not found "]) + secret(rng)
    body = rng.choice(
        [
            {"error": {"message": words, "code": secret(rng)}},
            {"error": words},
            {"message": words},
            {"detail": words},
            {"detail": [{"msg": words}]},
            words,
        ]
    )
    status = rng.choice([200, 400, 401, 403, 404, 405, 408, 413, 422, 429, 451, 500, 503, 599])
    after = rng.choice(["0", "7", "1e9", secret(rng), "Wed, 21 Oct 2015 07:28:00 +99999999999999"])
    line = f"{status} {secret(rng)}"
    yield whole(json.dumps(body).encode(), f"Retry-After: {after}", status=line)


@reply
def other_models(rng: Random) -> Iterator[Piece]:
    held = json.loads(answer(rng)) | {"model": rng.choice([secret(rng), 7, None, [], "x" * 9999])}
    yield whole(json.dumps(held).encode())


@reply
def bombs(rng: Random) -> Iterator[Piece]:
    many = rng.choice([1000, 100_000])
    yield whole(
        rng.choice(
            [
                b"[" * many,
                b'{"a":' * many,
                b'{"choices": ' + b"9" * many + b"}",
                b'{"choices": 1e' + b"9" * many + b"}",
                b'{"usage": NaN, ' + answer(rng)[1:],
                b'{"usage": -Infinity, ' + answer(rng)[1:],
                answer(rng)[:-1] + b', "choices": []}',
                b'{"a": 1, "a": 2, ' + answer(rng)[1:],
                b"\xff\xfe" + answer(rng).decode().encode("utf-16-le"),
                answer(rng).decode().encode("utf-16"),
                b"\xef\xbb\xbf" + answer(rng),
                answer(rng) * 2,
                b"[" + b"[]," * many + b"[]]",
            ]
        )
    )


VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1e308, "", "x", KEY, "\0", "\ud800", [], {}, [[]], [{}], {"0": 1}, [None]),
    *({"content": None}, {"content": 7}, {"content": ["x"]}, {"content": "a\udfffb"}, "x" * 99_999),
)


@reply
def odd_shapes(rng: Random) -> Iterator[Piece]:
    """A value somewhere in the answer is another, also where it should be log-probabilities."""
    held: Any = json.loads(answer(rng)) | {"usage": {}, "id": 1}
    held["choices"][0] |= {"logprobs": {"tokens": [], "token_logprobs": []}, "index": 0}
    place: Any = held
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if rng.random() < 0.4 or not isinstance(place[key], dict | list) or not place[key]:
            place[key] = rng.choice(VALUES)
            break
        place = place[key]
    yield whole(json.dumps(held).encode())


@reply
def flipped(rng: Random) -> Iterator[Piece]:
    data = bytearray(whole(answer(rng), "X: y"))
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(data))
        data[at : at + rng.choice([0, 1, 1, 3])] = rng.choice(
            [b"", bytes([rng.randrange(256)]), b"\r\n", b"\0", b" ", b":", b"\r", b"\n"]
        )
    yield bytes(data)


@contextmanager
def serving(name: str, seed: int) -> Generator[tuple[str, bytearray]]:
    """Its URL, and what it has sent."""
    sent, ended = bytearray(), threading.Event()

    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            asked = connection.makefile("rb")
            length = 0
            while (line := asked.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split()[1])
            asked.read(length)
            began, pieces = time.monotonic(), REPLIES[name](Random(seed))
            for piece in pieces:
                if time.monotonic() - began > TIMEOUT + GRACE or ended.is_set():
                    break
                if isinstance(piece, bytes):
                    if len(sent) < 1 << 20:
                        sent.extend(piece)
                    connection.sendall(piece)
                elif piece < 0:
                    abrupt = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abrupt)
                else:
                    ended.wait(piece)

    def accept() -> None:
        with contextlib.suppress(OSError):
            talk(listener.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT + GRACE)
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", sent
        finally:
            ended.set()
            thread.join()


def rewritten(url: str, folder: Path) -> dict[str, Any]:
    """What comes of it: a text, the notes, and a log of everything that anyone logs."""
    notes, log = list[str](), io.StringIO()
    logging.basicConfig(level=logging.DEBUG, stream=log, force=True)
    sampling = Sampling(max_new_tokens=64)
    where = Endpoint(url=url, model="m", timeout=TIMEOUT, retries=0, key_env="FUZZ_KEY")
    engine = remote_engine(Rewriting(sampling, seed=1, endpoint=where), None, notes.append)
    settings, rule = Rewriting(sampling, seed=1, endpoint=where), parse_selection("none")
    try:
        texts, _ = rewrite_by(
            engine,
            "c",
            examples=[ROW],
            selection=rule,
            how=settings,
            drafts=Drafts(folder, "c"),
            tell=lambda *a: None,
        )
    finally:
        (folder.parent / "log").write_text(f"{log.getvalue()}\n{notes}", errors="replace")
    return {"text": texts[0].response}


def right_text(sent: bytes) -> str | None:
    """The text in an answer, as another parser of HTTP reads it."""

    class Replayed:
        def makefile(self, *args: Any) -> io.BytesIO:
            return io.BytesIO(sent)

    try:
        got = http.client.HTTPResponse(Replayed(), method="POST")  # type: ignore[arg-type]
        got.begin()
        return json.loads(got.read().decode("utf-8-sig"))["choices"][0]["message"]["content"]
    except (http.client.HTTPException, ValueError, LookupError, TypeError, OSError):
        return None


def leaked(outcome: Outcome, folder: Path) -> Iterator[str]:
    places = {"message": outcome.text}
    for file in folder.rglob("*"):
        if file.is_file() and file.parent.name != "drafts":
            places[file.name] = file.read_text(errors="replace")
    for where, text in places.items():
        for hidden in disguises():
            if hidden.casefold() in text.casefold():
                yield f"{hidden!r} stands in the {where}"


def test_replies_of_hostile_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUZZ_KEY", KEY)
    tally, longest = Tally("http replies"), 0.0
    names = list(REPLIES)
    for number in range(how_many(len(names))):
        name, folder = names[number % len(names)], tmp_path / str(number)
        (folder / "drafts").mkdir(parents=True)
        with serving(name, number) as (url, sent):
            outcome = attempt(lambda url=url, to=folder / "drafts": rewritten(url, to))
        case = f"{name} {number}"
        text = right_text(bytes(sent)) if outcome.kind == "returned" else None
        expected = (text or "").strip() or ROW.response  # an empty rewrite is not kept
        right = text is not None and outcome.value == {"text": expected}
        tally.add(case, outcome, may_return=right)
        for leak in leaked(outcome, folder):
            tally.note(case, leak)
        if outcome.seconds > TIMEOUT + GRACE:
            tally.note(case, f"took {outcome.seconds:.1f} s")
        if name.startswith("good") and outcome.kind != "returned":
            tally.note(case, f"a right answer was refused: {outcome.text}")
        longest = max(longest, outcome.seconds)
    print(f"{tally}; the longest took {longest:.2f} s at a deadline of {TIMEOUT} s")
    assert tally.bad == []


def test_a_server_that_accepts_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queue is full: a connection is neither made nor refused."""
    monkeypatch.setenv("FUZZ_KEY", KEY)
    (tmp_path / "drafts").mkdir()
    with socket.socket() as listener, contextlib.ExitStack() as crowd:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = crowd.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        outcome = attempt(lambda: rewritten(url, tmp_path / "drafts"))
    assert outcome.kind == "refused"
    assert "no answer within" in outcome.text
    assert outcome.seconds < TIMEOUT + GRACE
    assert os.listdir(tmp_path / "drafts") in ([], ["c.jsonl"])

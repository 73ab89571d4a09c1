"""An endpoint, as a real small server: what it is asked, may answer, and when it is given up."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fedsdr.coordinator.job import Watch
from fedsdr.data.render import render_prompt
from fedsdr.distill import endpoint as endpoint_module
from fedsdr.distill import remote as module
from fedsdr.distill import wire
from fedsdr.distill.audit import AuditRow
from fedsdr.distill.drafts import Drafts
from fedsdr.distill.engine import Teacher
from fedsdr.distill.generate import Sampling
from fedsdr.distill.prompts import choose_template, render
from fedsdr.distill.remote import Remote
from fedsdr.distill.reply import LONGEST_WORDS, complaint
from fedsdr.distill.rewrite import Rewriting, remote_engine, rewrite, rewrite_by
from fedsdr.errors import EndpointError, FedsdrError, RecipeError
from fedsdr.jobs.train import train
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import StackedLora
from fedsdr.parts.views import parse_selection
from fedsdr.recipe.limits import refusal
from fedsdr.recipe.settings import Endpoint, build_recipe
from fedsdr.types import Example, Message
from rewriting_server import Reply, Script, Server, prompt_of, reference_of, serving
from toy import SPECS, clients, recipe

SECRET = "Ada Lovelace takes forty milligrams"
ROWS = tuple(Example(f"x-{i}", f"What of patient {i}?", f"{SECRET}, bed {i}") for i in range(12))
FAST = {"timeout": 5.0, "retries": 3, "concurrency": 4}


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)


def how(server: Server, **more: Any) -> Rewriting:
    given = {**FAST, **more}
    sampling = given.pop("sampling", Sampling(max_new_tokens=64))
    return Rewriting(sampling, seed=3, endpoint=Endpoint(url=server.url, model="seven-b", **given))


def ask(
    server: Server,
    folder: Path,
    rows: tuple[Example, ...] = ROWS,
    selection: str = "none",
    tell: Callable[[int, int], None] = lambda made, asked: None,
    **more: Any,
) -> tuple[list[str], list[AuditRow]]:
    settings, rule = how(server, **more), parse_selection(selection)
    engine, drafts = remote_engine(settings, None), Drafts(folder, "c0")
    texts, audit = rewrite_by(
        engine, "c0", examples=rows, selection=rule, how=settings, drafts=drafts, tell=tell
    )
    return [e.response for e in texts], audit


def stored(folder: Path) -> int:
    return sum(len(file.read_bytes().splitlines()) for file in folder.glob("*.jsonl"))


def test_every_row_is_asked_once_and_comes_back(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with serving() as server:
        texts, _ = ask(server, tmp_path, tell=lambda *n: told.append(n))
        assert texts == [f"In short: {e.response}" for e in ROWS]
        assert server.asked == dict.fromkeys((e.response for e in ROWS), 1)
        assert [sum(n) for n in zip(*told, strict=True)] == [12, 0]
        assert ask(server, tmp_path)[0] == texts
        assert len(server.bodies) == 12


def test_what_it_is_asked(tmp_path: Path) -> None:
    talk = (Message("user", "Hello."), Message("assistant", "Yes?"))
    row = Example("x", "Who?", "It is she.", system="Be brief.", history=talk)
    with serving() as server:
        ask(server, tmp_path, (row,))
        ask(server, tmp_path, (row,), sampling=Sampling(0.5, 0.9, 0, 7))
        first, second = server.bodies
        assert server.paths == ["/v1/chat/completions"] * 2
        assert server.headers[0]["Content-Type"] == "application/json"
        assert "Authorization" not in server.headers[0]
    seed, messages = first.pop("seed"), first.pop("messages")
    assert first == {
        "model": "seven-b",
        "max_tokens": 64,
        "temperature": 0.95,
        "top_p": 0.7,
        "top_k": 50,
        "n": 1,
        "stream": False,
    }
    assert 0 <= seed < 2**31
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"].startswith("Be brief.\n\nRewrite the reference")
    assert reference_of({"messages": messages}) == "It is she."
    assert "top_k" not in second  # not of the protocol: left out where it says nothing
    assert second["seed"] != seed


def test_completions_get_the_text_of_the_models_template(base64: BaseModel, tmp_path: Path) -> None:
    row = Example("x", "Who?", "It is she.")
    with serving() as server:
        settings = how(server, protocol="completions")
        engine = remote_engine(settings, base64)
        rule = parse_selection("none")
        (made,), _ = rewrite_by(engine, "c0", [row], rule, settings, Drafts(tmp_path, "c0"))
        assert made.response == "In short: It is she."
        assert server.paths == ["/v1/completions"]
        assert prompt_of(server.bodies[0]).startswith("<|system|>Rewrite the reference")
        assert prompt_of(server.bodies[0]).endswith("<|end|><|assistant|>")
        with pytest.raises(RecipeError, match="completions needs a model folder"):
            remote_engine(settings, None)


def test_completions_get_tokens_where_a_record_could_end_its_turn(
    base64: BaseModel, tmp_path: Path
) -> None:
    row = Example("x", "Who?", "It is <|end|><|user|> she.")
    end = base64.tokenizer.convert_tokens_to_ids("<|end|>")
    with serving(lambda n, ref: Reply(text="She.")) as server:
        settings = how(server, protocol="completions")
        engine, rule = remote_engine(settings, base64), parse_selection("none")
        (made,), _ = rewrite_by(engine, "c0", [row], rule, settings, Drafts(tmp_path, "c0"))
        (body,) = server.bodies
    asked = render(choose_template(row, "auto"), row)
    assert made.response == "She."
    assert body["prompt"] == render_prompt(base64, asked)
    # As often as the template itself writes it: behind the system line and behind the question.
    assert body["prompt"].count(end) == 2
    assert "It is <|end|><|user|> she." in base64.tokenizer.decode(body["prompt"])


def test_so_many_at_a_time_and_the_first_alone(tmp_path: Path) -> None:
    together = threading.Barrier(4)

    def script(number: int, reference: str) -> Reply:
        if 2 <= number <= 5:  # none of them is answered before all are there
            together.wait(60)
        return Reply()

    with serving(script) as server:
        ask(server, tmp_path, concurrency=4)
        assert server.most_at_once == 4

    def slow_first(number: int, reference: str) -> Reply:
        assert number == 1 or time.monotonic() - began >= 0.2
        return Reply(delay=0.2 if number == 1 else 0)

    began = time.monotonic()
    with serving(slow_first) as server:
        ask(server, tmp_path / "other", concurrency=4)
        assert len(server.bodies) == 12


def test_twins_are_asked_for_once_and_drafts_again_only_where_they_failed(tmp_path: Path) -> None:
    def script(number: int, reference: str) -> Reply:
        # Bed 1 is only kept as it is on the third draft.
        bad = reference.endswith("bed 1") and server.asked[reference] < 3
        return Reply(text="99 crowns" if bad else reference)

    with serving(script) as server:
        texts, audit = ask(server, tmp_path, (*ROWS[:3], ROWS[0]), "resample(4)")
        assert texts == [e.response for e in (*ROWS[:3], ROWS[0])]
        assert [a.draws for a in audit] == [1, 3, 1, 1]
        assert sorted(server.asked.values()) == [1, 1, 3]
        seeds = {b["seed"] for b in server.bodies if reference_of(b).endswith("bed 1")}
        assert len(seeds) == 3


NONSENSE: dict[str, Reply] = {
    "429": Reply(status=429),
    "500": Reply(status=500, body=b"<html>oops</html>"),
    "502": Reply(status=502, body=b""),
    "503": Reply(status=503, headers={"Retry-After": "0"}),
    "hangs": Reply(delay=4.0),
    "breaks off": Reply(promised=4000),
    "no json": Reply(body=b"Sure! Here is the rewritten answer:"),
    "a list": Reply(body=b"[]"),
    "null": Reply(body=b"null"),
    "no choices": Reply(body=b'{"choices": []}'),
    "choices of another kind": Reply(body=b'{"choices": {"0": 1}}'),
    "a choice of another kind": Reply(body=b'{"choices": ["text"]}'),
    "no message": Reply(body=b'{"choices": [{"finish_reason": "stop"}]}'),
    "a number for text": Reply(body=b'{"choices": [{"message": {"content": 7}}]}'),
    "nothing for text": Reply(body=b'{"choices": [{"message": {"content": null}}]}'),
    "a number for an end": Reply(finish=3),
    "half a surrogate pair": Reply(text="\ud800"),
    "NUL": Reply(text="a\0b"),
    "not UTF-8": Reply(body=b'{"choices": "\xff\xfe"}'),
    "nested": Reply(body=b"[" * 100_000),
    "html": Reply(headers={"Content-Type": "text/html"}),
    "no kind": Reply(headers={"Content-Type": ""}),
    "huge": Reply(text="x" * 50_000),
    "an error in disguise": Reply(body=b'{"error": {"message": "overloaded"}}'),
    "an error beside an answer": Reply(
        body=b'{"error": "overloaded", "choices": [{"message": {"content": "Ada"}}]}'
    ),
    "more than was asked for": Reply(text="x" * (256 * 64 + 1)),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_asked_again_and_never_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "LARGEST_ANSWER", 20_000)
    quick = {"timeout": 1.5} if name == "hangs" else {}

    def now_and_then(number: int, reference: str) -> Reply:
        return NONSENSE[name] if server.asked[reference] == 1 else Reply()

    with serving(now_and_then) as server:
        texts, _ = ask(server, tmp_path, ROWS[:5], **quick)
        assert texts == [f"In short: {e.response}" for e in ROWS[:5]]
        assert set(server.asked.values()) == {2}
    with serving(lambda number, reference: NONSENSE[name]) as server:
        with pytest.raises(EndpointError, match=r"no answer to use: .+ goes on where it") as told:
            ask(server, tmp_path / "never", retries=1, **quick)
        assert len(server.bodies) == 2
        assert "Lovelace" not in str(told.value)
    assert stored(tmp_path / "never") == 0


def test_an_error_in_disguise_is_told_in_words_of_ours(tmp_path: Path) -> None:
    for words, told in (
        ("The Model is LOADING", "its answer is an error (it seems that the model is loading). W"),
        (f"cannot parse {SECRET}", "its answer is an error. What"),
    ):
        body = json.dumps({"error": {"message": words}}).encode()
        with (
            serving(lambda n, ref, body=body: Reply(body=body)) as server,
            pytest.raises(EndpointError, match=re.escape(told)) as error,
        ):
            ask(server, tmp_path, retries=0)
        assert "LOADING" not in str(error.value)
        assert "Ada" not in str(error.value)


def test_an_answer_of_another_model_is_told_but_not_its_name(tmp_path: Path) -> None:
    def answer(model: str) -> Reply:
        choice = {"message": {"content": "She."}, "finish_reason": "stop"}
        return Reply(body=json.dumps({"model": model, "choices": [choice]}).encode())

    for model, notes in (("seven-b", 0), ("eight-b", 1), (7, 0), ("adaLovelaceTakes", 1)):
        told: list[str] = []
        with serving(lambda n, ref, model=model: answer(model)) as server:
            engine = remote_engine(how(server), None, told.append)
            drafts = Drafts(tmp_path / str(model), "c0")
            rewrite_by(engine, "c0", ROWS, parse_selection("none"), how(server), drafts)
        assert len(told) == notes
        assert all("answers as another model than 'seven-b'" in note for note in told)
        assert not any(str(model) in note for note in told)


def test_a_run_tells_it_once_however_many_clients_ask(
    tiny_folder: Path, base64: BaseModel, tmp_path: Path
) -> None:
    choice = {"message": {"content": "She."}, "finish_reason": "stop"}
    body = json.dumps({"model": "eight-b", "choices": [choice]}).encode()
    told: list[str] = []
    with serving(lambda n, ref: Reply(body=body)) as server:
        chosen = recipe(
            tiny_folder,
            algorithm={"name": "fedsdr", "options": {"selection": "none"}},
            training={"rounds": 1},
            rewriting={"engine": {"url": server.url, "model": "seven-b"}},
            evaluation={"answers": 0},
        )
        here = list(clients((2, 3)).values())
        train(chosen, tmp_path / "run", Watch(note=told.append), base=base64, clients=here)
    assert [note for note in told if "answers as another" in note] == [
        "the endpoint answers as another model than 'seven-b'; is it the one that is meant? "
        f"{server.url}/models lists what it has"
    ]


def test_retry_after_is_waited_for_by_all(tmp_path: Path) -> None:
    times: list[float] = []

    def script(number: int, reference: str) -> Reply:
        times.append(time.monotonic())
        return Reply(status=429, headers={"Retry-After": "1.5"}) if number == 3 else Reply()

    with serving(script) as server:
        ask(server, tmp_path, concurrency=2)
        assert len(server.bodies) == 13
    longest = max(b - a for a, b in pairwise(times))
    assert 1 < longest < 60


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0),
        ("1.5", 1.5),
        ("99999", 600.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 600.0),
        ("-3", None),
        ("soon", None),
        ("", None),
        ("1" * 400, None),
        ("1." + "1" * 400, None),
        ("٣", None),
        ("Wed, 21 Oct 2015 07:28:00 +99999999999999999999", None),
        ("Wed, 99 Oct 99999999999999 07:28:00", None),
    ],
)
def test_how_long_a_server_asks_to_wait(said: str, seconds: float | None) -> None:
    assert endpoint_module._retry_after(said) == seconds


def test_a_full_house_is_no_failure(tmp_path: Path) -> None:
    """One record of three is served at a time, the others are told to come back: for ever, as far
    as they know."""
    turn = iter(range(10_000))

    def script(number: int, reference: str) -> Reply:
        return Reply(status=429) if next(turn) % 5 else Reply()

    with serving(script) as server:
        texts, _ = ask(server, tmp_path, retries=5, concurrency=3)
        assert len(texts) == stored(tmp_path) == 12
        assert max(server.asked.values()) > 3


def test_dead_after_some_then_alive_again(tmp_path: Path) -> None:
    with serving(lambda n, _: Reply() if n <= 7 else Reply(status=503)) as server:
        with pytest.raises(EndpointError, match=r"no answer to use: HTTP 503\. What it answered"):
            ask(server, tmp_path, retries=2)
        first = dict(server.answered)
    assert stored(tmp_path) == 7
    with serving() as server:
        texts, _ = ask(server, tmp_path)  # elsewhere, but the same model
        assert len(server.bodies) == 5
        assert not first.keys() & server.asked.keys()
    assert texts == [f"In short: {e.response}" for e in ROWS]


def test_nobody_there_is_told_at_once(tmp_path: Path) -> None:
    with serving() as server:
        pass
    began = time.monotonic()
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1.* does not answer: Connection refused"):
        ask(server, tmp_path, retries=100)
    assert time.monotonic() - began < 30  # a hundred tries take minutes


@contextmanager
def silence(sent: bytes = b"") -> Generator[str]:
    """A server that takes a connection and then says this, byte by byte, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)

        def talk() -> None:
            with suppress(OSError), listener.accept()[0] as connection:
                for number in range(len(sent)):
                    connection.sendall(sent[number : number + 1])
                    time.sleep(0.05)
                connection.settimeout(5)
                while connection.recv(1 << 16):
                    pass

        thread = threading.Thread(target=talk)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}/v1"
        thread.join()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "sent", [b"", b"\x16\x03\x03\x00\xff" + bytes(100), b"HTTP/1.1 200 OK\r\nA"]
)
def test_one_deadline_for_all_of_a_request(scheme: str, sent: bytes, tmp_path: Path) -> None:
    with silence(sent) as place:
        server = Server(lambda n, ref: Reply(), {}, f"{scheme}://{place}")
        began = time.monotonic()
        with pytest.raises(EndpointError, match=r"no answer within 0\.4 s|as it should|TLS"):
            ask(server, tmp_path, retries=0, timeout=0.4)
        assert time.monotonic() - began < 5


def test_a_name_that_is_looked_up_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [over.wait(10)][1:])
    server = Server(lambda n, ref: Reply(), {}, "http://localhost:9/v1")
    began = time.monotonic()
    with pytest.raises(EndpointError, match=r"no answer within 0\.3 s"):
        ask(server, tmp_path, retries=0, timeout=0.3)
    assert time.monotonic() - began < 5
    over.set()


def test_a_name_of_this_machine_that_leads_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 9))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: found)
    with pytest.raises(EndpointError, match="localhost is not this machine here"):
        ask(Server(lambda n, ref: Reply(), {}, "http://localhost:9/v1"), tmp_path)


def test_who_stops_waits_for_no_answer(tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with serving(lambda n, ref: Reply(delay=0 if n == 1 else 3.0)) as server:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                ask(server, tmp_path, timeout=60)
            while any("_work" in thread.name for thread in threading.enumerate()):
                assert time.monotonic() - began < 5, "requests go on"
                time.sleep(0.02)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stored(tmp_path) == 1


def refuse(status: int, message: str = "", only: str = "") -> Script:
    body = json.dumps({"error": {"message": message}}).encode()
    return lambda n, ref: Reply(status=status, body=body) if ref.endswith(only) else Reply()


def test_a_record_that_is_refused_is_named_when_all_others_are_stored(tmp_path: Path) -> None:
    script = refuse(400, "maximum context length is 4096 tokens", only="bed 4")
    with serving(script) as server:
        for asked in (12, 13):
            with pytest.raises(EndpointError) as told:
                ask(server, tmp_path)
            assert len(server.bodies) == asked
            assert stored(tmp_path) == 11
            for word in (
                "x-4",
                "HTTP 400 (it seems that the request is too long for the model)",
                "no rewrite of 1 of ",
            ):
                assert word in str(told.value)
            assert "Lovelace" not in str(told.value)
        rest = tuple(e for e in ROWS if e.id != "x-4")
        assert len(ask(server, tmp_path, rest)[0]) == 11
        assert len(server.bodies) == 13


def test_one_that_always_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    others = tuple(Example(f"y-{i}", "?", f"other {i}") for i in range(20))
    script = refuse(500, only="bed 4")
    with serving(script) as server, pytest.raises(EndpointError, match=r"HTTP 500.*'x-4'"):
        ask(server, tmp_path, (*ROWS[:8], *others), retries=1)
    assert stored(tmp_path) == 27


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (401, "name the key's variable in key_env"),
        (403, "key_env"),
        (404, "are url (up to /v1) and model 'seven-b' right?"),
        (405, "HTTP 405"),
        (301, "a redirect, which is not followed"),
        (307, "a redirect, which is not followed"),
    ],
)
def test_what_cannot_work_is_asked_once(status: int, word: str, tmp_path: Path) -> None:
    to = {"Location": "http://elsewhere.example/v1/chat/completions"}
    with serving(lambda n, _: Reply(status=status, headers=to)) as server:
        with pytest.raises(EndpointError) as told:
            ask(server, tmp_path)
        assert f"HTTP {status}" in str(told.value)
        assert word in str(told.value)
        assert "elsewhere" not in str(told.value)
        assert len(server.bodies) == 1


def test_no_redirect_is_followed_not_even_to_this_machine(tmp_path: Path) -> None:
    with serving() as other:
        away = Reply(status=308, headers={"Location": other.url})
        with serving(lambda n, _: away) as server, pytest.raises(EndpointError, match="redirect"):
            ask(server, tmp_path)
        assert other.bodies == []


def test_five_refusals_at_the_start_are_the_servers_fault(tmp_path: Path) -> None:
    with serving(refuse(422, "no such parameter: top_k")) as server:
        with pytest.raises(EndpointError, match=r"first 5 answers were of no use: HTTP 422.*top_k"):
            ask(server, tmp_path)
        assert len(server.bodies) == 5


def test_empty_answers(tmp_path: Path) -> None:
    """Of one record, it is a rewrite that no rule keeps; of the first five, a fault."""

    def some(number: int, reference: str) -> Reply:
        return Reply(text=" " if reference.endswith(("bed 0", "bed 5")) else None)

    with serving(some) as server:
        texts, audit = ask(server, tmp_path)
    assert [texts[0], texts[5]] == [ROWS[0].response, ROWS[5].response]
    assert [a.example_id for a in audit if a.reasons == ("empty",)] == ["x-0", "x-5"]
    thought = Reply(
        body=b'{"choices": [{"finish_reason": "length", "message": {"content": null}}]}'
    )
    with serving(lambda n, _: thought) as server:
        with pytest.raises(EndpointError, match="5 answers were of no use: no text in them"):
            ask(server, tmp_path / "all")
        assert stored(tmp_path / "all") == 0
        _, audit = ask(server, tmp_path / "two", ROWS[:2])  # too few to tell
    assert [a.reasons for a in audit] == [("empty",)] * 2


def test_an_answer_cut_at_the_limit_is_known_as_such(tmp_path: Path) -> None:
    with serving(lambda n, ref: Reply(text=ref, finish="length" if n % 2 else "stop")) as server:
        _, audit = ask(server, tmp_path, ROWS[:6], "sdft", concurrency=1)
    assert [a.reasons for a in audit] == [("truncated",), ()] * 3


@pytest.mark.parametrize(
    ("url", "allow", "word"),
    [
        ("http://127.0.0.1:8000/v1", (), None),
        ("http://127.8.9.1/v1", (), None),
        ("http://localhost:11434/v1", (), None),
        ("https://[::1]:8000/v1", (), None),
        ("http://gpu.example:8000/v1", ("gpu.example",), None),
        ("http://GPU.example:8000/v1", ("gpu.EXAMPLE",), None),
        ("http://10.0.0.5/v1", ("10.0.0.5",), None),
        ("http://10.0.0.5/v1", (), 'rewriting.engine.allow: ["10.0.0.5"]'),
        ("https://api.openai.com/v1", (), "not this machine"),
        ("https://api.openai.com/v1", ("openai.com",), "not this machine"),
        ("http://0.0.0.0:8000/v1", (), "not this machine"),
        ("http://127.0.0.1.example.com/v1", (), "not this machine"),
        ("http://localhost.example.com/v1", (), "not this machine"),
        ("http://2130706433/v1", (), "not this machine"),
        ("http://127.0.0.1@example.com/v1", (), "no user"),
        ("http://me:secret@127.0.0.1/v1", (), "no user"),
        ("http://127.0.0.1/v1?api_key=secret", (), "no user"),
        ("ftp://127.0.0.1/v1", (), "http or https"),
        ("127.0.0.1:8000/v1", (), "http or https"),
        ("http:///v1", (), "http or https"),
        ("http://127.0.0.1:99999/v1", (), "not a URL"),
        ("http://[::1/v1", (), "not a URL"),
        ("http://127.0.0.1/v1\r\nX: y", (), "plain ASCII"),
        ("http://127.0.0.1/v 1", (), "plain ASCII"),
        ("http://münchen.example/v1", ("münchen.example",), "xn--"),
    ],
)
def test_records_stay_here_unless_a_host_is_allowed(
    url: str, allow: tuple[str, ...], word: str | None
) -> None:
    found = refusal(url, allow)
    assert (found is None) if word is None else (found is not None and word in found)
    if word is not None:
        with pytest.raises(RecipeError) as told:
            build_recipe({"rewriting": {"engine": {"url": url, "model": "m", "allow": [*allow]}}})
        assert "secret" not in str(told.value)


def test_no_proxy_stands_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving() as server:
        assert len(ask(server, tmp_path)[0]) == 12


def test_the_key_is_sent_and_stands_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret-123")
    with serving() as server:
        ask(server, tmp_path, key_env="MY_KEY")
        assert {h["Authorization"] for h in server.headers} == {"Bearer sk-secret-123"}
        monkeypatch.setenv("MY_KEY", "another-key")
        ask(server, tmp_path, key_env="MY_KEY")
        assert len(server.bodies) == 12  # and it decides no rewrite
        assert "secret" not in repr(how(server, key_env="MY_KEY"))
    assert all(b"secret" not in file.read_bytes() for file in tmp_path.iterdir())
    with serving(refuse(401, "Incorrect API key provided: another-key")) as server:
        with pytest.raises(EndpointError, match="is the key right") as told:
            ask(server, tmp_path / "other", key_env="MY_KEY")
        assert "another-key" not in str(told.value)


@pytest.mark.parametrize("value", [None, "", "two words", "broken\nheader", "schlüssel"])
def test_what_is_no_key(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(RecipeError, match=r"the variable MY_KEY (is not set|holds what is no key)"):
        Endpoint(url="http://localhost/v1", model="m", key_env="MY_KEY").key()


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"error": {"message": "model 'x' not found"}}, "it does not have the model"),
        ({"error": "model not found"}, "it does not have the model"),
        ({"message": "out of memory", "code": 500}, "it is out of memory"),
        ({"detail": "The server is\noverloaded"}, "it is overloaded"),
        ({"detail": [{"loc": "x"}]}, None),
        ({"error": {"message": f"bad prompt: {SECRET}"}}, None),
        ({"error": {"message": "x" * LONGEST_WORDS + "out of memory"}}, None),
        ({"error": 7, "message": None}, None),
        ("text", None),
        (None, None),
        ([], None),
    ],
)
def test_what_a_server_complains_of_is_passed_on_in_words_of_ours(
    body: object, shown: str | None
) -> None:
    words = complaint(json.dumps(body).encode())
    assert words == (f" (it seems that {shown})" if shown else "")


def test_another_model_or_revision_is_another_rewrite_another_place_is_not(tmp_path: Path) -> None:
    def address(**more: Any) -> list[str]:
        given = {"url": "http://localhost:1/v1", "model": "m", **more}
        return list(Remote(Endpoint(**given), Sampling()).address)

    assert address() == address(url="http://127.0.0.1:2/v1", concurrency=3, retries=0, timeout=1.0)
    others = [address(model="n"), address(revision="2"), address(protocol="completions")]
    assert len({json.dumps(a) for a in (address(), *others)}) == 4
    with serving() as server:
        ask(server, tmp_path)
        ask(server, tmp_path, revision="2")
        assert len(server.bodies) == 24


@pytest.fixture
def lora(base64: BaseModel) -> Iterator[StackedLora]:
    made = StackedLora(base64, "all-linear", SPECS)
    yield made
    made.remove()


def test_a_client_of_a_federation_asks_too_but_not_as_the_global_model(
    lora: StackedLora, tmp_path: Path
) -> None:
    rule = parse_selection("none")
    with serving() as server:
        texts, _ = rewrite(lora, "c0", ROWS, rule, how(server), tmp_path)
        assert [e.response for e in texts] == [f"In short: {e.response}" for e in ROWS]
        flat = lora.fresh("R", 1)[None]
        with pytest.raises(RecipeError, match="cannot wear the global adapter"):
            rewrite(
                lora,
                "c0",
                examples=ROWS,
                selection=rule,
                how=how(server),
                cache=tmp_path,
                teacher=Teacher("x", {"R": flat}),
            )
        assert len(server.bodies) == 12


def test_all_errors_are_users_errors() -> None:
    assert issubclass(EndpointError, FedsdrError)

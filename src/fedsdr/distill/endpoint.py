"""A server that speaks OpenAI's protocol (vLLM, llama.cpp, Ollama, TGI), and one request to it.

Rewriting sends whole records: no proxy stands in between, and no redirect is followed. Of what the
server sends, no message repeats more than the status.
"""

from __future__ import annotations

import json
import logging
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from socket import gaierror
from typing import Any, Literal
from urllib.parse import urlsplit

import httpcore

from fedsdr.distill.reply import BadReply, complaint, read_answer, read_draft
from fedsdr.distill.selection import Draft
from fedsdr.distill.wire import LARGEST_ANSWER, NotHere, TooLarge, TooLate, Wire
from fedsdr.recipe.limits import is_here
from fedsdr.recipe.settings import Endpoint

Then = Literal["again", "busy", "down", "row", "stop"]
LONGEST_WAIT = 600.0  # seconds that a server may ask for
ROW_REFUSED = (400, 413, 422)  # the record may be to blame: too long, say
TRY_AGAIN = (408, 409, 425)


class Unanswered(Exception):
    """`again`: worth another try. `busy`: too, after `wait` seconds if the server said so. `down`:
    nobody is there. `row`: it will not have this record. `stop`: it will have none."""

    def __init__(self, why: str, then: Then, wait: float | None = None) -> None:
        super().__init__(why)
        self.why, self.then, self.wait = why, then, wait


class Line:
    """A connection that is kept open from request to request."""

    def __init__(self, endpoint: Endpoint, api_key: str | None) -> None:
        self.endpoint, self.renamed = endpoint, False  # whether it said that it is another model
        parts = urlsplit(endpoint.url)
        host, path = parts.hostname or "", parts.path.rstrip("/")
        verb = "chat/completions" if endpoint.protocol == "chat" else "completions"
        self._url = httpcore.URL(
            scheme=parts.scheme, host=host, port=parts.port, target=f"{path}/{verb}"
        )
        self._headers: dict[bytes | str, bytes | str] = {
            "Host": parts.netloc,
            "User-Agent": "fedsdr",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        }
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._wire = Wire(here=is_here(host))
        secure = ssl.create_default_context() if parts.scheme == "https" else None
        self._pool = httpcore.ConnectionPool(secure, max_connections=1, network_backend=self._wire)
        # At level DEBUG, with which a program may begin, it would write down what a server sent.
        logging.getLogger("httpcore").setLevel(logging.INFO)

    def ask(self, body: Mapping[str, Any]) -> Draft:
        answer: Answer | None = None
        self._wire.begin(self.endpoint.timeout)
        try:
            with self._pool.stream(
                "POST", self._url, headers=self._headers, content=json.dumps(body).encode()
            ) as response:
                if response.extensions["http_version"] not in (b"HTTP/1.0", b"HTTP/1.1"):
                    raise BadReply("it does not speak HTTP as it should")
                answer = Answer(response.status, response.headers)
                for piece in response.iter_stream():
                    answer.body += piece
            if answer.status != 200:
                raise _refused(self.endpoint, answer)
            kind, coding = answer.header("Content-Type"), answer.header("Content-Encoding")
            reply = read_answer(kind, coding, bytes(answer.body))
            draft = read_draft(self.endpoint.protocol, reply, body["max_tokens"])
            named = reply.get("model")
            self.renamed |= isinstance(named, str) and named != self.endpoint.model
            return draft
        except BadReply as error:
            raise Unanswered(str(error), "again") from None
        except TooLarge:
            what = f"its answer is larger than {LARGEST_ANSWER >> 20} MiB"
            raise Unanswered(what, "again") from None
        except TooLate:
            raise Unanswered(f"no answer within {self.endpoint.timeout:g} s", "again") from None
        except NotHere:
            host = urlsplit(self.endpoint.url).hostname
            raise Unanswered(f"{host} is not this machine here", "stop") from None
        except (OSError, httpcore.NetworkError) as error:
            raise _unreached(error) from None
        except httpcore.ProtocolError:
            # Its message can quote what the server sent.
            why = "it does not speak HTTP as it should"
            if self._wire.ended:
                why = "its answer broke off" if answer else "it hung up without an answer"
            raise Unanswered(why, "again") from None

    def cut(self) -> None:
        """From another thread: the request under way is given up."""
        self._wire.cut()

    def close(self) -> None:
        self._pool.close()


@dataclass(slots=True)
class Answer:
    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytearray = field(default_factory=bytearray)

    def header(self, name: str) -> str:
        """Empty where there is none; the first of several."""
        wanted = name.lower().encode()
        return next((v.decode("latin-1") for n, v in self.headers if n.lower() == wanted), "")


def _unreached(error: Exception) -> Unanswered:
    if isinstance(error, (ConnectionRefusedError, gaierror)):
        return Unanswered(f"does not answer: {error.strerror}", "down")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unanswered(f"its certificate: {error.verify_message}", "stop")
    if isinstance(error, ssl.SSLError):
        return Unanswered("it does not speak TLS as it should", "again")
    if isinstance(error, OSError) and error.errno is not None:
        return Unanswered(os.strerror(error.errno), "again")
    return Unanswered("the connection broke", "again")


def _refused(endpoint: Endpoint, answer: Answer) -> Unanswered:
    status = answer.status
    why = f"HTTP {status}{complaint(bytes(answer.body))}"
    if 300 <= status < 400:
        what = "a redirect, which is not followed: is url (up to /v1) right?"
        return Unanswered(f"HTTP {status}, {what}", "stop")
    wait = _retry_after(answer.header("Retry-After"))
    if status == 429 or (status == 503 and wait is not None):
        return Unanswered(why, "busy", wait)
    if status in TRY_AGAIN or status >= 500:
        return Unanswered(why, "again")
    if status in ROW_REFUSED:
        return Unanswered(why, "row")
    if status in (401, 403):
        hint = "is the key right?" if endpoint.key_env else "name the key's variable in key_env"
        return Unanswered(f"HTTP {status}: {hint}", "stop")
    if status == 404:
        return Unanswered(
            f"HTTP 404: are url (up to /v1) and model {endpoint.model!r} right?", "stop"
        )
    return Unanswered(why, "stop")


def _retry_after(asked: str) -> float | None:
    """Seconds, or a date."""
    asked = asked.strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", asked):
        return min(LONGEST_WAIT, float(asked))
    try:
        when = parsedate_to_datetime(asked)
        when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(LONGEST_WAIT, max(0.0, seconds))

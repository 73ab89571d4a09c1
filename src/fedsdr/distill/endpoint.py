"""A server that speaks OpenAI's protocol (vLLM, llama.cpp, Ollama, TGI), and one request to it.

Rewriting sends whole records: no proxy stands in between, and no redirect is followed.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from ipaddress import ip_address
from socket import gaierror
from typing import Any, Literal
from urllib.parse import urlsplit

from fedsdr.distill.hosts import is_here, refusal
from fedsdr.distill.reply import BadReply, other_model, read_reply, server_words
from fedsdr.distill.selection import Draft
from fedsdr.errors import RecipeError

Then = Literal["again", "busy", "down", "row", "stop"]
LARGEST_ANSWER = 8 << 20  # bytes
LONGEST_WAIT = 600.0  # seconds that a server may ask for
ROW_REFUSED = (400, 413, 422)  # the record may be to blame: too long, say
TRY_AGAIN = (408, 409, 425)


@dataclass(frozen=True, slots=True)
class Endpoint:
    url: str  # up to /v1
    model: str
    revision: str = ""  # of that model, in whatever words; part of a draft's address
    protocol: Literal["chat", "completions"] = "chat"
    concurrency: int = 8
    timeout: float = 120.0  # seconds per request
    retries: int = 5
    allow: tuple[str, ...] = ()
    key_env: str | None = None  # the environment variable that holds the key

    def __post_init__(self) -> None:
        if problem := refusal(self.url, self.allow):
            raise RecipeError(f"rewriting.engine.url: {problem}")

    def key(self) -> str | None:
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "")
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            what = "holds what is no key" if key else "is not set"
            raise RecipeError(f"rewriting.engine.key_env: the variable {self.key_env} {what}")
        return key


class Unanswered(Exception):
    """`again`: worth another try. `busy`: too, after `wait` seconds if the server said so. `down`:
    nobody is there. `row`: it will not have this record. `stop`: it will have none."""

    def __init__(self, why: str, then: Then, wait: float | None = None) -> None:
        super().__init__(why)
        self.why, self.then, self.wait = why, then, wait


@dataclass(slots=True)
class Line:
    """A connection that is kept open from request to request."""

    endpoint: Endpoint
    api_key: str | None = field(repr=False)
    _open: http.client.HTTPConnection | None = None

    def ask(self, body: Mapping[str, Any], texts: Sequence[str]) -> tuple[Draft, str | None]:
        """One draft, and the other model that it comes from, if it says so; `texts` are what the
        record says, which no message may repeat."""
        try:
            status, headers, answer = self._post(json.dumps(body).encode())
            private = [*texts, self.api_key or ""]
            words = partial(server_words, answer, private)
            if status != 200:
                raise _refused(self.endpoint, status, headers, words())
            kind = headers.get("Content-Type", "")
            try:
                draft = read_reply(self.endpoint.protocol, kind, answer, body["max_tokens"])
            except BadReply as error:
                raise Unanswered(f"{error}{words()}", "again") from None
            return draft, other_model(self.endpoint.model, answer, private)
        except (ConnectionRefusedError, gaierror) as error:
            raise Unanswered(f"does not answer: {_reason(error)}", "down") from None
        except ssl.SSLCertVerificationError as error:
            raise Unanswered(f"its certificate: {error.verify_message}", "stop") from None
        except TimeoutError:
            raise Unanswered(f"no answer within {self.endpoint.timeout:g} s", "again") from None
        except (OSError, http.client.HTTPException, BadReply) as error:
            raise Unanswered(_reason(error), "again") from None

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _post(self, body: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
        deadline = time.monotonic() + self.endpoint.timeout
        whole = False
        try:
            line = self._connected()
            sock = line.sock
            sock.settimeout(self.endpoint.timeout)
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            if self.api_key is not None:
                headers["Authorization"] = f"Bearer {self.api_key}"
            path = urlsplit(self.endpoint.url).path.rstrip("/")
            verb = "chat/completions" if self.endpoint.protocol == "chat" else "completions"
            line.request("POST", f"{path}/{verb}", body, headers)
            response = line.getresponse()
            answer = bytearray()
            while len(answer) <= LARGEST_ANSWER:
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                piece = response.read1(1 << 16)
                if not piece:
                    break
                answer += piece
            else:
                raise BadReply(f"its answer is larger than {LARGEST_ANSWER >> 20} MiB")
            if response.length:
                raise BadReply("its answer broke off")
            response.close()  # of the answer; the connection stays
            whole = not response.will_close
            return response.status, response.headers, bytes(answer)
        finally:
            if not whole:
                self.close()

    def _connected(self) -> http.client.HTTPConnection:
        if self._open is None:
            parts = urlsplit(self.endpoint.url)
            secure = parts.scheme == "https"
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            self._open = kind(parts.hostname or "", parts.port, timeout=self.endpoint.timeout)
            self._open.connect()
            peer = str(self._open.sock.getpeername()[0])
            if is_here(parts.hostname or "") and not ip_address(peer).is_loopback:
                raise Unanswered(f"{parts.hostname} is not this machine here, but {peer}", "stop")
        return self._open


def _refused(
    endpoint: Endpoint, status: int, headers: http.client.HTTPMessage, words: str
) -> Unanswered:
    why = f"HTTP {status}{words}"
    if 300 <= status < 400:
        to = urlsplit(headers.get("Location", "")).hostname or "another path"
        return Unanswered(f"{why}, a redirect to {to}, which is not followed", "stop")
    wait = _retry_after(headers)
    if status == 429 or (status == 503 and wait is not None):
        return Unanswered(why, "busy", wait)
    if status in TRY_AGAIN or status >= 500:
        return Unanswered(why, "again")
    if status in ROW_REFUSED:
        return Unanswered(why, "row")
    if status in (401, 403):
        hint = "is the key right?" if endpoint.key_env else "name the key's variable in key_env"
        # Without the server's words, which tend to quote the key.
        return Unanswered(f"HTTP {status}: {hint}", "stop")
    if status == 404:
        return Unanswered(f"{why}: are url (up to /v1) and model {endpoint.model!r} right?", "stop")
    return Unanswered(why, "stop")


def _retry_after(headers: http.client.HTTPMessage) -> float | None:
    """Seconds, or a date."""
    asked = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", asked):
        return min(LONGEST_WAIT, float(asked))
    try:
        when = parsedate_to_datetime(asked)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return min(LONGEST_WAIT, max(0.0, (when - datetime.now(UTC)).total_seconds()))


def _reason(error: Exception) -> str:
    if isinstance(error, http.client.RemoteDisconnected):
        return "it hung up without an answer"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, BadReply):
        return str(error)
    if isinstance(error, http.client.IncompleteRead):
        return "its answer broke off"
    # Messages of http.client can quote what the server sent.
    return f"it does not speak HTTP as it should ({type(error).__name__})"

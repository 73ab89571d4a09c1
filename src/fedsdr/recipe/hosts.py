"""Who may be sent records: this machine, and hosts that are allowed by name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit


def refusal(url: str, allow: Sequence[str]) -> str | None:
    """Why this URL may not be asked; None if it may."""
    if not re.fullmatch(r"[\x21-\x7e]+", url):
        return "must be plain ASCII without spaces: write its host as xn--…, its path with %20"
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return "is not a URL, such as http://127.0.0.1:8000/v1"
    if parts.scheme not in ("http", "https") or not host:
        return "must be an http or https URL, such as http://127.0.0.1:8000/v1"
    if parts.username is not None or parts.query or parts.fragment:
        return "must hold no user, key or query; name the variable with the key in key_env"
    if not is_here(host) and host not in {name.lower() for name in allow}:
        return (
            f"{host!r} is not this machine, and rewriting sends it every record, prompt and "
            "response. If the data may go there, name it: "
            f"rewriting.engine.allow: [{json.dumps(host)}]"
        )
    return None


def is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

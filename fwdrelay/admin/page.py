"""The dashboard as it is served: one file of the package, and a policy that lets nothing run but what is in it."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from .answer import Answer

_INLINE = re.compile(r"<(script|style)\b[^>]*>(.*?)</\1\s*>", re.DOTALL | re.IGNORECASE)


def read_page() -> Answer:
    """
    @return: `/`.
    """
    file = resources.files(__package__).joinpath("dashboard/index.html")
    text = file.read_text(encoding="utf-8")
    return Answer(
        200,
        text.encode(),
        "text/html; charset=utf-8",
        {"Content-Security-Policy": policy(text)},
    )


def policy(html: str) -> str:
    """
    @return: a Content-Security-Policy by which a page may run its own inline scripts and styles, and speak
        with us; nothing else.
    """
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(html):
        digest = hashlib.sha256(text.encode()).digest()
        hashes[kind.lower()].append(f"'sha256-{base64.b64encode(digest).decode()}'")
    return "; ".join(
        [
            "default-src 'none'",
            *(" ".join([f"{kind}-src", *allowed]) for kind, allowed in hashes.items() if allowed),
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )

"""
What real programs sent, kept as files: `corpora/KIND/NAME.hex`, in hexadecimal below lines that say where
it is from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent / "corpora"


def corpus(kind: str) -> Mapping[str, bytes]:
    """
    @param kind: `hellos` or `headers`.
    @return: the bytes by their names.
    """
    return {path.stem: _bytes(path) for path in sorted((_FOLDER / kind).glob("*.hex"))}


def _bytes(path: Path) -> bytes:
    lines = path.read_text(encoding="ascii").splitlines()
    return bytes.fromhex("".join(line for line in lines if not line.startswith("#")))

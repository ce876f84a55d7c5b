"""What has to be shown by whoever asks by TCP: the first line of `admin_token_file`."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import stat
from collections.abc import Callable

from attrs import frozen

from ..config import RelayConfig
from ..errors import ConfigError

WHERE = "relay.admin_token_file"
_LONGEST = 4096
# What `Authorization: Bearer` can show (RFC 6750, section 2.1).
_SHOWABLE = re.compile(r"[A-Za-z0-9._~+/-]+=*")


@frozen
class Token:
    """
    @ivar digest: of the text. Digests are compared, so that not even the length can be found out by how long
        an answer takes.
    """

    digest: bytes

    @classmethod
    def of(cls, text: str) -> Token:
        """@param text: the token itself."""
        return cls(_digest(text.encode()))

    def is_shown_by(self, authorization: str) -> bool:
        """
        @param authorization: the header's value: `Bearer TOKEN`, or `Basic` with it as the password.
        """
        scheme, _, rest = authorization.partition(" ")
        shown = rest.strip().encode("latin-1")
        if scheme.lower() == "basic":
            try:
                shown = base64.b64decode(shown, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(_digest(shown), self.digest)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _open_at_once(path: str, flags: int) -> int:
    # A pipe with nobody at its other end would have us wait.
    return os.open(path, flags | os.O_NONBLOCK)


def read_token(path: str, warn: Callable[[str], object] = lambda sentence: None) -> Token:
    """
    @param warn: gets what is not as it should be, but does.
    @raise ConfigError: there is none in that file.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            mode = os.fstat(file.fileno()).st_mode
            line = file.readline(_LONGEST + 1)
    except OSError as error:
        raise ConfigError(WHERE, f"cannot read {path}: {error.strerror}") from None
    text = line.decode("latin-1").strip()
    if not text:
        raise ConfigError(
            WHERE,
            f"the first line of {path} is empty: put the token there, as openssl rand -hex 32 prints one",
        )
    if len(line) > _LONGEST or not _SHOWABLE.fullmatch(text):
        raise ConfigError(
            WHERE,
            f"the first line of {path} can't be a token: take letters, digits and - . _ ~ + /, as"
            " openssl rand -hex 32 prints them",
        )
    if mode & stat.S_IROTH:
        warn(f"Everybody on this machine can read the token in {path}: chmod o= {path}")
    return Token.of(text)


def token_problems(config: RelayConfig) -> list[ConfigError]:
    """
    @return: what is wrong with the token's file, where one is asked for.
    """
    if not config.admin_token_file:
        return []
    try:
        read_token(config.admin_token_file)
    except ConfigError as error:
        return [error]
    return []

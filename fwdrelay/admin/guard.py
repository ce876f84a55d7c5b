"""
Who may ask, and from where: no web page that a browser of this machine happens to show, nobody without the
token where there is one.

Pure: what is looked at is the head of a request. A page elsewhere can send requests to a local address, but
it can't choose their `Host` (unless its own name leads to that address, which is DNS rebinding), `Origin` or
`Sec-Fetch-Site`: the browser writes those.
"""

from __future__ import annotations

import ipaddress
import re
from http import HTTPStatus

from attrs import define, frozen
from twisted.web.http_headers import Headers

from .answer import Refused
from .token import Token

_AUTHORITY = re.compile(
    r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._~!$&'()*+,;=%-]*))(?::([0-9]{0,5}))?"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_CHALLENGES = 'Basic realm="fwdrelay", charset="UTF-8", Bearer realm="fwdrelay"'
OPEN = frozenset({"/healthz", "/readyz"})
"""What is told without a token: whoever asks there is a machine that knows none."""


@frozen
class Asked:
    """
    The head of a request.

    @ivar target: as it stands in the first line: a path with its query, mostly.
    @ivar version: `HTTP/1.1`.
    """

    method: str
    target: str
    version: str
    headers: Headers

    @property
    def path(self) -> str:
        """The target's path, as it was sent; empty where there is none."""
        target = self.target
        if not target.startswith("/"):
            authority = _absolute(target)
            if authority is None:
                return ""
            target = target.partition("://")[2].removeprefix(authority) or "/"
        return target.partition("?")[0]


class WrongToken(Refused):
    """A token was shown, and it was another one."""


@define
class Guard:
    """
    @ivar checks_host: whether requests come by TCP, where names lead to us that we know nothing of.
    @ivar token: has to be shown; None: there is none.
    """

    checks_host: bool
    token: Token | None = None

    def check(self, asked: Asked) -> None:
        """
        @raise Refused: it is not answered otherwise.
        """
        host = _host(asked)
        if self.checks_host and self.token is None and host is not None and not host.is_local:
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"Host: {host.name} is a name that anybody could give this address: ask for localhost or the"
                " address itself, or set admin_token_file",
            )
        self._check_origin(asked, host)
        if self.token is not None and asked.path not in OPEN:
            self._check_token(self.token, asked.headers)

    def _check_origin(self, asked: Asked, host: Host | None) -> None:
        for origin in _values(asked.headers, "Origin"):
            if not _is_of(origin, host):
                raise Refused(HTTPStatus.FORBIDDEN, f"Origin: {origin} may not ask here")
        for site in _values(asked.headers, "Sec-Fetch-Site"):
            if site not in ("same-origin", "none") and not _is_visit(asked):
                raise Refused(
                    HTTPStatus.FORBIDDEN, f"Sec-Fetch-Site: {site}: other sites may not ask here"
                )

    def _check_token(self, token: Token, headers: Headers) -> None:
        shown = _values(headers, "Authorization")
        challenge = {"WWW-Authenticate": _CHALLENGES}
        if not shown:
            raise Refused(
                HTTPStatus.UNAUTHORIZED,
                "show the token: Authorization: Bearer TOKEN, or Basic with it as the password",
                challenge,
            )
        if len(shown) > 1 or not token.is_shown_by(shown[0]):
            raise WrongToken(HTTPStatus.UNAUTHORIZED, "this is not the token", challenge)


@frozen
class Host:
    """
    Whom a request is for.

    @ivar port: None: the scheme's.
    """

    name: str
    port: int | None

    @property
    def is_local(self) -> bool:
        """Whether nobody else could have made this lead to us: `localhost`, or an address."""
        name = self.name.removesuffix(".")
        if name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _host(asked: Asked) -> Host | None:
    """
    @return: None: it isn't said, as HTTP/1.0 allows (no browser leaves it out).
    @raise Refused: it is missing or makes no sense.
    """
    values = _values(asked.headers, "Host")
    if not values and asked.version == "HTTP/1.0":
        return None
    if len(values) != 1:
        raise Refused(
            HTTPStatus.BAD_REQUEST, f"Host: say it once (it is there {len(values)} times)"
        )
    # RFC 9112, section 3.2.2: of a target with a host of its own, that one counts.
    said = _absolute(asked.target)
    host = _parse(values[0] if said is None else said)
    if host is None:
        raise Refused(HTTPStatus.BAD_REQUEST, f"Host: {values[0]!r} is no host")
    return host


def _absolute(target: str) -> str | None:
    """The authority in a target of the absolute form; None: it is of another form."""
    found = re.match(r"https?://([^/?#]*)", target, re.IGNORECASE)
    return None if found is None else found[1]


def _parse(text: str) -> Host | None:
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    return Host((found[1] or found[2]).lower(), int(found[3]) if found[3] else None)


def _is_of(origin: str, host: Host | None) -> bool:
    """Whether a page of this origin is one of ours."""
    scheme, separator, authority = origin.partition("://")
    default = _DEFAULT_PORTS.get(scheme.lower())
    its = _parse(authority)
    if host is None or not separator or default is None or its is None:
        return False
    return its.name == host.name and (its.port or default) == (host.port or default)


def _is_visit(asked: Asked) -> bool:
    """Whether somebody follows a link to the dashboard; then nothing is done, and the other page sees nothing."""
    return (
        asked.method == "GET"
        and asked.path == "/"
        and _values(asked.headers, "Sec-Fetch-Mode") == ["navigate"]
        and _values(asked.headers, "Sec-Fetch-Dest") == ["document"]
    )


def _values(headers: Headers, name: str) -> list[str]:
    return [value.decode("latin-1") for value in headers.getRawHeaders(name.encode(), [])]

"""Figures as people read them: bytes, rates, times, shares. Numbers in, short text out."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(count: float) -> str:
    """
    @param count: bytes.
    @return: three digits of it or more: `0 B`, `1.50 KiB`, `640 MiB`.
    """
    value, unit = float(count), 0
    # What would be rounded up to 1024 is one of the next unit already.
    while round(value) >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{_three_digits(value) if unit else f'{value:.0f}'} {_UNITS[unit]}"


def rate(per_second: float | None) -> str:
    """
    @param per_second: bytes; None: it is not known yet.
    @return: `1.50 KiB/s`; `-` for what is not known.
    """
    return "-" if per_second is None else f"{size(per_second)}/s"


def duration(seconds: float | None) -> str:
    """
    @param seconds: None: there is none.
    @return: `0.4ms`, `12ms`, `4.2s`, `3m12s`, `2h05m`, `3d04h`; `-` for none.
    """
    if seconds is None:
        return "-"
    if round(seconds, 3) < 1:
        ms = seconds * 1000
        return f"{ms:.0f}ms" if round(ms, 1) >= 10 or not ms else f"{ms:.1f}ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def milliseconds(ms: float | None) -> str:
    """As `duration`."""
    return duration(None if ms is None else ms / 1000)


def percent(share: float) -> str:
    """
    @param share: from 0 to 1.
    @return: `0%`, `33.3%`, `100%`.
    """
    text = f"{share * 100:.1f}"
    return f"{text.removesuffix('.0')}%"


def per_second(count: float | None) -> str:
    """
    @param count: of what happens; None: it is not known yet.
    @return: `12.5/s`; `-` for what is not known.
    """
    if count is None:
        return "-"
    return f"{count:.0f}/s" if count >= 100 or not count else f"{_three_digits(count)}/s"


def moment(text: str) -> str:
    """
    @param text: RFC 3339, UTC.
    @return: to the second: `2026-02-03 12:00:01Z`.
    """
    return f"{text[:10]} {text[11:19]}Z"


def _three_digits(value: float) -> str:
    digits = 2 if round(value, 2) < 10 else 1 if round(value, 1) < 100 else 0
    return f"{value:.{digits}f}"

"""
`file:PATH`: a JSON or TOML file lists the targets.

Who writes the file, and when, is not known here: it may be replaced, rewritten in place, away for a
while, or half-written when it is read.
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from attrs import frozen
from twisted.internet.task import deferLater
from zope.interface import implementer

from ...config import TargetConfig
from ...config.grammar import parse_target
from ...errors import DiscoveryFailed
from ...interfaces import Found, IDiscovery

EVERY = 1.0
"""Seconds between two looks whether the file is another."""
LARGEST = 1024 * 1024
"""Bytes; many times what the targets need that a pool takes. To read a file is to stop for as long."""
_KEYS: Mapping[str, tuple[type, str]] = {
    "host": (str, "a text"),
    "port": (int, "a whole number"),
    "path": (str, "a text"),
    "weight": (int, "a whole number"),
    "backup": (bool, "true or false"),
    "max_sessions": (int, "a whole number"),
    "name": (str, "a text"),
}
"""What a target that is a table may have."""

Stamp: TypeAlias = tuple[int, ...]
"""What is different when a file was written, or replaced."""


@frozen
class _Read:
    """
    What came of reading the file.

    @ivar stamp: empty: it could not be opened.
    @ivar settled: it was read twice like this, a while apart. A file that is written twice within one tick of
        the kernel's clock has the same stamp both times.
    """

    stamp: Stamp
    targets: tuple[TargetConfig, ...]
    problem: str
    settled: bool


@implementer(IDiscovery)
class FileDiscovery:
    """
    @param path: ends in `.json` or `.toml`.
    @raise ValueError: it does not.
    """

    def __init__(self, path: str, clock: Any) -> None:
        self._parse = _parser_for(path)
        self._path = path
        self._clock = clock
        self._read = _Read((), (), "", False)

    async def discover(self) -> Found:
        """
        What the file says. While it says what is wrong in the same way as the last time, nothing new is to
        be told; so this waits until it is another.
        """
        problem = self._read.problem
        while True:
            self._look()
            if not self._read.problem:
                return Found(self._read.targets, EVERY)
            if self._read.problem != problem:
                raise DiscoveryFailed(self._read.problem)
            await deferLater(self._clock, EVERY)

    def _look(self) -> None:
        last = self._read
        if last.settled and self._stamp() == last.stamp:
            return
        stamp: Stamp = ()
        targets: tuple[TargetConfig, ...] = ()
        problem = ""
        try:
            stamp, data = _read_file(self._path)
            targets = targets_in(self._parse(data.decode("utf-8-sig")))
        except OSError as error:
            problem = f"it can't be read: {error.strerror or error}"
        except RecursionError:
            problem = "it has lists in lists in lists: write one list of targets"
        except UnicodeDecodeError as error:
            problem = f"it is not UTF-8: {error.reason} at byte {error.start}"
        except ValueError as error:
            problem = str(error)
        self._read = _Read(stamp, targets, problem, settled=stamp == last.stamp)

    def _stamp(self) -> Stamp:
        try:
            return _stamp_of(os.stat(self._path))
        except OSError:
            return ()


def _stamp_of(status: os.stat_result) -> Stamp:
    # The time of writing can be set, as `cp -p` does. That of the change, which is told besides, can't.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev


def _read_file(path: str) -> tuple[Stamp, bytes]:
    with open(path, "rb", opener=_open) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST} bytes, which are the most that is read")
    return _stamp_of(status), data


def _open(path: str, flags: int) -> int:
    # To open a pipe would wait for whoever writes to the other end.
    return os.open(path, flags | os.O_NONBLOCK)


def _parser_for(path: str) -> Callable[[str], object]:
    if path.endswith(".json"):
        return _parse_json
    if path.endswith(".toml"):
        return _parse_toml
    raise ValueError(f"{path!r} ends in neither .json nor .toml, which tells how it is read")


def _parse_json(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_each_key_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None


def _parse_toml(text: str) -> object:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is not TOML: {error}") from None


def _each_key_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"one object has {twice!r} twice")
    return found


def targets_in(content: object) -> tuple[TargetConfig, ...]:
    """
    @param content: what a file says, parsed.
    @raise ValueError: with a sentence that says which entry is wrong.
    """
    if isinstance(content, dict):
        for key in content:
            if key != "targets":
                raise ValueError(f"{key!r} is not known here: it takes `targets`, a list")
        if "targets" not in content:
            raise ValueError("it has no `targets`: for none at all, write an empty list")
        content = content["targets"]
    if not isinstance(content, list):
        raise ValueError(f"{_short(content)} is not a list of targets")
    targets: dict[str, TargetConfig] = {}
    for number, entry in enumerate(content, 1):
        try:
            target = _target(entry)
            if target.label in targets:
                raise ValueError(
                    f"{target.label} is there twice: give one of them another name, or add their weights"
                )
        except ValueError as error:
            raise ValueError(f"target {number}: {error}") from None
        targets[target.label] = target
    return tuple(targets.values())


def _target(entry: object) -> TargetConfig:
    if isinstance(entry, str):
        return parse_target(entry)
    if not isinstance(entry, dict):
        raise ValueError(
            f"{_short(entry)} is not a target: write a text such as '10.0.0.1:80,weight=2', or a table"
        )
    for key, value in entry.items():
        if key not in _KEYS:
            raise ValueError(f"{key!r} is not known here: it takes {', '.join(_KEYS)}")
        kind, written = _KEYS[key]
        if type(value) is not kind:
            raise ValueError(f"{key} is {_short(value)}: write {written}")
        if isinstance(value, str) and (not value.strip() or "," in value):
            raise ValueError(f"{key} is {value!r}: write a text without commas")
    # One grammar says what is right, however it is written.
    target = parse_target(",".join([_address(entry), *_options(entry)]))
    if "host" in entry and target.path:  # of a host called `unix`
        raise ValueError(f"{entry['host']!r} is not a host name")
    return target


def _address(entry: Mapping[str, Any]) -> str:
    if "path" in entry:
        if "host" in entry or "port" in entry:
            raise ValueError("it has a path and a host or port: write one or the other")
        return f"unix:{entry['path']}"
    if "host" not in entry or "port" not in entry:
        raise ValueError("it needs host and port, or path")
    host = entry["host"]
    return f"[{host}]:{entry['port']}" if ":" in host else f"{host}:{entry['port']}"


def _options(entry: Mapping[str, Any]) -> list[str]:
    options = [
        f"{key.replace('_', '-')}={entry[key]}"
        for key in ("weight", "max_sessions", "name")
        if key in entry
    ]
    return [*options, "backup"] if entry.get("backup") else options


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""
Reading the configuration anew: what is the same whoever does it, one relay or the supervisor of several.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable

from twisted.logger import Logger

from .config import Config, RelayConfig
from .errors import ConfigError, ConfigErrors, FwdrelayError
from .observe.snapshot import Outcome

_TAKE_A_RESTART = ("pump", "admin", "admin_token_file", "keepalive", "user_timeout")
_TAKE_AN_UPGRADE = ("workers", "survive_crashes")


class Reloads:
    """
    What became of those there were.

    @ivar count: how many there were, by result: `success`, `failure`.
    @ivar last: when the last one was, in seconds since the epoch, and its result; None: never.
    """

    log = Logger()

    def __init__(self) -> None:
        self.count: Counter[str] = Counter({"success": 0, "failure": 0})
        self.last: tuple[float, str] | None = None

    def done(self, outcome: Outcome) -> Outcome:
        """There was one more."""
        result = "success" if outcome.okay else "failure"
        self.count[result] += 1
        self.last = time.time(), result
        return outcome

    async def attempt(self, change: Callable[[], Awaitable[str]]) -> Outcome:
        """
        @param change: does it, and tells what it changed; where it raises, nothing was changed.
        """
        try:
            changed = await change()
        except ConfigErrors as wrong:
            for error in wrong.errors:
                self.log.error("{error}", error=error)
            self.log.error(
                "Nothing was changed: {count} wrong in the configuration.",
                count="1 thing is" if len(wrong.errors) == 1 else f"{len(wrong.errors)} things are",
            )
            return self.done(Outcome(False, errors=tuple(map(str, wrong.errors))))
        except FwdrelayError as failed:
            self.log.error("Nothing was changed: {failed}", failed=failed)
            return self.done(Outcome(False, errors=(str(failed),)))
        except Exception:
            self.log.failure("A reload went wrong in a way it never should")
            errors = ("a reload went wrong in a way it never should; the log has more",)
            return self.done(Outcome(False, errors=errors))
        return self.done(Outcome(True, changed))


def try_reload(before: Config, read: Callable[[], Config] | None) -> Outcome:
    """
    @param read: reads the configuration anew; None: there is no file.
    @return: what a reload would come to, as far as that can be known without one.
    """
    if read is None:
        return Outcome(True, "there is no configuration file")
    try:
        config = read()
        refuse_what_takes_a_restart(before, config)
    except ConfigErrors as wrong:
        return Outcome(False, errors=tuple(map(str, wrong.errors)))
    return Outcome(True, told(before, config))


def refuse_what_takes_a_restart(before: Config, after: Config) -> None:
    """
    @raise ConfigErrors: for what can't be changed while the relay runs.
    """
    errors = [
        ConfigError(
            f"relay.{key}",
            f"{_as_written(getattr(after.relay, key))} {takes}; it is"
            f" {_as_written(getattr(before.relay, key))} now",
        )
        for key, takes in (
            *((key, "takes a restart") for key in _TAKE_A_RESTART),
            *((key, _takes_an_upgrade(before.relay)) for key in _TAKE_AN_UPGRADE),
        )
        if getattr(after.relay, key) != getattr(before.relay, key)
    ]
    if errors:
        raise ConfigErrors(errors)


def _takes_an_upgrade(relay: RelayConfig) -> str:
    return (
        "takes an upgrade in place (SIGUSR2), or a restart" if relay.workers else "takes a restart"
    )


def _as_written(value: str | float) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    return f"'{value}'" if isinstance(value, str) else f"'{value:g}s'"


def told(before: Config, after: Config) -> str:
    """What a reload changed, in words."""
    if before == after:
        return "nothing in it has changed"
    parts: list[str] = []
    for word, old, new in (
        ("listener", before.listeners, after.listeners),
        ("pool", before.pools, after.pools),
    ):
        was: dict[str, object] = {each.name: each for each in old}
        now: dict[str, object] = {each.name: each for each in new}
        groups = (
            ("added", [name for name in now if name not in was]),
            ("changed", [name for name in now if name in was and now[name] != was[name]]),
            ("removed", [name for name in was if name not in now]),
        )
        parts += [f"{word} {', '.join(names)} {did}" for did, names in groups if names]
    if before.relay != after.relay:
        parts.append("the relay's own settings changed")
    return "; ".join(parts) or "only the order of its tables has changed"

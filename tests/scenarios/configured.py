"""Relays that are run by a configuration file, which a scenario may write anew."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, Self

from tests.scenarios.relay_process import RelayProcess, connect

IN_FORCE = "The configuration is in force"
UNCHANGED = "Nothing was changed"


class ConfiguredRelay(RelayProcess):
    """
    `twistd -n fwdrelay --config FILE`.

    @ivar file: the configuration file.
    """

    def __init__(self, file: Path, text: str, *options: str, **more: Any) -> None:
        self.file = file
        self.file.write_text(text)
        super().__init__("--config", str(file), *options, listen=False, **more)

    def write(self, text: str) -> None:
        """Put another configuration in the file's place, whole, as editors do."""
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.replace(self.file)

    def reload(self, text: str | None = None, outcome: str = IN_FORCE) -> list[str]:
        """
        SIGHUP, and wait until it is dealt with.

        @param text: another configuration.
        @param outcome: how it is to end.
        @return: what was printed meanwhile.
        """
        if text is not None:
            self.write(text)
        start = len(self.lines)
        self.signal(signal.SIGHUP)
        line = self.wait_for(lambda line: IN_FORCE in line or UNCHANGED in line, start)
        assert outcome in line, "\n".join(self.lines[start:])
        return self.lines[start:]

    def listener(self, name: str) -> tuple[str, int] | str:
        """Where that listener listens, as it said last."""
        found = [line for line in self.lines if f"Listener {name} listens on " in line]
        text = found[-1].partition(" listens on ")[2].split(" ")[0]
        if text.startswith("unix:"):
            return text.removeprefix("unix:")
        host, _, port = text.rpartition(":")
        return host.strip("[]"), int(port)

    def connect_to(self, name: str) -> Any:
        """
        @return: a connection to the listener of that name.
        """
        return connect(self.listener(name))

    def wait_for_line(self, *words: str, start: int = 0) -> str:
        """
        @return: the first line from `start` on that has all of these.
        """
        return self.wait_for(lambda line: all(word in line for word in words), start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if kind is not None:
            self.kill()
            print("\n".join(self.lines))
        else:
            self.stop()

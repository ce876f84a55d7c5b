"""An admission: `blocklist:/etc/blocked` refuses the addresses in that file, one a line."""

from ipaddress import ip_address
from pathlib import Path

from zope.interface import implementer

from fwdrelay.interfaces import IAdmission, IAdmissionPlugin


@implementer(IAdmission)
class Blocklist:
    def __init__(self, path, addresses):
        self.path = path
        self.addresses = addresses

    def admit(self, client):
        return f"{client} is in {self.path}" if client in self.addresses else None


@implementer(IAdmissionPlugin)
class BlocklistPlugin:
    name = "blocklist"

    def make_admission(self, argument, listener):
        try:
            lines = Path(argument).read_text().split()
        except OSError as error:
            raise ValueError(f"blocklist:{argument} can't be read: {error.strerror}") from error
        # In the form in which clients are told: 2001:db8::1, whatever the file has.
        return Blocklist(argument, {str(ip_address(line)) for line in lines})


blocklist = BlocklistPlugin()

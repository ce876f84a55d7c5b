"""An election: `canary:5` gives 5 % of the sessions to targets whose names begin with "canary"."""

from zope.interface import implementer

from fwdrelay.interfaces import IElection, IElectionPlugin
from fwdrelay.upstream.elect import make_election


@implementer(IElection)
class Canary:
    def __init__(self, percent):
        self.percent = percent
        self.due = 0
        self.turns = make_election("round-robin")

    def targets_changed(self, targets):
        self.turns.targets_changed(targets)

    def elect(self, candidates, client):
        canaries = [each for each in candidates if each.label.startswith("canary")]
        others = [each for each in candidates if not each.label.startswith("canary")]
        if canaries and others:
            self.due += self.percent
            if self.due >= 100:
                self.due -= 100
                return self.turns.elect(canaries, client)
        return self.turns.elect(others or canaries, client)


@implementer(IElectionPlugin)
class CanaryPlugin:
    name = "canary"

    def make_election(self, argument):
        if not argument.isdecimal() or int(argument) > 100:
            raise ValueError(f"canary:{argument}: write a whole number of percent, as canary:5")
        return Canary(int(argument))


canary = CanaryPlugin()

"""
A discovery: `catalog:http://example.com/web.json` asks there for targets, every half minute. The answer
is a list of them in JSON, each as on the command line: ["10.0.0.7:80", "10.0.0.8:80,weight=2"].
"""

import json

from twisted.web.client import URI, Agent, readBody
from zope.interface import implementer

from fwdrelay.config.grammar import parse_target
from fwdrelay.errors import DiscoveryFailed
from fwdrelay.interfaces import Found, IDiscovery, IDiscoveryPlugin

EVERY = 30.0
PATIENCE = 5.0


@implementer(IDiscovery)
class Catalog:
    def __init__(self, url, reactor):
        self.url = url
        self.reactor = reactor

    async def discover(self):
        agent = Agent(self.reactor)
        asked = agent.request(b"GET", self.url.encode())
        response = await asked.addTimeout(PATIENCE, self.reactor)
        text = await readBody(response).addTimeout(PATIENCE, self.reactor)
        if response.code != 200:
            raise DiscoveryFailed(f"{self.url} answered {response.code}")
        return Found([parse_target(target) for target in json.loads(text)], ttl=EVERY)


@implementer(IDiscoveryPlugin)
class CatalogPlugin:
    name = "catalog"

    def make_discovery(self, argument, reactor, nameservers):
        if URI.fromBytes(argument.encode()).scheme not in (b"http", b"https"):
            raise ValueError(
                f"catalog:{argument}: write a URL, as catalog:http://example.com/a.json"
            )
        return Catalog(argument, reactor)


catalog = CatalogPlugin()

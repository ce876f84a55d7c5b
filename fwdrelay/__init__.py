"""
A TCP relay as a Twisted plugin: `twistd fwdrelay --help`.

It is a service as well, for a Twisted program of one's own::

    from twisted.internet import reactor

    from fwdrelay.config import Config, ListenerConfig, PoolConfig, TargetConfig
    from fwdrelay.relay import Relay

    config = Config(
        listeners=(ListenerConfig(name="web", listen=("tcp:5678",), pool="servers"),),
        pools=(PoolConfig(name="servers", targets=(TargetConfig(host="localhost", port=80),)),),
    )
    relay = Relay(config, reactor)
    relay.privilegedStartService()  # listens, or raises a fwdrelay.errors.FwdrelayError
    relay.startService()
    reactor.addSystemEventTrigger("before", "shutdown", relay.stopService)  # lets sessions end
    reactor.run()

The process's signals stay the program's; `fwdrelay.process.signals.Signals` is who handles them for
`twistd fwdrelay`.
"""

from ._version import __version__

__all__ = ["__version__"]

"""Tells `twistd` of `fwdrelay`. The rest lives in `fwdrelay.tap`, imported when it is asked for."""

from twisted.application.service import ServiceMaker

fwdrelay = ServiceMaker(
    "fwdrelay",
    "fwdrelay.tap",
    "Relay TCP connections, losing nothing.",
    "fwdrelay",
)

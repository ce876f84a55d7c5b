"""Admissions that somebody else has written, made of what the configuration says."""

from __future__ import annotations

from ..config import ListenerConfig
from ..errors import ConfigError, ConfigErrors
from ..interfaces import IAdmission, IAdmissionPlugin
from ..plugins import make_by_plugin


def make_admissions(config: ListenerConfig, where: str) -> tuple[IAdmission, ...]:
    """
    @param where: of the listener in the configuration, for errors.
    @return: one for each of `config.admit.plugins`.
    @raise ConfigErrors: for those that can't be made.
    """
    made: list[IAdmission] = []
    errors: list[ConfigError] = []
    for index, text in enumerate(config.admit.plugins):
        name, _, argument = text.partition(":")

        def make(plugin: IAdmissionPlugin, argument: str = argument) -> IAdmission:
            return plugin.make_admission(argument, config.name)

        try:
            made.append(make_by_plugin(IAdmissionPlugin, name, IAdmission, make))
        except ValueError as wrong:
            errors.append(ConfigError(f"{where}.admit.plugins[{index}]", str(wrong)))
    if errors:
        raise ConfigErrors(errors)
    return tuple(made)

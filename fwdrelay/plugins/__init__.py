"""
Where plugins live, and how they are found: each is an object in a module of this package that
provides one of the plugin interfaces of `fwdrelay.interfaces`.

Modules of other distributions belong to the package, too: whatever stands in a folder
`fwdrelay/plugins` without an `__init__.py`, anywhere on Python's path; see `twisted.plugin`. Unlike
Twisted's plugins, these are found without a `dropin.cache`: there are few of them, they are looked for
when a configuration is read, and a cache wants to be written where a relay has no right to write.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

from twisted.logger import Logger
from twisted.plugin import pluginPackagePaths
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

__all__ = ["find_plugin", "make_by_plugin"]

T = TypeVar("T")
Made = TypeVar("Made")
__path__ += pluginPackagePaths(__name__)
_log = Logger()
_told: set[str] = set()


def find_plugin(interface: type[T], name: str, built_in: Sequence[str] = ()) -> T:
    """
    @param interface: of the plugin: `IElectionPlugin`, `IDiscoveryPlugin` or `IAdmissionPlugin`.
    @param built_in: names of fwdrelay's own, to be told with those of the plugins.
    @raise ValueError: with a sentence, if there is no such plugin, or more than one, or if it lacks
        something.
    """
    kind = _kind(interface)
    modules, broken = _load()
    plugins: dict[int, tuple[str, Any]] = {}
    for module in modules:
        for value in vars(module).values():
            if _provides(interface, value):
                plugins.setdefault(id(value), (module.__name__, value))
    found = [each for each in plugins.values() if _name(each[1]) == name]
    if not found:
        names = {_name(plugin) for _, plugin in plugins.values()} - {""}
        raise ValueError(_unknown(kind, name, sorted({*built_in, *names}), broken))
    if len(found) > 1:
        where = " and in ".join(module for module, _ in found)
        raise ValueError(f"there is more than one {kind} {name!r}: in {where}")
    ((where, plugin),) = found
    _verify(interface, plugin, f"the {kind} {name!r} in {where} is no {interface.__name__}")
    wanted: T = plugin
    return wanted


def make_by_plugin(
    interface: type[T],
    name: str,
    makes: type[Made],
    make: Callable[[T], Made],
    built_in: Sequence[str] = (),
) -> Made:
    """
    Find a plugin and have it make something.

    @param makes: the interface of what it makes.
    @param make: called with the plugin; returns what it makes.
    @raise ValueError: as `find_plugin` does and as the plugin does; and with a sentence, if the plugin
        fails in any other way or makes something else.
    """
    plugin = find_plugin(interface, name, built_in)
    kind = _kind(interface)
    try:
        made = make(plugin)
    except ValueError:
        raise
    except (Exception, SystemExit) as failed:  # argparse ends the process
        _log.failure("The plugin of the {kind} {name} failed.", kind=kind, name=name)
        raise ValueError(f"the plugin of the {kind} {name!r} failed: {_said(failed)}") from failed
    _verify(makes, made, f"what the plugin of the {kind} {name!r} makes is no {makes.__name__}")
    return made


def _load() -> tuple[list[ModuleType], list[str]]:
    """
    @return: the modules of this package, and a sentence for each that can't be imported.
    """
    modules = []
    broken = []
    importlib.invalidate_caches()  # a plugin may have been installed since
    for name in sorted({each.name for each in pkgutil.iter_modules(__path__)}):
        try:
            modules.append(importlib.import_module(f"{__name__}.{name}"))
        except (Exception, SystemExit) as failed:
            sentence = f"{__name__}.{name} can't be imported: {_said(failed)}"
            broken.append(sentence)
            if sentence not in _told:
                _told.add(sentence)
                _log.warn(
                    "The plugins in {sentence}. They are left out.\n{traceback}",
                    sentence=sentence,
                    traceback=traceback.format_exc(),
                )
    return modules, broken


def _provides(interface: type[Any], value: object) -> bool:
    specification: Any = interface  # zope's interfaces are types for mypy only
    try:
        return bool(specification.providedBy(value))
    except Exception:  # of objects that stand for others, and can't yet
        return False


def _name(plugin: Any) -> str:
    try:
        return str(getattr(plugin, "name", ""))
    except Exception:  # it has none that could be asked for
        return ""


def _unknown(kind: str, name: str, known: Sequence[str], broken: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    among = f" among {', '.join(known)}" if known else ": none is installed"
    question = f"; did you mean {close[0]}?" if close else ""
    return "; ".join([f"there is no {kind} {name!r}{among}{question}", *broken])


def _kind(interface: type[Any]) -> str:
    """What operators call it: `election` for `IElectionPlugin`."""
    return interface.__name__[1:].removesuffix("Plugin").lower()


def _said(failed: BaseException) -> str:
    said = " ".join(str(failed).split())
    return f"{type(failed).__name__}: {said}" if said else type(failed).__name__


def _verify(interface: type[Any], provider: object, complaint: str) -> None:
    try:
        verifyObject(interface, provider)
    except Invalid as lacking:
        # zope tells it in several lines, and an error of the configuration is one.
        raise ValueError(f"{complaint}: {' '.join(str(lacking).split())}") from None
    except Exception as failed:
        raise ValueError(f"{complaint}: {_said(failed)}") from failed

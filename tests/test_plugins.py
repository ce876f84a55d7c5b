"""`fwdrelay.plugins`: how plugins are found; and those of the documentation, installed as others would be."""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import dedent
from typing import Any, ClassVar

from twisted.logger import LogLevel, capturedLogs
from zope.interface import implementer

from fwdrelay import plugins
from fwdrelay.interfaces import (
    IAdmissionPlugin,
    IDiscoveryPlugin,
    IElection,
    IElectionPlugin,
)
from fwdrelay.plugins import find_plugin, make_by_plugin
from fwdrelay.upstream.elect import make_election
from tests.case import SynchronousTestCase
from tests.test_packaging import built

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples" / "plugins"

ELECTION = """
from zope.interface import implementer
from fwdrelay.interfaces import IElection, IElectionPlugin

@implementer(IElection)
class Last:
    def __init__(self, argument):
        self.argument = argument
    def targets_changed(self, targets):
        pass
    def elect(self, candidates, client):
        return candidates[-1]

@implementer(IElectionPlugin)
class Plugin:
    def __init__(self, name):
        self.name = name
    def make_election(self, argument):
        if argument == "wrong":
            raise ValueError("it can't be wrong")
        if argument == "odd":
            raise KeyError("odd")
        return "no election" if argument == "other" else Last(argument)
"""


class PluginsTestCase(SynchronousTestCase):
    """Has a folder of plugins of its own."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="fwdrelay-plugins-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.patch(plugins, "__path__", [str(self.folder)])
        self.addCleanup(self.forget)

    def forget(self) -> None:
        """Let the modules of the folder never have been there."""
        for path in self.folder.glob("*.py"):
            if sys.modules.pop(f"fwdrelay.plugins.{path.stem}", None) is not None:
                delattr(plugins, path.stem)
        importlib.invalidate_caches()

    def module(self, name: str, source: str) -> None:
        """Install one."""
        (self.folder / f"{name}.py").write_text(dedent(source))

    def refused(self, text: str) -> str:
        """What is said of a `balance`."""
        return str(self.assertRaises(ValueError, make_election, text))


class FindTests(PluginsTestCase):
    def test_a_plugin_is_found_by_its_name(self) -> None:
        self.module("mine", ELECTION + "one, other = Plugin('one'), Plugin('other')")
        self.assertEqual(find_plugin(IElectionPlugin, "other").name, "other")

    def test_only_among_those_of_its_kind(self) -> None:
        self.module("mine", ELECTION + "plugin = Plugin('last')")
        wrong = self.assertRaises(ValueError, find_plugin, IDiscoveryPlugin, "last")
        self.assertEqual(str(wrong), "there is no discovery 'last': none is installed")

    def test_what_there_is_instead_is_told(self) -> None:
        self.module("mine", ELECTION + "one, other = Plugin('one'), Plugin('other')")
        wrong = self.assertRaises(ValueError, find_plugin, IElectionPlugin, "othr", ("first",))
        self.assertEqual(
            str(wrong),
            "there is no election 'othr' among first, one, other; did you mean other?",
        )

    def test_two_of_one_name(self) -> None:
        for name in ("mine", "yours"):
            self.module(name, ELECTION + "plugin = Plugin('last')")
        self.assertEqual(
            self.refused("last"),
            "there is more than one election 'last':"
            " in fwdrelay.plugins.mine and in fwdrelay.plugins.yours",
        )

    def test_one_that_two_modules_have(self) -> None:
        self.module("mine", ELECTION + "plugin = also = Plugin('last')")
        self.module("yours", "from fwdrelay.plugins.mine import plugin")
        self.assertEqual(find_plugin(IElectionPlugin, "last").name, "last")

    def test_one_that_lacks_something(self) -> None:
        self.module("mine", ELECTION + "plugin = Plugin('last')\ndel Plugin.make_election")
        said = self.refused("last")
        self.assertIn("the election 'last' in fwdrelay.plugins.mine is no IElectionPlugin: ", said)
        self.assertIn("make_election", said)

    def test_one_without_a_name_is_nobody(self) -> None:
        self.module("mine", ELECTION + "plugin = Plugin('last')\ndel plugin.name")
        self.assertNotIn("None", self.refused("last"))

    def test_one_that_is_installed_while_the_relay_runs(self) -> None:
        self.refused("last")
        self.module("mine", ELECTION + "plugin = Plugin('last')")
        self.assertEqual(find_plugin(IElectionPlugin, "last").name, "last")

    def test_nothing_is_written_beside_them(self) -> None:
        self.module("mine", ELECTION + "plugin = Plugin('last')")
        find_plugin(IElectionPlugin, "last")
        self.assertLessEqual(
            {path.name for path in self.folder.iterdir()}, {"mine.py", "__pycache__"}
        )


class BrokenTests(PluginsTestCase):
    def test_a_module_that_cannot_be_imported_harms_no_other(self) -> None:
        self.module("mine", ELECTION + "plugin = Plugin('last')")
        self.module("broken", "import nothing_of_that_name")
        self.module("leaving", "raise SystemExit('not here')")
        with capturedLogs() as logged:
            for _ in range(2):
                self.assertEqual(find_plugin(IElectionPlugin, "last").name, "last")
        told = [event for event in logged if event["log_level"] is LogLevel.warn]
        self.assertEqual(len(told), 2)  # each once, however often it is looked at
        self.assertIn("nothing_of_that_name", told[0]["sentence"])
        self.assertIn("Traceback", told[0]["traceback"])

    def test_objects_that_cannot_be_asked_harm_no_other(self) -> None:
        self.module(
            "lazy",
            """
            from zope.interface import implementer
            from fwdrelay.interfaces import IElectionPlugin

            class Proxy:
                def __getattr__(self, name):
                    raise RuntimeError("there is no context yet")

            @implementer(IElectionPlugin)
            class Nameless:
                @property
                def name(self):
                    raise RuntimeError("there is no name yet")
                def make_election(self, argument):
                    pass

            proxy, nameless = Proxy(), Nameless()
            """,
        )
        self.module("mine", ELECTION + "plugin = Plugin('last')")
        self.assertEqual(find_plugin(IElectionPlugin, "last").name, "last")
        self.assertTrue(self.refused("other").startswith("there is no election 'other' among"))

    def test_the_reason_is_one_line(self) -> None:
        self.module("broken", "raise ImportError('one\\ntwo')")
        self.assertTrue(self.refused("last").endswith("ImportError: one two"))

    def test_it_is_told_to_who_looks_for_it(self) -> None:
        self.module("broken", "import no_such_thing")
        self.assertTrue(
            self.refused("last").endswith(
                "; fwdrelay.plugins.broken can't be imported:"
                " ModuleNotFoundError: No module named 'no_such_thing'"
            )
        )

    def test_it_is_found_once_it_is_mended(self) -> None:
        self.module("mine", "import nothing_that_there_is")
        self.refused("last")
        self.module("mine", ELECTION + "plugin = Plugin('last')")
        self.assertEqual(find_plugin(IElectionPlugin, "last").name, "last")


class MakeTests(PluginsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.module("mine", ELECTION + "plugin, hides = Plugin('last'), Plugin('first')")

    def test_argument(self) -> None:
        for text, argument in (("last", ""), ("last:", ""), ("last:a:b,c=1", "a:b,c=1")):
            made: Any = make_election(text)
            self.assertEqual(made.argument, argument)

    def test_a_wrong_argument(self) -> None:
        self.assertEqual(self.refused("last:wrong"), "it can't be wrong")

    def test_one_that_fails(self) -> None:
        self.assertEqual(
            self.refused("last:odd"), "the plugin of the election 'last' failed: KeyError: 'odd'"
        )
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_one_that_makes_something_else(self) -> None:
        said = self.refused("last:other")
        self.assertIn("what the plugin of the election 'last' makes is no IElection: ", said)

    def test_our_own_are_not_hidden(self) -> None:
        self.assertEqual(type(make_election("first")).__module__, "fwdrelay.upstream.elect.first")

    def test_what_is_made_is_what_is_returned(self) -> None:
        @implementer(IElection)
        class Made:
            def targets_changed(self, targets: object) -> None:
                """Nothing."""

            def elect(self, candidates: object, client: object) -> Any:
                """Nobody."""

        made = Made()
        self.assertIs(make_by_plugin(IElectionPlugin, "last", IElection, lambda _: made), made)


@functools.cache
def scratch() -> Path:
    """A folder that lasts as long as this process."""
    folder = tempfile.mkdtemp(prefix="fwdrelay-plugins-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def install(what: Path, prefix: Path) -> Path:
    """
    @return: the folder of modules that pip has installed it in.
    """
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--ignore-installed")
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    subprocess.run(
        [sys.executable, *pip, *offline, "--prefix", str(prefix), str(what)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (site,) = prefix.glob("lib*/python*/site-packages")
    return site


@functools.cache
def sources() -> Path:
    """A copy of the examples, as building leaves something behind."""
    return Path(shutil.copytree(EXAMPLES, scratch() / "examples"))


@functools.cache
def installed_alone() -> Path:
    """Where the examples are, somewhere else than fwdrelay."""
    return install(sources(), scratch() / "alone")


@functools.cache
def installed_together() -> Path:
    """Where the examples are, and fwdrelay's wheel too."""
    prefix = scratch() / "together"
    install(built()[1], prefix)
    return install(sources(), prefix)


def environment(*path: Path) -> dict[str, str]:
    """That of a process whose modules are looked for in these folders first."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}


def in_process(source: str, *path: Path) -> Any:
    """What a program prints as JSON, run with these folders on its path. It may say nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(source)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=scratch(),
        env=environment(*path),
    )
    if done.returncode or done.stderr:
        raise AssertionError(f"it exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)


class ExamplesTests(SynchronousTestCase):
    """The examples of the documentation, as somebody who installs them gets them."""

    FIND: ClassVar[str] = """
        import json
        import fwdrelay
        from fwdrelay.interfaces import IAdmissionPlugin, IDiscoveryPlugin, IElectionPlugin
        from fwdrelay.plugins import find_plugin
        found = [
            find_plugin(interface, name)
            for interface, name in (
                (IElectionPlugin, "canary"),
                (IDiscoveryPlugin, "catalog"),
                (IAdmissionPlugin, "blocklist"),
            )
        ]
        print(json.dumps([fwdrelay.__file__, *(type(each).__module__ for each in found)]))
    """
    FOUND: ClassVar[list[str]] = [
        f"fwdrelay.plugins.{name}" for name in ("canary", "catalog", "blocklist")
    ]

    def test_they_are_found_beside_a_checkout(self) -> None:
        where, *found = in_process(self.FIND, installed_alone(), ROOT)
        self.assertEqual(Path(where).parent, ROOT / "fwdrelay")
        self.assertEqual(found, self.FOUND)

    def test_they_are_found_beside_an_installed_fwdrelay(self) -> None:
        site = installed_together()
        where, *found = in_process(self.FIND, site)
        self.assertEqual(Path(where).parent, site / "fwdrelay")
        self.assertEqual(found, self.FOUND)

    def test_they_bring_no_init(self) -> None:
        folder = installed_alone() / "fwdrelay"
        self.assertEqual(list(folder.rglob("__init__.py")), [])

    def test_canary(self) -> None:
        labels, wrong = in_process(
            """
            import json
            from fwdrelay.config import TargetConfig
            from fwdrelay.upstream import Target
            from fwdrelay.upstream.elect import make_election
            names = ("a", "b", "canary-1")
            targets = [Target(TargetConfig(host=name, port=80, name=name)) for name in names]
            election = make_election("canary:25")
            election.targets_changed(targets)
            labels = [election.elect(targets, None).label for _ in range(8)]
            labels += [election.elect(targets[:2], None).label for _ in range(2)]
            labels += [election.elect(targets[2:], None).label for _ in range(2)]
            try:
                make_election("canary:half")
            except ValueError as error:
                print(json.dumps([labels, str(error)]))
            """,
            installed_alone(),
            ROOT,
        )
        self.assertEqual(labels.count("canary-1"), 4)
        self.assertEqual([labels[3], labels[7]], ["canary-1"] * 2)
        self.assertEqual([labels.count("a"), labels.count("b")], [4, 4])
        self.assertIn("canary:half", wrong)

    def test_catalog(self) -> None:
        found, refused, wrong = in_process(
            """
            import json
            from fwdrelay.interfaces import IDiscoveryPlugin
            from fwdrelay.plugins import find_plugin
            from twisted.internet import reactor
            from twisted.internet.defer import Deferred
            from twisted.internet.task import react
            from twisted.web.resource import Resource
            from twisted.web.server import Site
            from twisted.web.static import Data

            async def main(reactor):
                root = Resource()
                root.putChild(b"web.json", Data(b'["10.0.0.7:80", "10.0.0.8:80,weight=2"]', "text/json"))
                port = reactor.listenTCP(0, Site(root), interface="127.0.0.1")
                url = f"http://127.0.0.1:{port.getHost().port}"
                plugin = find_plugin(IDiscoveryPlugin, "catalog")
                found = await plugin.make_discovery(f"{url}/web.json", reactor, ()).discover()
                said = [[(each.label, each.weight) for each in found.targets]]
                try:
                    await plugin.make_discovery(f"{url}/nothing", reactor, ()).discover()
                except Exception as error:
                    said.append(str(error))
                for argument in ("", "/web.json", "ftp://example.com"):
                    try:
                        plugin.make_discovery(argument, reactor, ())
                    except ValueError as error:
                        wrong = str(error)
                    else:
                        raise AssertionError(argument)
                said.append(wrong)
                await port.stopListening()
                print(json.dumps(said))

            react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
            """,
            installed_alone(),
            ROOT,
        )
        self.assertEqual(found, [["10.0.0.7:80", 1], ["10.0.0.8:80", 2]])
        self.assertRegex(refused, r"^http://127\.0\.0\.1:\d+/nothing answered 404$")
        self.assertIn("ftp://example.com", wrong)

    def test_blocklist(self) -> None:
        path = scratch() / "blocked"
        path.write_text("192.0.2.1\n2001:DB8:0::1\n")
        answers, missing, wrong = in_process(
            f"""
            import json
            from fwdrelay.interfaces import IAdmissionPlugin
            from fwdrelay.plugins import find_plugin
            plugin = find_plugin(IAdmissionPlugin, "blocklist")
            admission = plugin.make_admission({str(path)!r}, "web")
            clients = ("192.0.2.1", "192.0.2.2", "2001:db8::1", None)
            said = [[admission.admit(client) for client in clients]]
            open({str(path)!r}, "a").write("somebody\\n")
            for argument in ("/nowhere/blocked", {str(path)!r}):
                try:
                    plugin.make_admission(argument, "web")
                except ValueError as error:
                    said.append(str(error))
            print(json.dumps(said))
            """,
            installed_alone(),
            ROOT,
        )
        self.assertEqual(
            answers, [f"192.0.2.1 is in {path}", None, f"2001:db8::1 is in {path}", None]
        )
        self.assertEqual(
            missing, "blocklist:/nowhere/blocked can't be read: No such file or directory"
        )
        self.assertIn("somebody", wrong)


class PageTests(SynchronousTestCase):
    def test_the_page_shows_the_very_files(self) -> None:
        page = (ROOT / "docs" / "plugins.md").read_text()
        shown = dict(
            re.findall(r"^`(examples/\S+)`:\n\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        )
        files = [EXAMPLES / "pyproject.toml", *EXAMPLES.rglob("*.py")]
        self.assertEqual(
            shown, {str(path.relative_to(ROOT / "docs")): path.read_text() for path in files}
        )
        self.assertEqual(len(shown), 4)

    def test_each_kind_has_one(self) -> None:
        text = "".join(path.read_text() for path in EXAMPLES.rglob("*.py"))
        for interface in (IElectionPlugin, IDiscoveryPlugin, IAdmissionPlugin):
            self.assertIn(f"@implementer({interface.__name__})", text)

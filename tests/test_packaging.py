"""
The package as others get it: what an sdist and the wheel made of it hold, and how the wheel lives
in a virtual environment of its own, from `pip install` to `pip uninstall`.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

from twisted.trial.unittest import SkipTest

from tests.case import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = "twisted/plugins/fwdrelay_plugin.py"


def files_under(folder: Path) -> set[str]:
    """
    The files under a folder, relative to it, without what Python and Twisted keep for speed: Twisted writes
    its cache to a file beside it first, and any process that is a relay may do so at any time.
    """
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts and "dropin.cache" not in path.name and path.is_file()
    }


@functools.cache
def scratch() -> Path:
    """A folder that lasts as long as this process."""
    folder = tempfile.mkdtemp(prefix="fwdrelay-packaging-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@functools.cache
def built() -> tuple[Path, Path]:
    """An sdist, and the wheel that was built from it, in a copy that has just the sources."""
    # A folder of its own for each attempt: what fails is to be told by every test that needs it.
    folder = Path(tempfile.mkdtemp(dir=scratch()))
    copy, out = folder / "source", folder / "dist"
    copy.mkdir()
    for name in ("fwdrelay", "twisted"):
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*dropin.cache*")
        )
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, copy / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy))
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def run(*command: str, status: int = 0, cwd: Path | None = None) -> str:
    """What a command prints. It must exit with `status`."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in {"PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS"}
    }
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        cwd=cwd or scratch(),
        env=inherited | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    if done.returncode != status:
        raise AssertionError(f"{command} exited with {done.returncode}:\n{done.stdout}")
    return done.stdout


class Installed:
    """A virtual environment that fwdrelay's wheel was installed in, with all that it needs."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.bin = folder / "bin"
        self.pip("install", "--quiet", str(built()[1]))
        (self.site,) = folder.glob("lib/python*/site-packages")

    def pip(self, *arguments: str) -> str:
        """Run this environment's pip."""
        return run(str(self.bin / "python"), "-m", "pip", "--disable-pip-version-check", *arguments)

    def twistd(self, *arguments: str, prefix: tuple[str, ...] = ()) -> str:
        """Run this environment's twistd, somewhere else than in the checkout."""
        return run(*prefix, str(self.bin / "twistd"), *arguments)

    def distribution(self, name: str) -> Distribution:
        """What is installed under a name."""
        (info,) = self.site.glob(f"{name}-*.dist-info")
        return PathDistribution(info)


class ContentsTests(SynchronousTestCase):
    def test_wheel(self) -> None:
        with zipfile.ZipFile(built()[1]) as wheel:
            found = {name for name in wheel.namelist() if ".dist-info/" not in name}
            told = {name.partition(".dist-info/")[2] for name in wheel.namelist()} - {""}
        package = {f"fwdrelay/{name}" for name in files_under(ROOT / "fwdrelay")}
        self.assertEqual(found, package | {PLUGIN})
        self.assertIn("LICENSE", {name.removeprefix("licenses/") for name in told})

    def test_sdist(self) -> None:
        with tarfile.open(built()[0]) as sdist:
            found = {name.partition("/")[2] for name in sdist.getnames() if "." in name}
        self.assertLessEqual({"setup.py", "pyproject.toml", "LICENSE", PLUGIN}, found)
        self.assertFalse([name for name in found if name.startswith("tests/")])

    def test_no_package_shadows_twisted(self) -> None:
        self.assertEqual(files_under(ROOT / "twisted"), {"plugins/fwdrelay_plugin.py"})

    def test_one_version(self) -> None:
        from fwdrelay._version import __version__  # as an importer sees it

        for archive in built():
            self.assertTrue(archive.name.startswith(f"fwdrelay-{__version__}"), archive.name)


class LifeTests(SynchronousTestCase):
    """From installing to uninstalling, as one story: its environment takes a while to make."""

    def assert_lists_fwdrelay(self, told: str) -> None:
        self.assertRegex(told, r"(?m)^ *fwdrelay +Relay TCP connections, losing nothing\.")
        self.assertNotIn("Traceback", told)

    def without_rights_to_write(self, site: Path) -> tuple[str, ...]:
        """Take away the rights to write to Twisted's plugins; how to run what must do without."""
        folder = site / "twisted" / "plugins"
        (folder / "dropin.cache").unlink()
        folder.chmod(0o555)
        self.addCleanup(folder.chmod, 0o755)
        if os.geteuid() != 0:
            return ()
        if shutil.which("setpriv") is None:
            raise SkipTest("root may write anywhere, and there is no setpriv to take that away")
        return ("setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override")

    def test_install_use_uninstall(self) -> None:
        installed = Installed(scratch() / "venv")
        twisteds = set(installed.distribution("twisted").files or ())
        self.assertGreater(len(twisteds), 500)
        ours = {str(path) for path in installed.distribution("fwdrelay").files or ()}
        self.assertIn(PLUGIN, ours)
        self.assertEqual(ours & {str(path) for path in twisteds}, set())

        self.assert_lists_fwdrelay(installed.twistd("--help"))
        self.assertIn("--port", installed.twistd("fwdrelay", "--help"))
        (version,) = re.findall(r"fwdrelay-([^-]+)-", built()[1].name)
        told = run(str(installed.bin / "fwdrelayctl"), "--version")
        self.assertEqual(told, f"fwdrelayctl {version}\n")

        # A cache of before the plugin, on a machine that lets nobody renew it.
        prefix = self.without_rights_to_write(installed.site)
        self.assert_lists_fwdrelay(installed.twistd("--help", prefix=prefix))
        self.assertIn("--port", installed.twistd("fwdrelay", "--help", prefix=prefix))
        plugins = installed.site / "twisted" / "plugins"
        self.assertFalse((plugins / "dropin.cache").exists())
        plugins.chmod(0o755)
        installed.twistd("--help")  # leaves a cache that knows fwdrelay

        installed.pip("uninstall", "--quiet", "--yes", "fwdrelay")

        told = installed.twistd("--help")
        self.assertNotIn("fwdrelay", told)
        self.assertNotIn("Traceback", told)
        self.assertRegex(told, r"(?m)^ +web +")
        gone = [str(path) for path in twisteds if not Path(str(path.locate())).exists()]
        self.assertEqual(gone, [])
        left = [
            str(path)
            for path in installed.site.parent.parent.parent.rglob("*")
            if re.search("fwdrelay", path.name)
        ]
        self.assertEqual(left, [])
        self.assertNotIn(b"fwdrelay", (plugins / "dropin.cache").read_bytes())

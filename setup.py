"""What fwdrelay is called, what it needs, and which files make it up."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def version() -> str:
    """The version, read from the one place it is kept, without importing the package."""
    text = (HERE / "fwdrelay" / "_version.py").read_text(encoding="utf-8")
    found = re.search(r"""^__version__\b[^=]*= *["']([^"']+)["']""", text, re.MULTILINE)
    if found is None:
        raise SystemExit('setup.py: fwdrelay/_version.py has no line like: __version__ = "1.2.3"')
    return found[1]


def long_description() -> str:
    """The README, where there is one."""
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


TEST = [
    "build",
    "coverage>=7.10",  # the first whose `patch = ["subprocess"]` measures relays that tests start
    "crc32c",  # with it, proxy-protocol checks checksums
    "hypothesis",
    "playwright",  # drives the system's Chromium through the dashboard
    "proxy-protocol",  # somebody else's reading and writing of PROXY headers
    "pytest>=8.4",
    "pytest-randomly",  # any order, under a seed that is printed
    "pytest-timeout",  # a test that waits for ever fails, and says where it waited
    "pytest-xdist",  # several at a time
    "schemathesis>=4",  # asks the API all that its description allows, and more
    "setuptools>=77",
    "websockets>=14",  # real WebSockets through the relay
    "wheel",
]
BENCH = [
    "matplotlib",
]
CHECK = [
    "mypy",
    "mypy-zope",
    "ruff",
    "towncrier",
    "types-setuptools",
]

setup(
    name="fwdrelay",
    version=version(),
    description="Relay TCP connections, losing nothing: a Twisted plugin.",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    author="the fwdrelay authors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    install_requires=[
        "attrs",
        "cattrs>=24.1",
        "click>=8.2",
        "cryptography>=42",
        "idna",
        "prometheus-client>=0.22",
        "pyopenssl>=25.2",
        "rich>=14",
        "service-identity",
        "twisted>=26.4",
    ],
    extras_require={
        "test": TEST,
        "check": CHECK,
        "bench": BENCH,
        "dev": TEST + CHECK + BENCH,
    },
    # The plugin file is installed beside Twisted's own plugins. No folder above it may get an
    # `__init__.py`: that would shadow Twisted.
    entry_points={"console_scripts": ["fwdrelayctl = fwdrelay.ctl:main"]},
    packages=[*find_packages(include=["fwdrelay", "fwdrelay.*"]), "twisted.plugins"],
    # Stated, so that `pip install -e .` puts this very folder on the path, instead of a finder that
    # knows the packages only: Twisted looks for plugins in folders.
    package_dir={"": "."},
    package_data={
        "fwdrelay.admin": ["dashboard/*"],
        "": ["py.typed", "*.html", "*.css", "*.js", "*.svg", "*.json", "*.txt"],
    },
    zip_safe=False,
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: Twisted",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Internet :: Proxy Servers",
        "Topic :: System :: Networking",
        "Typing :: Typed",
    ],
)

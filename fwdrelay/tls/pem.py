"""
Files of certificates and keys: read once, looked at, and given to OpenSSL as they were looked at.

Whatever is wrong with one becomes a sentence for its place in the configuration; all that is wrong is told
at once. When they change is `fwdrelay.tls.files`'s subject.
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from typing import TypeAlias

from attrs import define, field, frozen
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL

from ..errors import ConfigError, ConfigErrors

LARGEST = 1 << 20
"""Bytes; a system's whole trust store has a quarter of it."""
Stamp: TypeAlias = tuple[int, ...]
"""What is different when a file was written or replaced; empty: there is none that could be read."""
_Expires: TypeAlias = Callable[[Sequence[x509.Certificate]], float]

_CERTIFICATE = re.compile(rb"-----BEGIN ((?:X509 )?CERTIFICATE)-----.*?-----END \1-----", re.DOTALL)
_KEY = re.compile(rb"-----BEGIN ((?:[A-Z0-9]+ )*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)
_ORDINALS = ("first", "second", "third")
_REFUSALS = {
    "ee key too small": "its key is too short for OpenSSL: RSA takes 2048 bits, at least",
    "ca key too small": "the key of an issuer in it is too short for OpenSSL: RSA takes 2048 bits, at least",
    "ca md too weak": "a signature in it is too weak for OpenSSL: it takes SHA-256, at least",
    "key values mismatch": "the key is of another certificate",
}


@frozen
class File:
    """
    A file as it was read.

    @ivar expires: when the earliest of its certificates does, in seconds since the epoch; None: it has none.
        Of a file of authorities, those that have expired already don't count, unless there are no others.
    @ivar digest: of what was in it.
    """

    path: str
    stamp: Stamp
    digest: bytes
    expires: float | None = None


def stamp_of(path: str) -> Stamp:
    """
    @return: of the file that a path leads to now, through all links.
    """
    try:
        return _stamp(os.stat(path))
    except OSError:
        return ()


def _stamp(status: os.stat_result) -> Stamp:
    # The time of writing can be set, as `cp -p` does. That of the change, which is told besides, can't.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev


@frozen
class Chain:
    """
    A certificate, those that vouch for it, and its key.

    @ivar certificates: the own one first.
    @ivar pem: of those.
    @ivar key: PEM, not encrypted.
    """

    path: str
    certificates: Sequence[x509.Certificate]
    pem: bytes
    key: bytes

    @property
    def kind(self) -> str:
        """Of the key: `RSA`, `ECDSA`, `Ed25519` and so on. A context has room for one of each."""
        public = self.certificates[0].public_key()
        if isinstance(public, rsa.RSAPublicKey):
            return "RSA"
        if isinstance(public, ec.EllipticCurvePublicKey):
            return "ECDSA"
        return type(public).__name__.removesuffix("PublicKey")

    def use_in(self, context: SSL.Context) -> None:
        """
        @raise ValueError: OpenSSL doesn't take it; why.
        """
        try:
            with as_path(self.pem) as path:
                context.use_certificate_chain_file(path)
            with as_path(self.key) as path:
                context.use_privatekey_file(path)
            context.check_privatekey()
        except SSL.Error as failed:
            raise ValueError(refusal(failed)) from None


@frozen
class Authorities:
    """
    Whose word is taken for others.

    @ivar certificates: one at least.
    """

    certificates: Sequence[x509.Certificate]
    pem: bytes
    digest: bytes

    def trust_in(self, context: SSL.Context) -> None:
        """
        @raise ValueError: OpenSSL doesn't take them; why.
        """
        try:
            with as_path(self.pem) as path:
                context.load_verify_locations(path)
        except SSL.Error as failed:
            raise ValueError(refusal(failed)) from None


@contextmanager
def as_path(data: bytes) -> Iterator[str]:
    """
    Where a function that wants a file finds these bytes: a path that nobody else can change. OpenSSL takes
    the chains of several certificates from files alone.
    """
    descriptor = os.memfd_create("fwdrelay-pem", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def refusal(failed: SSL.Error) -> str:
    """
    @return: why OpenSSL doesn't take a file, as the end of a sentence.
    """
    queue = failed.args[0] if failed.args else ()
    reasons = [reason for _, _, reason in queue if reason] if isinstance(queue, list) else []
    for reason in reasons:
        if reason in _REFUSALS:
            return _REFUSALS[reason]
    return f"OpenSSL doesn't take it: {reasons[0] if reasons else 'it does not say why'}"


@define
class Loading:
    """
    Files are read for one configuration, and what is wrong with them is gathered.

    @ivar files: those that were read, each once.
    @ivar errors: in the order in which they were found.
    """

    files: dict[str, File] = field(factory=dict)
    errors: list[ConfigError] = field(factory=list)
    _contents: dict[str, bytes] = field(init=False, factory=dict)

    def wrong(self, where: str, problem: str) -> None:
        """Something is wrong at this place."""
        self.errors.append(ConfigError(where, problem))

    def done(self) -> None:
        """
        @raise ConfigErrors: something was wrong.
        """
        if self.errors:
            raise ConfigErrors(self.errors)

    def chain(
        self, certificate: str, key: str, certificate_where: str, key_where: str
    ) -> Chain | None:
        """
        @param key: path; empty: it stands in the certificate's file.
        @return: None: something is wrong, and was noted.
        """
        certificates = self._certificates(certificate, certificate_where, _earliest)
        pem = self._key(key, key_where) if key else self._own_key(certificate, certificate_where)
        if certificates is None or pem is None:
            return None
        problem = _mismatch(certificates, pem)
        if problem:
            path = key or certificate
            self.wrong(key_where if key else certificate_where, f"{path!r}: {problem}")
            return None
        return Chain(certificate, certificates, _pem_of(self._contents[certificate]), pem)

    def authorities(self, path: str, where: str) -> Authorities | None:
        """
        @return: None: something is wrong, and was noted.
        """
        certificates = self._certificates(path, where, _earliest_of_the_living)
        if certificates is None:
            return None
        data = self._contents[path]
        return Authorities(certificates, _pem_of(data), sha256(data).digest())

    def _read(self, path: str, where: str) -> bytes | None:
        if path in self._contents:
            return self._contents[path]
        try:
            stamp, data = _read_file(path)
        except OSError as failed:
            why = (failed.strerror or str(failed)).lower()
            self.wrong(where, f"{path!r} can't be read: {why}")
        except ValueError as problem:
            self.wrong(where, f"{path!r} {problem}")
        else:
            self._contents[path] = data
            self.files[path] = File(path, stamp, sha256(data).digest())
            return data
        return None

    def _certificates(
        self, path: str, where: str, expires: _Expires
    ) -> Sequence[x509.Certificate] | None:
        data = self._read(path, where)
        if data is None:
            return None
        found: list[x509.Certificate] = []
        for block in _CERTIFICATE.finditer(data):
            try:
                with warnings.catch_warnings():
                    # Old authorities have oddities that they are known for.
                    warnings.simplefilter("ignore")
                    found.append(x509.load_pem_x509_certificate(block[0]))
                    found[-1].public_key()
            except (ValueError, UnsupportedAlgorithm) as problem:
                which = _ordinal(len(found))
                self.wrong(where, f"{path!r}: the {which} certificate is damaged: {_said(problem)}")
                return None
        if not found:
            self.wrong(where, f"{path!r} has no certificate: {_without(data)}")
            return None
        file = self.files[path]
        self.files[path] = File(path, file.stamp, file.digest, expires(found))
        return found

    def _own_key(self, path: str, where: str) -> bytes | None:
        """Of a file that has the certificate, too."""
        data = self._contents.get(path, b"")
        if _KEY.search(data):
            return self._key(path, where)
        if _CERTIFICATE.search(data):
            self.wrong(
                where,
                f"{path!r} has no private key: name the key's file, too, or write both into one file",
            )
        return None  # else it was told already that there is no certificate

    def _key(self, path: str, where: str) -> bytes | None:
        data = self._read(path, where)
        if data is None:
            return None
        found = _KEY.search(data)
        if found is None:
            self.wrong(where, f"{path!r} has no private key: {_without(data)}")
            return None
        block = found[0]
        if b"ENCRYPTED" in block:
            self.wrong(
                where,
                f"{path!r}: the private key is encrypted, and nobody is here to be asked for the passphrase: "
                "write it unencrypted (`openssl pkey -in ENCRYPTED -out PLAIN`), readable by the relay alone",
            )
            return None
        try:
            load_pem_private_key(block, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as problem:
            self.wrong(where, f"{path!r}: the private key is damaged: {_said(problem)}")
            return None
        return block


def _earliest(certificates: Sequence[x509.Certificate]) -> float:
    return min(_ends(certificates))


def _earliest_of_the_living(certificates: Sequence[x509.Certificate]) -> float:
    """Trust stores keep authorities that have expired, and do well without them."""
    now = datetime.now(UTC).timestamp()
    ends = _ends(certificates)
    return min((each for each in ends if each > now), default=max(ends))


def _ends(certificates: Sequence[x509.Certificate]) -> list[float]:
    return [each.not_valid_after_utc.timestamp() for each in certificates]


def _read_file(path: str) -> tuple[Stamp, bytes]:
    """
    @raise ValueError: it is not to be read; the end of a sentence that says why.
    """
    # To open a pipe would wait for whoever writes to the other end.
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is not a regular file")
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"is larger than {LARGEST >> 20} MiB, which is the most that is read")
    return _stamp(status), data


def _without(data: bytes) -> str:
    """@return: what a file has instead of what is looked for."""
    if not data.strip():
        return "it is empty"
    if data[:1] == b"\x30":
        return "it looks like DER: convert it to PEM (`openssl x509 -inform der`)"
    if _KEY.search(data):
        return "it has a private key alone"
    if _CERTIFICATE.search(data):
        return "it has certificates alone"
    return "it has to be PEM, where -----BEGIN … stands above what is meant"


def _pem_of(data: bytes) -> bytes:
    """@return: the certificates of a file, without what stands around them."""
    return b"\n".join(block[0] for block in _CERTIFICATE.finditer(data)) + b"\n"


def _mismatch(certificates: Sequence[x509.Certificate], key: bytes) -> str:
    """@return: how certificates and a key don't fit; empty: they do."""
    public = load_pem_private_key(key, None).public_key()
    for number, certificate in enumerate(certificates):
        if certificate.public_key() == public:
            if not number:
                return ""
            which = _ordinal(number)
            return f"the key is that of the {which} certificate: write the server's own one first"
    return "the key doesn't match the certificate"


def _ordinal(number: int) -> str:
    """@param number: from 0."""
    return _ORDINALS[number] if number < len(_ORDINALS) else f"{number + 1}th"


def _said(problem: Exception) -> str:
    """@return: the first line of what a library says."""
    return next(iter(str(problem).splitlines()), "") or "it can't be read"

"""TLS on either side: the certificate that clients see, read again when it changes, and whom engines are believed by."""

from __future__ import annotations

import functools
import os
import ssl
from pathlib import Path

from kvcommons_core.errors import ConfigurationError

from kvcommons_router.settings import RouterSection


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        stat = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)


class ServerTls:
    """What a worker shows to clients. Connections that are open keep the certificate that they began with."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """:raises ConfigurationError: if the files can't be used."""
        self._certificate = certificate
        self._key = key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._seen = self._stamps()
        self._load(self.context)

    def _stamps(self) -> tuple[tuple[int, int, int], ...]:
        return (_stamp(self._certificate), _stamp(self._key))

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self._certificate, self._key, password="")  # nobody is there to be asked for one
        except (OSError, ssl.SSLError) as error:
            remedy = f"can't be used with {self._key} ({error}): give a PEM certificate chain and its key, unencrypted"
            raise ConfigurationError("router.tls_certificate", str(self._certificate), remedy) from error

    def reload_if_changed(self) -> bool:
        """Reads changed files again; whether it did.

        :raises ConfigurationError: if they can't be used; the ones read before stay in force.
        """
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        self._seen = stamps
        self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # half of a pair must not replace what is in use
        self._load(self.context)
        return True


def server_tls(settings: RouterSection) -> ServerTls | None:
    """The TLS of the listening socket, where there is any.

    :raises ConfigurationError: if the files can't be used.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return ServerTls(settings.tls_certificate, settings.tls_key)


@functools.cache
def engine_tls(authority: Path | None) -> ssl.SSLContext:
    """How engines with https are spoken to: their certificates are checked, always.

    :param authority: its certificate; the machine's own authorities without one.
    :raises ConfigurationError: if it can't be read.
    """
    try:
        return ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        remedy = f"can't be read ({error}): give the authority's certificate in PEM"
        raise ConfigurationError("router.engine_ca", str(authority), remedy) from error

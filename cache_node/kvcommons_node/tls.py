"""TLS of the control API: the node's certificate, whose clients are believed, and both again when their files change."""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvcommons_core.errors import StartRefusedError

LOOK_SECONDS: Final = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TlsFiles:
    """PEM files. `client_ca`: None where no client certificates are asked for."""

    cert: Path
    key: Path
    client_ca: Path | None


def files_of(cert: str, key: str, client_ca: str) -> TlsFiles | None:
    """From the settings; None for plain HTTP. :raises StartRefusedError: if one is missing beside the others."""
    if not cert and not key and not client_ca:
        return None
    if not cert or not key:
        missing = "control_tls_cert_file" if not cert else "control_tls_key_file"
        raise StartRefusedError(
            f"{missing} is not set beside the other settings of TLS: give the certificate and its key"
        )
    return TlsFiles(Path(cert), Path(key), Path(client_ca) if client_ca else None)


class Tls:
    """The contexts of one node.

    :raises StartRefusedError: if a file can't be read or is no certificate."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Optional to the handshake, so that probes go through; what may be done without one is decided for each call.
        self.server.verify_mode = ssl.CERT_OPTIONAL if files.client_ca else ssl.CERT_NONE
        self.client = ssl.create_default_context()
        self._load()
        self._seen = self._marks()

    async def run(self) -> None:
        """Loads the files again when they change, until cancelled; what can't be loaded leaves the former in force."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> bool:
        """Whether they had changed and are in force now."""
        marks = self._marks()
        if marks == self._seen:
            return False
        self._seen = marks
        try:
            self._load()
        except StartRefusedError as error:
            logger.warning("the former certificate stays in force: %s", error)
            return False
        logger.info("the control API has a new certificate")
        return True

    def _load(self) -> None:
        files = self._files
        for context in (self.server, self.client):
            try:
                context.load_cert_chain(files.cert, files.key)
                if files.client_ca is not None:
                    context.load_verify_locations(files.client_ca)
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                names = ", ".join(str(one) for one in (files.cert, files.key, files.client_ca) if one is not None)
                raise StartRefusedError(
                    f"control_tls: of {names}: {error}: give PEM files that fit each other"
                ) from error

    def _marks(self) -> list[tuple[int, int]]:
        marks = []
        for path in (self._files.cert, self._files.key, self._files.client_ca):
            try:
                stat = path.stat() if path is not None else None
            except OSError:
                stat = None
            marks.append((stat.st_mtime_ns, stat.st_ino) if stat is not None else (0, 0))
        return marks

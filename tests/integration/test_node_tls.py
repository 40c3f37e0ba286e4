"""The control API over TLS: who may use it, with which certificate, by the daemon and the command."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from kube_certs import write_server
from kvcommons_cli import stats
from kvcommons_core.errors import StartRefusedError
from kvcommons_core.redis_server import free_port
from kvcommons_node.tls import Tls, TlsFiles, files_of
from node_process import NodeProcess


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    write_server(folder, ["127.0.0.1"])
    return folder


def test_only_a_client_with_a_certificate_of_the_authority_is_served(
    folder: Path, certificates: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without one the command is told what to show; with one it is served, and the audit log names it; probes need none."""
    files = [f"--control-tls-cert-file={certificates}/server.crt", f"--control-tls-key-file={certificates}/server.key"]
    node = NodeProcess(folder)
    node.scheme = "https"
    node.authority = certificates / "ca.crt"
    node.start(*files, f"--control-tls-client-ca-file={certificates}/ca.crt")
    try:
        words = ["--url", f"https://127.0.0.1:{node.port}", "--ca-file", str(certificates / "ca.crt")]
        assert stats.main(words) == 1
        assert "no client certificate was shown" in capsys.readouterr().err
        shown = [
            "--cert-file",
            f"{certificates}/kubelet-client.crt",
            "--key-file",
            f"{certificates}/kubelet-client.key",
        ]
        assert stats.main([*words, *shown]) == 0
        assert json.loads(capsys.readouterr().out)["node_id"] == "under-test"
        assert stats.main(["--url", f"https://127.0.0.1:{node.port}"]) == 1  # not an authority of this machine
    finally:
        assert node.stop() == 0


def test_what_is_missing_or_no_certificate_refuses_the_start(certificates: Path, tmp_path: Path) -> None:
    """A key without its certificate, and a file that is none, are named before anything is started."""
    with pytest.raises(StartRefusedError, match="control_tls_cert_file is not set"):
        files_of("", "key", "")
    assert files_of("", "", "") is None
    (tmp_path / "bad.crt").write_text("no certificate")
    with pytest.raises(StartRefusedError, match=r"bad\.crt"):
        Tls(TlsFiles(tmp_path / "bad.crt", certificates / "server.key", None))


def test_a_new_certificate_is_taken_when_its_file_changes(
    certificates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is written over is in force without a restart; a broken one leaves the former."""
    caplog.set_level(logging.INFO)
    for name in ("server.crt", "server.key"):
        (tmp_path / name).write_bytes((certificates / name).read_bytes())
    tls = Tls(TlsFiles(tmp_path / "server.crt", tmp_path / "server.key", certificates / "ca.crt"))
    assert tls.look() is False
    write_server(tmp_path, ["127.0.0.2"])
    assert tls.look() is True
    (tmp_path / "server.crt").write_text("half of it")
    assert tls.look() is False
    assert "stays in force" in caplog.text


def test_a_free_port_is_no_node(certificates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is no key is told by its name, before anything is asked."""
    words = ["--url", f"https://127.0.0.1:{free_port()}", "--cert-file", str(certificates / "ca.crt")]
    assert stats.main(words) == 1
    assert "ca.crt" in capsys.readouterr().err

"""Keys and certificates of a test cluster: an authority, the API server's certificate, the key that signs tokens."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 30
NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


def _write_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    path.touch(mode=0o600)
    path.write_bytes(text)
    return key


def write_signing_key(path: Path) -> Path:
    """The key of ServiceAccount tokens; the API server takes the private one for both its uses."""
    _write_key(path)
    return path


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return (
        builder.serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _issue(
    folder: Path,
    name: str,
    subject: x509.Name,
    usage: x509.ObjectIdentifier,
    authority: tuple[ec.EllipticCurvePrivateKey, x509.Certificate],
    addresses: Sequence[x509.GeneralName] = (),
) -> None:
    """NAME.crt and NAME.key, signed by the authority."""
    signer, parent = authority
    key = _write_key(folder / f"{name}.key")
    issuer = x509.SubjectKeyIdentifier.from_public_key(signer.public_key())
    builder = (
        _builder(subject, parent.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
    )
    if addresses:
        builder = builder.add_extension(x509.SubjectAlternativeName(addresses), critical=False)
    (folder / f"{name}.crt").write_bytes(builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _authority(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = _write_key(folder / "ca.key")
    name = _name("kvcommons test cluster")
    certificate = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key, certificate


def write_server(folder: Path, addresses: Sequence[str]) -> None:
    """The authority; the API server's certificate for these addresses and its names; the one that it shows to kubelets."""
    authority = _authority(folder)
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in NAMES]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    _issue(folder, "server", _name("kube-apiserver"), ExtendedKeyUsageOID.SERVER_AUTH, authority, names)
    group = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters")
    client = x509.Name([group, x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver-kubelet-client")])
    _issue(folder, "kubelet-client", client, ExtendedKeyUsageOID.CLIENT_AUTH, authority)

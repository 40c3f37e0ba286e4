"""Brings uv, pinned by hash, into .cache/uv: from PATH, by pip, from the configured index, by the pip in the distribution's package."""

import base64
import configparser
import glob
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from typing import List, Optional, Tuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PIN = os.path.join(ROOT, ".ci", "requirements", "uv.txt")
FOLDER = os.path.join(ROOT, ".cache", "uv")
SECONDS_MAX = 120
VERSION_MIN = (0, 8)  # dependency groups, conflicts and --torch-backend


class NoUv(Exception):
    """uv can't be brought; the message says what was tried."""


def works(path: str) -> bool:
    try:
        text = subprocess.run(
            [path, "--version"], stdout=subprocess.PIPE, universal_newlines=True, check=False, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    version = re.match(r"uv (\d+)\.(\d+)", text)
    return version is not None and (int(version.group(1)), int(version.group(2))) >= VERSION_MIN


def pinned() -> Tuple[str, str]:
    """(version, sha256) of requirements/uv.txt."""
    with open(PIN) as file:
        text = file.read()
    version = re.search(r"^uv==(\S+)", text, re.MULTILINE)
    digest = re.search(r"--hash=sha256:([0-9a-f]{64})", text)
    if version is None or digest is None:
        raise NoUv(PIN + " pins no uv")
    return version.group(1), digest.group(1)


def by_pip(pip: List[str]) -> Optional[str]:
    """Why it failed, if it did."""
    command = [
        *pip,
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--target",
        FOLDER,
    ]
    done = subprocess.run(
        [*command, "--upgrade", "--require-hashes", "-r", PIN],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        check=False,
    )
    return None if done.returncode == 0 else "pip: " + (done.stdout.strip().splitlines() or ["failed"])[-1]


def by_apt_pip(python: str) -> Optional[str]:
    """By the pip in Debian's and Ubuntu's own package, unpacked, not installed: that takes no rights. Why it failed, if it did."""
    with tempfile.TemporaryDirectory() as folder:
        for command in (["apt-get", "download", "--quiet", "python3-pip-whl"], ["dpkg-deb", "-x", "*.deb", "."]):
            named = [part for word in command for part in (glob.glob(os.path.join(folder, word)) or [word])]
            try:
                done = subprocess.run(
                    named,
                    cwd=folder,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    universal_newlines=True,
                    timeout=SECONDS_MAX,
                    check=False,
                )
            except (OSError, subprocess.SubprocessError) as error:
                return "%s: %s" % (command[0], error)
            if done.returncode != 0:
                return "%s: %s" % (command[0], (done.stdout.strip().splitlines() or ["failed"])[-1])
        wheels = glob.glob(os.path.join(folder, "usr", "share", "python-wheels", "pip-*.whl"))
        return by_pip([python, os.path.join(wheels[0], "pip")]) if wheels else "python3-pip-whl holds no pip"


def configured_index() -> Optional[str]:
    """The index that uv's or pip's settings name."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        if os.environ.get(name):
            return os.environ[name]
    home = os.path.expanduser("~")
    places = [os.environ.get("PIP_CONFIG_FILE", ""), os.path.join(home, ".config", "pip", "pip.conf")]
    for place in [*places, os.path.join(home, ".pip", "pip.conf"), "/etc/pip.conf"]:
        parser = configparser.RawConfigParser()
        try:
            parser.read(place)
        except configparser.Error:
            continue
        for section in ("install", "global"):
            if parser.has_option(section, "index-url"):
                return parser.get(section, "index-url")
    return None


def fetched(address: str) -> bytes:
    """Body of an address; a user and password in it are sent as such."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("https", "http", "file"):
        raise NoUv("an index at %s can't be read" % parts.scheme)
    plain = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    request = urllib.request.Request(plain)
    if parts.username:
        secret = "%s:%s" % (urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or ""))
        request.add_header("Authorization", "Basic " + base64.b64encode(secret.encode()).decode())
    with urllib.request.urlopen(request, timeout=SECONDS_MAX) as answer:
        body = answer.read()  # type: bytes
        return body


def wheel_address(index: str, version: str) -> str:
    """Address of uv's manylinux wheel on a simple index (PEP 503)."""
    page = index.rstrip("/") + "/uv/"
    wanted = "uv-%s-py3-none-manylinux" % version
    for link in re.finditer(r'href="([^"]+)"', fetched(page).decode()):
        address = urllib.parse.urljoin(page, str(link.group(1)).replace("&amp;", "&"))
        name = urllib.parse.urlsplit(address).path.rpartition("/")[2]
        if name.startswith(wanted) and name.endswith("x86_64.whl"):
            return address
    raise NoUv("uv %s is not on %s" % (version, page))


def by_download() -> None:
    version, digest = pinned()
    index = configured_index()
    if index is None:
        raise NoUv("no index is configured")
    body = fetched(wheel_address(index, version))
    if hashlib.sha256(body).hexdigest() != digest:
        raise NoUv("the wheel of uv %s is not the one that is pinned" % version)
    target = os.path.join(FOLDER, "bin", "uv")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(body)) as wheel, open(target + ".new", "wb") as file:
        file.write(wheel.read("uv-%s.data/scripts/uv" % version))
    os.chmod(target + ".new", 0o755)
    os.replace(target + ".new", target)


def bring(python: str = sys.executable) -> str:
    """Path of a uv that works."""
    own = os.path.join(FOLDER, "bin", "uv")
    for path in (shutil.which("uv"), own):
        if path and works(path):
            return path
    print("setup: bringing uv", flush=True)
    tried = [by_pip([python, "-m", "pip"])]
    if tried[-1] is not None:
        try:
            by_download()
            tried.append(None)
        except (NoUv, OSError, zipfile.BadZipFile, KeyError) as error:
            tried.append("download: %s" % error)
    if tried[-1] is not None:
        tried.append(by_apt_pip(python))
    if tried[-1] is not None:
        raise NoUv("uv can't be brought (%s); put uv on PATH, or install python3-pip" % "; ".join(map(str, tried)))
    if not works(own):
        raise NoUv("the uv in %s does not run here; put one on PATH" % own)
    return own


if __name__ == "__main__":
    try:
        print(bring())
    except NoUv as error:
        sys.exit(str(error))

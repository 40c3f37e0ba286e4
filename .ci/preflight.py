"""Says in one message all that this machine lacks, and the one command that installs it. Standard library alone.

Written for any Python 3.6 or newer, so that one that is too old can say so.
"""

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
from typing import Iterator, List, Optional, Set, Tuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PYTHON_MIN, PYTHON_MAX = (3, 11), (3, 13)
GCC_MAJOR_MIN = 11
CLANG_MAJOR_MIN = 14
GIB = 1 << 30
DISK_BYTES_MIN = {"cpu": 9 * GIB, "gpu": 16 * GIB}  # packages, their cache, the model and the build, from nothing
DISK_BYTES_MIN_LATER = 1 * GIB  # where the packages are there already
MEMORY_BYTES_MIN = 12 * GIB  # two engines of 3.5 GiB, a node, and a build or the tests beside them
PYTHON_HINT = "Debian 12, Ubuntu 24.04 and Fedora 40 bring one; on others `uv python install 3.12`"
PROBE = (
    "import os, sys, sysconfig;"
    "print(sys.version_info[0], sys.version_info[1],"
    " int(os.path.exists(os.path.join(sysconfig.get_paths()['include'], 'Python.h'))), sys.executable)"
)


class Python:
    """An interpreter on this machine: version, whether its C headers are here, and its path."""

    def __init__(self, version: Tuple[int, int], headers: bool, path: str) -> None:
        self.version = version
        self.headers = headers
        self.path = path

    @property
    def fits(self) -> bool:
        return PYTHON_MIN <= self.version <= PYTHON_MAX


def output_of(*command: str) -> Optional[str]:
    """What a command prints, or None where it can't be run or fails within 20 s."""
    try:
        done = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def probe_python(path: str) -> Optional[Python]:
    fields = (output_of(path, "-c", PROBE) or "").split(None, 3)
    if len(fields) != 4:
        return None
    return Python((int(fields[0]), int(fields[1])), fields[2] == "1", fields[3].strip())


def find_python() -> Python:
    """The best interpreter here: one that fits and has headers, else one that fits, else the one that runs this."""
    names = [sys.executable, "python3"]
    names += ["python%d.%d" % (PYTHON_MIN[0], minor) for minor in range(PYTHON_MIN[1], PYTHON_MAX[1] + 1)]
    found = [python for python in (probe_python(name) for name in names if name) if python is not None]
    fitting = [python for python in found if python.fits]
    for python in fitting:
        if python.headers:
            return python
    return (fitting or found or [Python((sys.version_info[0], sys.version_info[1]), False, sys.executable)])[0]


def compiler_complaint() -> Optional[str]:
    """None where a C++20 compiler is here. CXX chooses another one, as cmake does."""
    compiler = os.environ.get("CXX", "c++")
    text = output_of(compiler, "--version")
    if text is None and "CXX" not in os.environ:
        compiler, text = "g++", output_of("g++", "--version")
    if text is None:
        return "no C++ compiler (%s)" % compiler
    version = re.search(r"(\d+)\.\d+", text.splitlines()[0])
    major = int(version.group(1)) if version else 0
    least = CLANG_MAJOR_MIN if "clang" in text else GCC_MAJOR_MIN
    if major < least:
        return "%s is version %d; C++20 needs %d (set CXX to a newer one)" % (compiler, major, least)
    return None


def loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def cpu_flags() -> Set[str]:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("flags"):
                    return set(line.split())
    except OSError:
        pass
    return set()


def memory_bytes() -> int:
    """What this process may use at most: the machine's memory, or its cgroup's limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(name) as file:
                text = file.read().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def disk_free(path: str) -> Tuple[int, int]:
    """(device, free bytes) of the file system that would hold a path that need not exist yet."""
    while not os.path.exists(path):
        path = os.path.dirname(path) or "/"
    return os.stat(path).st_dev, shutil.disk_usage(path).free


def gib(count: int) -> str:
    return "%.1f GiB" % (count / float(GIB))


def platform_complaints() -> Iterator[str]:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        yield "this is %s on %s; the locked packages are for Linux on x86_64" % (sys.platform, platform.machine())


def write_complaints() -> Iterator[str]:
    places = [ROOT] + [os.path.join(ROOT, name) for name in (".venv", ".venv-gpu", ".cache", "build")]
    for place in places:
        if os.path.exists(place) and not os.access(place, os.W_OK | os.X_OK):
            yield "no permission to write %s (it belongs to uid %d)" % (place, os.stat(place).st_uid)


def room_complaints(device: str, installed: bool) -> Iterator[str]:
    """Disk for the packages (and for their cache, where that is another file system), and memory to run."""
    needed = DISK_BYTES_MIN_LATER if installed else DISK_BYTES_MIN[device]
    cache = os.environ.get("UV_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "uv"
    )
    seen = set()  # type: Set[int]
    for place in (ROOT, cache):
        file_system, free = disk_free(place)
        if file_system not in seen and free < needed:
            yield "%s free on the disk of %s; %s needed" % (gib(free), place, gib(needed))
        seen.add(file_system)
    if memory_bytes() < MEMORY_BYTES_MIN:
        yield "%s of memory; two engines and a node need %s" % (gib(memory_bytes()), gib(MEMORY_BYTES_MIN))


# What can be installed: (Debian and Ubuntu, Fedora and its kin).
PACKAGES = {
    "compiler": ("g++", "gcc-c++"),
    "make": ("make", "make"),
    "libnuma": ("libnuma1", "numactl-libs"),
    "headers": ("python3-dev", "python3-devel"),
}


def installable(device: str, python: Python) -> Iterator[Tuple[str, Optional[str]]]:
    """(what is missing, its key in PACKAGES or None) of what a package manager may mend."""
    complaint = compiler_complaint()
    if complaint:
        yield complaint, "compiler"
    if shutil.which("make") is None:
        yield "no make", "make"
    if not python.fits:
        wanted = "%d.%d to %d.%d" % (PYTHON_MIN + PYTHON_MAX)
        yield "python3 is %d.%d; %s with its C headers is needed: %s" % (*python.version, wanted, PYTHON_HINT), None
    elif not python.headers:
        yield "no C headers (Python.h) of %s" % python.path, "headers"
    if device == "cpu" and not loads("libnuma.so.1"):
        yield "no libnuma.so.1, which the engine's CPU build links", "libnuma"


def package_names(keys: List[str], manager: str, python: Python) -> List[str]:
    names = []
    for key in keys:
        name = PACKAGES[key][0 if manager == "apt-get" else 1]
        if key == "headers" and manager == "apt-get":
            name = name.replace("python3", "python%d.%d" % python.version)
        names.append(name)
    return names


def install_command(keys: List[str], python: Python) -> str:
    sudo = "" if os.geteuid() == 0 else "sudo "
    for manager in ("apt-get", "dnf"):
        if shutil.which(manager):
            update = sudo + "apt-get update && " if manager == "apt-get" else ""
            return "%s%s%s install -y %s" % (update, sudo, manager, " ".join(package_names(keys, manager, python)))
    return "install with your package manager: " + " ".join(package_names(keys, "apt-get", python))


def complaints(device: str, python: Python, installed: bool) -> Tuple[List[str], Optional[str]]:
    """(lines that say what is missing, the command that installs what can be installed or None)"""
    lines = []  # type: List[str]
    keys = []  # type: List[str]
    for line, key in installable(device, python):
        lines.append(line)
        if key:
            keys.append(key)
    lines.extend(platform_complaints())
    if device == "cpu" and platform.machine() == "x86_64" and "avx2" not in cpu_flags():
        lines.append("this processor has no AVX2, which the engine's CPU build needs")
    lines.extend(write_complaints())
    lines.extend(room_complaints(device, installed))
    return lines, install_command(keys, python) if keys else None


def check(device: str, installed: bool) -> Python:
    """The interpreter to use; exits with the whole message where something is missing. Runs nothing as root."""
    python = find_python()
    lines, command = complaints(device, python, installed)
    if os.environ.get("KVCOMMONS_PREFLIGHT") == "warn":
        for line in lines:
            sys.stderr.write("preflight: %s\n" % line)
        return python
    if lines:
        message = ["This machine lacks:"] + ["  - " + line for line in lines]
        if command:
            message += ["Install what can be installed by:", "  " + command]
        message += ["KVCOMMONS_PREFLIGHT=warn goes on all the same."]
        sys.exit("\n".join(message))
    return python


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    if chosen not in DISK_BYTES_MIN:
        sys.exit("usage: preflight.py [cpu|gpu]")
    print("nothing is missing; Python: " + check(chosen, False).path)

"""Start an engine in an image that knows nothing of kvcommons, from a payload that was added beside it.

    python3 /kvcommons/launch.py --check              says in one line of JSON whether the connector loads in this image
    python3 /kvcommons/launch.py -- COMMAND...        becomes COMMAND with the payload on its PYTHONPATH; where the connector
                                                      does not load, COMMAND serves without the commons

Standard library alone, and no syntax newer than Python 3.7: it must be able to say that an image's Python is too old. The
native module is tried in a child, so that nothing it does there (a missing symbol, a crash) reaches the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys

PAYLOAD_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "python")
MANIFEST_NAME = "manifest.json"
TERMINATION_LOG_PATH = "/dev/termination-log"
REPORT_BYTES_MAX = 4096  # of a container's termination message
MESSAGE_CHARS_MAX = 1200
PROBE_SECONDS_MAX = 120
CONFIG_FLAG = "--kv-transfer-config"

# Runs under the interpreter of the engine. The facts come first: they are there even where the import then kills it.
PROBE = r"""
import importlib.util, json, os, platform, sys, sysconfig
facts = {"python": platform.python_version(), "implementation": platform.python_implementation(),
         "freeThreaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")), "machine": platform.machine(),
         "glibc": "", "engine": None, "engineVersion": None, "engineLacks": []}
try:
    facts["glibc"] = (os.confstr("CS_GNU_LIBC_VERSION") or "").replace("glibc ", "")
except (AttributeError, ValueError, OSError):
    pass
wanted = json.loads(sys.argv[1])
for engine in sorted(wanted):
    spec = importlib.util.find_spec(engine)
    if spec is None or not spec.submodule_search_locations:
        continue
    facts["engine"] = engine
    roots = list(spec.submodule_search_locations)
    for name in wanted[engine]:
        inner = os.path.join(*name.split(".")[1:]) if "." in name else ""
        if inner and not any(os.path.exists(os.path.join(r, inner + end)) for r in roots for end in ("", ".py")):
            facts["engineLacks"].append(name)
    from importlib import metadata
    for distribution in (engine, engine + "-cpu"):
        try:
            facts["engineVersion"] = metadata.version(distribution)
            break
        except metadata.PackageNotFoundError:
            pass
    break
print(json.dumps(facts), flush=True)
from kvcommons_core import _native
import kvcommons_connector.config
print(json.dumps({"native": _native.__file__}), flush=True)
"""


def main(arguments: list[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words[words.index("--") + 1 :] if "--" in words else []
    options = parse(words[: words.index("--")] if "--" in words else words)
    if not options.check and not command:
        sys.stderr.write("kvcommons: nothing to start; give the engine's command after `--`, or --check\n")
        return 2
    environment = with_payload(dict(os.environ), PAYLOAD_PATH)
    report = check(options.python or interpreter_of(command, environment), environment, PAYLOAD_PATH)
    if options.check:
        tell(report, options.report)
        return 1 if options.strict and not report["loaded"] else 0
    return start(command, environment, report, strict=options.strict)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch.py", usage="launch.py [--check] [--report PATH] [--python PATH] [--strict] [-- COMMAND...]"
    )
    parser.add_argument("--check", action="store_true", help="say whether the connector loads here, and end")
    parser.add_argument("--report", default=TERMINATION_LOG_PATH, help="where --check writes its line of JSON as well")
    parser.add_argument("--python", default="", help="the engine's interpreter (found by COMMAND otherwise)")
    parser.add_argument("--strict", action="store_true", help="where it does not load, fail instead of serving without")
    return parser.parse_args(words)


def with_payload(environment: dict[str, str], path: str) -> dict[str, str]:
    """The environment with the payload first on PYTHONPATH; what the image has there stays behind it."""
    image_paths = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != path]
    return {**environment, "PYTHONPATH": os.pathsep.join([path, *image_paths])}


def interpreter_of(command: list[str], environment: dict[str, str]) -> str:
    """The Python that a command runs under: itself, or the one in its first lines; this one where that is not to be seen."""
    found = shutil.which(command[0], path=environment.get("PATH")) if command else None
    if found is None:
        return sys.executable
    if os.path.basename(found).startswith("python"):
        return found
    try:
        with open(found, "rb") as file:
            head = file.read(1024).decode("utf-8", "replace")
    except OSError:
        return sys.executable
    named = re.match(r"#!\s*(?:/usr/bin/env\s+)?(\S*python[\d.]*)\s", head)
    if named is None:  # pip's way around a path that is too long for the kernel
        named = re.match(r"#!/bin/sh\n'''exec' \"?([^\"\n]*python[\d.]*)\"?\s", head)
    path = shutil.which(named.group(1), path=environment.get("PATH")) if named else None
    return path or sys.executable


def check(python: str, environment: dict[str, str], payload_path: str) -> dict[str, object]:
    """Whether the connector loads under ``python``: {loaded, reason, message, and what this image is}."""
    try:
        with open(os.path.join(os.path.dirname(payload_path), MANIFEST_NAME), encoding="utf-8") as file:
            manifest = json.load(file)
    except (OSError, ValueError) as error:
        return verdict("PayloadIncomplete", f"the payload has no readable manifest: {error}", {}, {})
    probe = [python, "-c", PROBE, json.dumps(manifest.get("engineModules", {}))]
    try:
        done = subprocess.run(
            probe,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS_MAX,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return verdict("ProbeFailed", f"{python} could not be run: {error}", {}, manifest)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    facts = answers[0] if answers else {}
    if len(answers) > 1:
        return after_load(facts, manifest)
    reason, message = why_not(done.returncode, done.stderr, facts, manifest)
    return verdict(reason, message, facts, manifest)


def after_load(facts: dict[str, object], manifest: dict[str, object]) -> dict[str, object]:
    """It loads; is the engine one that it knows?"""
    lacks = facts.get("engineLacks")
    if isinstance(lacks, list) and lacks:
        named = f"{facts.get('engine')} {facts.get('engineVersion') or 'of unknown version'}"
        message = f"{named} has no {', '.join(lacks)}, which this connector needs; use a release that it supports"
        return verdict("EngineNotSupported", message, facts, manifest)
    return verdict("Loaded", "the connector loads in this image", facts, manifest)


def why_not(status: int, stderr: str, facts: dict[str, object], manifest: dict[str, object]) -> tuple[str, str]:
    """(reason, message with a remedy) of a probe that did not get as far as loading the native module."""
    python, machine, glibc = str(facts.get("python", "")), facts.get("machine"), str(facts.get("glibc", ""))
    built_for = manifest.get("machine")
    if facts and machine != built_for:
        return "WrongMachine", f"the payload is for {built_for} and this machine is {machine}"
    if facts and not glibc:
        return "GlibcNotFound", f"this image has no glibc (musl?); the payload needs glibc {manifest.get('glibc')}"
    if re.search(r"GLIBC_2\.\d+' not found", stderr):
        return "GlibcTooOld", f"glibc here is {glibc} and the payload needs {manifest.get('glibc')}; use a newer image"
    unfit = facts.get("freeThreaded") or facts.get("implementation") != "CPython"
    if facts and (unfit or not fits(python, manifest.get("pythons"))):
        kind = f"{facts.get('implementation')} {python}{', free-threaded' if facts.get('freeThreaded') else ''}"
        known = " and ".join(map(str, as_list(manifest.get("pythons"))))
        return "PythonNotSupported", f"this image's Python is {kind}; the payload is for CPython {known}"
    if status < 0:
        return "NativeCrashed", f"loading the native module ended the process: {signal_name(-status)}"
    last = [line.strip() for line in stderr.splitlines() if line.strip()][-1:] or [f"no message, status {status}"]
    return "NotLoadable", f"the connector could not be loaded: {last[0]}"


def as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def fits(python: str, pythons: object) -> bool:
    """Whether "3.12.1" is among a manifest's pythons, such as ["3.11", ">=3.12"]."""
    found = [int(part) for part in python.split(".")[:2] if part.isdigit()]
    for entry in map(str, as_list(pythons)):
        least = [int(part) for part in entry.lstrip(">=").split(".")]
        if found == least or (entry.startswith(">=") and found >= least):
            return True
    return False


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def verdict(reason: str, message: str, facts: dict[str, object], manifest: dict[str, object]) -> dict[str, object]:
    kept = {key: facts.get(key) for key in ("python", "glibc", "machine", "engine", "engineVersion")}
    return {
        "loaded": reason == "Loaded",
        "reason": reason,
        "message": message[:MESSAGE_CHARS_MAX],
        "payload": manifest.get("version"),
        **kept,
    }


def tell(report: dict[str, object], path: str) -> None:
    """One line to standard output and to ``path``, where that can be written (a termination log, if the pod has one)."""
    line = json.dumps(report)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    if path == TERMINATION_LOG_PATH and not os.path.exists(path):
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(fitting(report, REPORT_BYTES_MAX))
    except OSError as error:
        sys.stderr.write(f"kvcommons: no report in {path}: {error}\n")


def fitting(report: dict[str, object], bytes_max: int) -> str:
    """The report as JSON of so many bytes at most: its longest texts are cut, never the JSON."""
    kept = dict(report)
    line = json.dumps(kept)
    while len(line) > bytes_max:
        longest = max(
            (key for key, value in kept.items() if isinstance(value, str)),
            key=lambda key: len(json.dumps(kept[key])),
            default="",
        )
        text = kept.get(longest)
        if not isinstance(text, str) or len(text) < 2:
            return json.dumps({"loaded": bool(report.get("loaded")), "reason": "ReportTooLong", "message": ""})
        kept[longest] = text[: len(text) * 3 // 4]
        line = json.dumps(kept)
    return line


def start(command: list[str], environment: dict[str, str], report: dict[str, object], strict: bool) -> int:
    """Become the command; comes back only where that is refused."""
    if not report["loaded"]:
        said = f"{report['reason']}: {report['message']}"
        if strict:
            sys.stderr.write(f"kvcommons: not started, because the connector does not load here: {said}\n")
            return 1
        sys.stderr.write(f"kvcommons: serving WITHOUT the commons, because {said}\n")
        command, environment = without_commons(command), without_payload(environment)
    sys.stderr.flush()
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        sys.stderr.write(f"kvcommons: {command[0]} could not be started: {error}\n")
        return 127


def without_payload(environment: dict[str, str]) -> dict[str, str]:
    """The environment as the image had it."""
    rest = [entry for entry in environment["PYTHONPATH"].split(os.pathsep) if entry != PAYLOAD_PATH]
    left = {key: value for key, value in environment.items() if key != "PYTHONPATH"}
    return {**left, "PYTHONPATH": os.pathsep.join(rest)} if rest else left


def without_commons(command: list[str]) -> list[str]:
    """A command without our connector: the flag and its value go; of several connectors only ours goes."""
    kept: list[str] = []
    words = iter(command)
    for word in words:
        name, equals, value = word.partition("=")
        flag = name.replace("_", "-")
        if not flag.startswith("--"):
            kept.append(word)
        elif flag == CONFIG_FLAG:
            rest = config_without_commons(value if equals else next(words, ""))
            kept += [CONFIG_FLAG, rest] if rest else []
        elif flag.startswith(CONFIG_FLAG + "."):  # --kv-transfer-config.kv_role kv_both
            if not equals:
                next(words, None)
        else:
            kept.append(word)
    return kept


def config_without_commons(text: str) -> str:
    """The value of --kv-transfer-config less our connector; empty where nothing is left. What is not ours is untouched."""
    try:
        config = json.loads(text)
    except ValueError:
        return ""
    if is_ours(config):
        return ""
    inner = config.get("kv_connector_extra_config") if isinstance(config, dict) else None
    members = inner.get("connectors") if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not isinstance(members, list) or not any(map(is_ours, members)):
        return text
    others = [member for member in members if not is_ours(member)]
    return json.dumps({**config, "kv_connector_extra_config": {**inner, "connectors": others}}) if others else ""


def is_ours(config: object) -> bool:
    return isinstance(config, dict) and str(config.get("kv_connector_module_path", "")).startswith(
        "kvcommons_connector"
    )


if __name__ == "__main__":
    sys.exit(main())

"""A stand-in for an engine's API server, as a process of its own: `python fake_engine.py PORT [fail]`.

It starts a child in another session, as real engines start workers, and answers just enough to be found ready."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_arguments: object) -> None:
        """Nothing: the log is for what matters."""


def main() -> int:
    if "fail" in sys.argv:
        sys.stderr.write("no such device\n")
        return 3
    worker = subprocess.Popen(SLEEPER, start_new_session=True)
    sys.stderr.write(f"worker {worker.pid}\n")
    sys.stderr.flush()
    # Left behind on purpose, as vLLM does where its own processes meet.
    os.close(tempfile.mkstemp(prefix="vllm_dist_")[0])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())

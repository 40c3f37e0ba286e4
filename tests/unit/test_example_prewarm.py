"""The example that takes the most retrieved documents of a vector database: what it prints is what prewarm reads."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent.parent / "docs" / "examples" / "most_retrieved.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *words, "--system", "Answer.", "--top", "2"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_most_retrieved_documents_come_first_and_old_retrievals_do_not_count(tmp_path: Path) -> None:
    """Each line is a chat that begins as later requests do; a file that is no database is named."""
    path = tmp_path / "vectors.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE documents (id INTEGER PRIMARY KEY, text TEXT)")
        database.execute("CREATE TABLE retrievals (document_id INTEGER, at INTEGER)")
        database.executemany(
            "INSERT INTO documents VALUES (?, ?)", [(1, "seldom"), (2, "often"), (3, "once"), (4, "old")]
        )
        recent = [(2,), (2,), (2,), (1,), (1,), (3,)]
        database.executemany("INSERT INTO retrievals VALUES (?, unixepoch())", recent)
        database.executemany("INSERT INTO retrievals VALUES (?, 0)", [(4,)] * 9)
        database.commit()
    done = run(str(path))
    assert done.returncode == 0, done.stderr
    told = [json.loads(line)["messages"] for line in done.stdout.splitlines()]
    assert [[one["content"] for one in messages] for messages in told] == [["Answer.", "often"], ["Answer.", "seldom"]]
    (tmp_path / "no.db").write_text("no database")
    refused = run(str(tmp_path / "no.db"))
    assert (refused.returncode, "no.db" in refused.stderr) == (1, True)

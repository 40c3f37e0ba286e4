"""Cache-augmented generation: the documents that a vector database hands out most often, as prewarm's JSON lines.

    python most_retrieved.py vectors.db --system "Answer from the document." --top 200 > documents.jsonl
    kvcommons prewarm --job --model MODEL --name nightly documents.jsonl

Made for a SQLite file, as sqlite-vec keeps one, with a table of texts and one that has a line for each retrieval; another
database answers the same question by the same SELECT. A document is reused by requests that begin as this one does: the
same system prompt, then the document, then the question."""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing

MOST_RETRIEVED = """
    SELECT documents.text, COUNT(*) AS times
    FROM retrievals JOIN documents ON documents.id = retrievals.document_id
    WHERE retrievals.at >= unixepoch() - :seconds
    GROUP BY documents.id ORDER BY times DESC, documents.id LIMIT :top
"""


def lines(path: str, system: str, top: int, days: float) -> Iterator[str]:
    """One JSON object a document, the most retrieved first. :raises sqlite3.Error: if the file is no such database."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        for text, _times in database.execute(MOST_RETRIEVED, {"seconds": days * 86_400, "top": top}):
            messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
            yield json.dumps({"messages": messages})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", help="the SQLite file: documents(id, text), retrievals(document_id, at)")
    parser.add_argument("--system", required=True, help="the system prompt, exactly as requests will have it")
    parser.add_argument("--top", type=int, default=100, help="how many documents (default 100)")
    parser.add_argument("--days", type=float, default=7, help="of how many days' retrievals (default 7)")
    options = parser.parse_args(argv)
    try:
        for line in lines(options.database, options.system, options.top, options.days):
            sys.stdout.write(line + "\n")
    except sqlite3.Error as error:
        sys.stderr.write(f"{options.database}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

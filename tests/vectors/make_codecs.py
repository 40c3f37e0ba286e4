"""Makes codecs.json: the identities of what codecs with loss give back, for implementations in other languages.

python tests/vectors/make_codecs.py [--check]
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from kvcommons_core.codecs import CODEC_VERSION, CODECS, lossy_fingerprint, parse_codec

FILE = Path(__file__).with_name("codecs.json")
SPECS = ("fp8-e4m3", "int8", "int4", "int4:group=64", "k16v8", "lossless")


def rendered() -> str:
    """The file's text."""
    fingerprint = hashlib.sha256(b"an engine").digest()
    document = {
        "about": "Test vectors of kvcommons' codecs: ids, and identities of what codecs with loss give back. Bytes are hex.",
        "codec_version": CODEC_VERSION,
        "codecs": [{"name": codec.name, "id": codec.id, "lossy": codec.lossy} for codec in CODECS],
        "fingerprint": fingerprint.hex(),
        "lossy_fingerprints": [
            {
                "codec": str(spec),
                "id": spec.codec.id,
                "group": spec.group,
                "fingerprint": lossy_fingerprint(fingerprint, spec).hex(),
            }
            for spec in map(parse_codec, SPECS)
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def main() -> int:
    if "--check" in sys.argv[1:]:
        return 0 if FILE.read_text() == rendered() else 1
    FILE.write_text(rendered())
    return 0


if __name__ == "__main__":
    sys.exit(main())

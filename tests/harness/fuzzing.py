"""Fuzz targets of the fast path: built, run on their corpus, and let loose. `make fuzz` runs each for ten minutes.

    python -m tests.harness.fuzzing [SECONDS] [TARGET...]

Needs clang and libclang-rt-dev. What it finds is written into the corpus; a crash is left there as crash-… and is the
exit status.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import which
from typing import Final

ROOT: Final = Path(__file__).parents[2]
FASTPATH: Final = ROOT / "trireme_py" / "fastpath"
FUZZ: Final = ROOT / "tests" / "fuzz"
ENGINE: Final = ("client", "engine", "handover", "mac", "message", "packet", "server", "siphash", "table", "teach")
TARGETS: Final = ("packet", "message", "engine")
FLAGS: Final = ("-std=c11", "-O1", "-g", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all")
LONGEST: Final = {"packet": 1600, "message": 1300, "engine": 400}
"""Octets of an input."""


def build(target: str, folder: Path, compiler: str, *flags: str) -> Path:
    """Compile a target into ``folder``."""
    program = folder / f"fuzz_{target}"
    sources = [str(FASTPATH / f"{name}.c") for name in ENGINE]
    own = str(FUZZ / f"fuzz_{target}.c")
    command = [compiler, *FLAGS, f"-I{FASTPATH}", own, *sources, *flags, "-lcrypto", "-pthread", "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def build_replay(target: str, folder: Path) -> Path:
    """Compile a target that runs on files, with the address and undefined-behaviour sanitizers of gcc."""
    return build(target, folder, "gcc", "-fsanitize=address,undefined", str(FUZZ / "replay.c"))


def build_fuzzer(target: str, folder: Path) -> Path:
    """Compile a target for libFuzzer, with the same sanitizers."""
    return build(target, folder, "clang", "-fsanitize=fuzzer,address,undefined")


def has_libfuzzer() -> bool:
    """Tell whether this machine can build for libFuzzer."""
    if which("clang") is None:
        return False
    with tempfile.TemporaryDirectory(prefix="trireme-fuzz-") as folder:
        empty = Path(folder) / "empty.c"
        empty.write_text(
            "int LLVMFuzzerTestOneInput(void);int LLVMFuzzerTestOneInput(void){return 0;}", encoding="utf-8"
        )
        command = ["clang", "-fsanitize=fuzzer", str(empty), "-o", str(Path(folder) / "empty")]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def corpus(target: str) -> list[str]:
    return sorted(str(path) for path in (FUZZ / "corpus" / target).iterdir())


def fuzz(target: str, folder: Path, seconds: int, found: Path) -> None:
    """Run a target for so long; raises CalledProcessError when it finds something. New inputs go to ``found``."""
    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST[target]}", "-print_final_stats=1", "-verbosity=0"]
    program = build_fuzzer(target, folder)
    crash = f"-artifact_prefix={found}/"
    subprocess.run([program, *options, crash, str(found), str(FUZZ / "corpus" / target)], check=True)


def main(arguments: list[str]) -> int:
    seconds = int(arguments[0]) if arguments else 600
    for target in arguments[1:] or TARGETS:
        print(f"fuzz_{target}: {seconds} s", flush=True)
        with tempfile.TemporaryDirectory(prefix="trireme-fuzz-") as folder:
            fuzz(target, Path(folder), seconds, FUZZ / "corpus" / target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

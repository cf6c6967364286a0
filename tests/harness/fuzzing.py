"""Fuzz targets of the fast path: built, run on their corpus, and let loose. `make fuzz` runs each for ten minutes.

    python -m tests.harness.fuzzing [SECONDS] [TARGET...]

Needs clang and libclang-rt-14-dev. Inputs that reach something new are added to the corpus (tests/fuzz/corpus/); one
that breaks something is left in the working directory as crash-….
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import which
from typing import Final

from bench.bench_handshake import ENGINE, FASTPATH

ROOT: Final = Path(__file__).parents[2]
FUZZ: Final = ROOT / "tests" / "fuzz"
THREAD: Final = ("netlink", "serve", "siphash", "worker")
TARGETS: Final = {"packet": ENGINE, "message": ENGINE, "engine": ENGINE, "queue": THREAD, "conntrack": ("conntrack",)}
"""And the files of the fast path that each is linked with."""
FLAGS: Final = ("-std=c11", "-O1", "-g", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all")
LONGEST: Final = {"packet": 1600, "message": 1300, "engine": 400, "queue": 1200, "conntrack": 400}
"""Octets of an input."""


def build(target: str, folder: Path, compiler: str, *flags: str) -> Path:
    """Compile a target into ``folder``."""
    program = folder / f"fuzz_{target}"
    sources = [str(FASTPATH / f"{name}.c") for name in TARGETS[target]]
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


def unpack(target: str, folder: Path) -> list[Path]:
    """Write a target's corpus into ``folder``: one file for each line, which is a name and an input in hexadecimal."""
    folder.mkdir()
    files = []
    for number, line in enumerate((FUZZ / "corpus" / f"{target}.txt").read_text(encoding="ascii").splitlines()):
        name, _, octets = line.partition(" ")
        files.append(folder / f"{number:04}-{name}")
        files[-1].write_bytes(bytes.fromhex(octets))
    return files


def add(target: str, found: Path) -> None:
    """Add the inputs in ``found`` to a target's corpus, but for those that broke something."""
    path = FUZZ / "corpus" / f"{target}.txt"
    lines = path.read_text(encoding="ascii").splitlines()
    known = {line.partition(" ")[2] for line in lines}
    fresh = {one.read_bytes().hex() for one in found.iterdir() if not is_harm(one)} - known
    path.write_text("\n".join([*lines, *(f"found {octets}" for octets in sorted(fresh) if octets)]) + "\n", "ascii")


def is_harm(path: Path) -> bool:
    """Tell whether libFuzzer left this file because an input broke something."""
    return path.name.startswith(("crash-", "leak-", "timeout-", "oom-"))


def fuzz(target: str, folder: Path, seconds: int, harm: Path) -> None:
    """Run a target for so long, in ``folder``.

    Raises CalledProcessError, and leaves the input in ``harm``, when something breaks.
    """
    seeds, found = folder / "seeds", folder / "found"
    unpack(target, seeds)
    found.mkdir()
    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST[target]}", "-verbosity=0", f"-artifact_prefix={harm}/"]
    # libFuzzer's limit of memory reads ru_maxrss, which a process inherits from whoever executes it: behind a long test
    # run, 2 GB from the start. So only single allocations are limited; leaks are the address sanitizer's to find.
    options += ["-rss_limit_mb=0", "-malloc_limit_mb=256"]
    subprocess.run([build_fuzzer(target, folder), *options, str(found), str(seeds)], check=True)


def keep(target: str, folder: Path) -> None:
    """Add what the corpus did not reach to it, after :func:`fuzz` in the same folder."""
    merged = folder / "merged"
    merged.mkdir()
    folders = [str(one) for one in (merged, folder / "seeds", folder / "found")]
    subprocess.run([str(folder / f"fuzz_{target}"), "-set_cover_merge=1", *folders], check=True, capture_output=True)
    add(target, merged)


def main(arguments: list[str]) -> int:
    seconds = int(arguments[0]) if arguments else 600
    for target in arguments[1:] or TARGETS:
        print(f"fuzz_{target}: {seconds} s", flush=True)
        with tempfile.TemporaryDirectory(prefix="trireme-fuzz-") as folder:
            fuzz(target, Path(folder), seconds, Path.cwd())
            keep(target, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

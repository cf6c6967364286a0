"""The laws of the repository that a machine can check."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for package in ("trireme_py", "policy", "agent") for path in (ROOT / package).rglob("*.py"))
LONGEST_FILE = 600
LARGEST_FILE = 1 << 20
MUTABLE_CALLS = {"Counter", "OrderedDict", "bytearray", "defaultdict", "deque", "dict", "list", "set"}


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_a_file_fits_in_one_reading() -> None:
    too_long = [path for path in SOURCES if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST_FILE]
    assert not names(too_long)


def test_every_module_says_what_it_is_for() -> None:
    silent = [path for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not names(silent)


def test_no_module_level_mutable_state() -> None:
    """A table in capitals is a constant; any other container could be state, and state is passed as an argument."""
    found = []
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            called = node.value.func if isinstance(node.value, ast.Call) else None
            empty = isinstance(node.value, ast.List | ast.Set | ast.Dict) and not ast.unparse(node.value).strip("[]{}")
            container = isinstance(node.value, ast.List | ast.Set | ast.Dict)
            maker = isinstance(called, ast.Name) and called.id in MUTABLE_CALLS
            for target in targets:
                constant = isinstance(target, ast.Name) and (target.id.isupper() or target.id.startswith("__"))
                if empty or ((container or maker) and not constant):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(target)}")
        found += [
            f"{path.relative_to(ROOT)}:{node.lineno} global"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Global)
        ]
    assert not found


def test_the_readme_s_commands_exist() -> None:
    commands = set(re.findall(r"^\s*make ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test"} <= commands <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_readme_s_links_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)} -> {link}"
        for page in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("docs/*/*.md")]
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
        if ".venv" not in page.parts and not (page.parent / link).exists()
    ]
    assert not broken


def test_every_page_is_in_the_list_of_them() -> None:
    docs = ROOT / "docs"
    linked = {
        (docs / link).resolve()
        for link in re.findall(r"\]\(([^)#]+)\)", (docs / "README.md").read_text(encoding="utf-8"))
    }
    pages = {*docs.glob("*.md"), ROOT / "manifests" / "README.md"} - {docs / "README.md"}
    assert not names(sorted(pages - linked))


def test_the_readme_s_claims_name_tests() -> None:
    kernel = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "kernel").glob("test_*.py"))
    tests = re.findall(r"^def (test_\w+)", kernel, re.MULTILINE)
    rows = re.findall(r"^\| .+ \| `([a-z_ ]+)` \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows
    unknown = [name for row in rows for name in row.split(" or ") if not any(name in test for test in tests)]
    assert not unknown


def test_nothing_large_is_checked_in() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout
    tracked = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    assert not names([path for path in tracked if path.is_file() and path.stat().st_size > LARGEST_FILE])

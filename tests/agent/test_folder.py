from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent import config
from agent.cli import main
from agent.folder import Folder, FolderReader
from trireme_py.errors import ConfigError

POD = "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}\n"
POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
"""

AGENT = "apiVersion: trireme.io/v1alpha1\nkind: AgentConfig\nspec: {trustDomain: one}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config").mkdir()
    return tmp_path / "config"


@pytest.fixture
def reader(folder: Path, tmp_path: Path) -> FolderReader:
    return FolderReader(folder, tmp_path / "last-good")


def pod(name: str, app: str = "web") -> str:
    return POD.format(name=name, app=app)


def keys(state: Folder) -> set[str]:
    return {item.key for item in state.objects}


def apps(state: Folder) -> dict[str, str]:
    return {one.name: one.labels["app"] for one in state.pods}


def test_a_broken_file_stays_as_it_was_while_others_change(folder: Path, reader: FolderReader) -> None:
    (folder / "a.yaml").write_text(pod("a", "one") + "---\n" + POLICY)
    (folder / "b.yaml").write_text(pod("b", "one"))
    assert keys(reader.first()) == {"Pod/shop/a", "NetworkPolicy/shop/only-web", "Pod/shop/b"}
    (folder / "a.yaml").write_text(pod("a", "two") + "---\n" + POLICY.replace("podSelector", "podSelectr"))
    (folder / "b.yaml").write_text(pod("b", "two"))
    state = reader.read()
    assert apps(state) == {"a": "one", "b": "two"}
    assert "NetworkPolicy/shop/only-web" in keys(state)
    (problem, *_) = state.problems
    assert (problem.file, problem.field) == (str(folder / "a.yaml"), "spec.podSelectr")
    assert problem.line == 9
    (folder / "a.yaml").write_text(pod("a", "three"))
    state = reader.read()
    assert apps(state) == {"a": "three", "b": "two"}
    assert keys(state) == {"Pod/shop/a", "Pod/shop/b"}
    assert not state.problems


def test_a_deleted_file_takes_its_objects_along_also_after_it_was_broken(folder: Path, reader: FolderReader) -> None:
    (folder / "a.yaml").write_text(pod("a"))
    reader.first()
    (folder / "a.yaml").write_text("kind: [")
    assert keys(reader.read()) == {"Pod/shop/a"}
    (folder / "a.yaml").unlink()
    assert not reader.read().objects


def test_an_object_that_moves_out_of_a_file_that_breaks_is_taken_from_its_new_place(
    folder: Path, reader: FolderReader
) -> None:
    (folder / "b.yaml").write_text(pod("p", "old"))
    reader.first()
    (folder / "b.yaml").write_text("kind: [")
    (folder / "c.yaml").write_text(pod("p", "new"))
    assert apps(reader.read()) == {"p": "new"}


def test_a_second_copy_of_an_object_breaks_its_file_alone(folder: Path, reader: FolderReader) -> None:
    (folder / "a.yaml").write_text(pod("p", "first"))
    (folder / "b.yaml").write_text(pod("q", "one"))
    reader.first()
    (folder / "b.yaml").write_text(pod("q", "two") + "---\n" + pod("p", "second"))
    state = reader.read()
    assert apps(state) == {"p": "first", "q": "one"}
    assert "is there already" in state.problems[0].message


def test_a_second_copy_does_not_take_an_object_from_the_file_it_was_in(folder: Path, tmp_path: Path) -> None:
    (folder / "b.yaml").write_text(pod("p", "first"))
    reader = FolderReader(folder, tmp_path / "last-good")
    reader.first()
    (folder / "a.yaml").write_text(pod("q") + "---\n" + pod("p", "second"))
    for state in (reader.read(), reader.read()):
        assert apps(state) == {"p": "first"}
        assert [problem.file for problem in state.problems] == [str(folder / "a.yaml")]
    with pytest.raises(ConfigError, match=r"a\.yaml:7: metadata\.name: Pod/shop/p is there already"):
        FolderReader(folder, tmp_path / "last-good").first()
    (folder / "b.yaml").unlink()
    assert apps(reader.read()) == {"p": "second", "q": "web"}


@pytest.mark.parametrize("kind", ["NetworkPolcy", "Networkpolicy", "NetworkPolicies"])
def test_a_misspelled_kind_breaks_its_file(folder: Path, reader: FolderReader, kind: str) -> None:
    (folder / "a.yaml").write_text(POLICY)
    reader.first()
    (folder / "a.yaml").write_text(POLICY.replace("NetworkPolicy", kind))
    state = reader.read()
    assert keys(state) == {"NetworkPolicy/shop/only-web"}
    assert [str(problem) for problem in state.problems] == [
        f"{folder}/a.yaml:2: kind: {kind} is not a known kind; did you mean NetworkPolicy?"
    ]


def test_a_broken_file_at_the_start_is_refused(folder: Path, reader: FolderReader) -> None:
    (folder / "a.yaml").write_text(POLICY.replace("podSelector", "podSelectr"))
    with pytest.raises(ConfigError, match=r"a\.yaml:5: spec\.podSelectr: ") as caught:
        reader.first()
    advised = str(caught.value).rpartition("run: trireme ")[2].split()
    done = CliRunner().invoke(main, advised)
    assert "spec.podSelectr" in done.stdout, "the advice can be pasted"


def test_a_restart_beside_a_broken_file_continues_with_its_last_good_state(folder: Path, tmp_path: Path) -> None:
    (folder / "a.yaml").write_text(pod("a", "good"))
    FolderReader(folder, tmp_path / "last-good").first()
    (folder / "a.yaml").write_text("kind: [")
    restarted = FolderReader(folder, tmp_path / "last-good")
    state = restarted.first()
    assert apps(state) == {"a": "good"}
    assert state.problems
    assert apps(restarted.read()) == {"a": "good"}


def test_a_file_that_is_gone_leaves_no_copy_to_come_back(folder: Path, tmp_path: Path) -> None:
    (folder / "a.yaml").write_text(pod("a", "old"))
    reader = FolderReader(folder, tmp_path / "last-good")
    reader.first()
    (folder / "a.yaml").unlink()
    reader.read()
    (folder / "a.yaml").write_text("kind: [")
    with pytest.raises(ConfigError):
        FolderReader(folder, tmp_path / "last-good").first()


def test_an_agent_started_elsewhere_finds_the_copies_and_only_what_is_in_force(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.yaml").write_text(pod("a", "good"))
    (folder / "gone.yaml").write_text(pod("b"))
    FolderReader(folder, tmp_path / "last-good").first()
    (folder / "a.yaml").write_text("kind: [")
    (folder / "gone.yaml").unlink()
    monkeypatch.chdir(folder)
    assert apps(FolderReader(Path(), tmp_path / "last-good").first()) == {"a": "good"}
    assert len(list((tmp_path / "last-good").iterdir())) == 1


def test_a_long_name_has_a_copy_like_any_other(folder: Path, tmp_path: Path) -> None:
    files = [folder / f"{letter * 240}.yaml" for letter in "ab"]
    for file in files:
        file.write_text(pod(file.name[0]))
    FolderReader(folder, tmp_path / "last-good").first()
    files[0].write_text("kind: [")
    assert set(apps(FolderReader(folder, tmp_path / "last-good").first())) == {"a", "b"}


def test_directories_that_come_and_go_while_it_looks(folder: Path, reader: FolderReader) -> None:
    (folder / "a.yaml").write_text(pod("a"))
    reader.first()
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            for number in range(20):
                (folder / f"{number}" / "below").mkdir(parents=True)
            for number in range(20):
                shutil.rmtree(folder / f"{number}")

    other = threading.Thread(target=churn)
    other.start()
    try:
        assert not any(reader.stale() for _ in range(500))
    finally:
        done.set()
        other.join()


def test_a_folder_that_vanishes_changes_nothing(folder: Path, reader: FolderReader) -> None:
    (folder / "a.yaml").write_text(pod("a"))
    reader.first()
    os.rename(folder, folder.with_name("away"))
    state = reader.read()
    assert keys(state) == {"Pod/shop/a"}
    assert state.problems


def test_a_folder_that_was_unmounted_is_not_one_that_asks_for_nothing(folder: Path, reader: FolderReader) -> None:
    (folder / "agent.yaml").write_text("apiVersion: trireme.io/v1alpha1\nkind: AgentConfig\nspec: {}\n")
    (folder / "a.yaml").write_text(pod("a"))
    reader.first()
    for file in folder.iterdir():
        file.unlink()
    state = reader.read()
    assert keys(state) == {"Pod/shop/a"}
    assert [problem.message for problem in state.problems] == ["is empty; what was enforced stays as it was"]
    (folder / "agent.yaml").write_text("apiVersion: trireme.io/v1alpha1\nkind: AgentConfig\nspec: {}\n")
    assert not keys(reader.read())


def test_a_kind_nobody_reads_is_reported_and_breaks_nothing(folder: Path, reader: FolderReader) -> None:
    (folder / "a.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n---\n" + pod("a"))
    state = reader.first()
    assert keys(state) == {"Pod/shop/a"}
    assert [(problem.line, problem.message) for problem in state.problems] == [
        (1, "ConfigMap is not read by the agent")
    ]


def test_a_changed_agent_config_asks_for_a_restart(folder: Path, reader: FolderReader) -> None:
    (folder / "agent.yaml").write_text(AGENT)
    assert not reader.first().problems
    (folder / "agent.yaml").write_text(AGENT.replace("one", "two"))
    assert [problem.hint for problem in reader.read().problems] == ["restart the agent"]
    (folder / "agent.yaml").write_text(AGENT)
    assert not reader.read().problems


@pytest.mark.parametrize("domain", ["one", "two"], ids=["the same", "another"])
def test_a_second_agent_config_is_a_problem_until_there_is_one(folder: Path, reader: FolderReader, domain: str) -> None:
    (folder / "agent.yaml").write_text(AGENT)
    reader.first()
    (folder / "copy.yaml").write_text(AGENT.replace("one", domain))
    (problem,) = reader.read().problems
    assert f"more than one AgentConfig document ({folder}/agent.yaml:1, {folder}/copy.yaml:1)" in problem.message
    with pytest.raises(ConfigError, match="more than one AgentConfig"):
        config.load(folder)
    (folder / "copy.yaml").unlink()
    assert not reader.read().problems


def test_an_agent_config_that_goes_is_a_problem_until_it_is_back(folder: Path, reader: FolderReader) -> None:
    (folder / "agent.yaml").write_text(AGENT)
    (folder / "a.yaml").write_text(pod("a"))
    reader.first()
    (folder / "agent.yaml").unlink()
    (problem,) = reader.read().problems
    assert (problem.file, problem.hint) == (str(folder), "put it back")
    assert "no AgentConfig document is there any more" in problem.message
    with pytest.raises(ConfigError, match="no AgentConfig document"):
        config.load(folder)
    (folder / "moved.yaml").write_text(AGENT)
    assert not reader.read().problems


def test_an_agent_config_in_a_broken_file_is_not_said_to_be_gone(folder: Path, reader: FolderReader) -> None:
    (folder / "agent.yaml").write_text(AGENT)
    (folder / "a.yaml").write_text(pod("a"))
    reader.first()
    (folder / "agent.yaml").write_text("kind: [")
    assert [problem.file for problem in reader.read().problems] == [str(folder / "agent.yaml")]


def test_it_knows_without_reading_that_something_changed(folder: Path, reader: FolderReader) -> None:
    (folder / "a.yaml").write_text(pod("a"))
    reader.first()
    assert not reader.stale()
    (folder / "notes.txt").write_text("not ours")
    assert not reader.stale()
    (folder / "sub").mkdir()
    (folder / "sub" / "b.yaml").write_text(pod("b"))
    assert reader.stale()
    assert apps(reader.read()) == {"a": "web", "b": "web"}
    assert not reader.stale()
    (folder / "a.yaml").unlink()
    assert reader.stale()


def test_a_problem_of_an_object_points_at_its_field(folder: Path, reader: FolderReader) -> None:
    (folder / "a.yaml").write_text("# a comment\n" + pod("a"))
    state = reader.first()
    problem = state.problem(state.pods[0], "metadata.name", "is odd")
    assert str(problem) == f"{folder}/a.yaml:4: metadata.name: is odd"

"""``trireme policy``: check, explain, show, test, compare and draw policies from files. No root, no cluster.

Exit codes: 0 it is as it should be, 1 there is a finding (a denial, a failed test, a difference, advice), 2 the input
cannot be used, 3 the command was used wrongly.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Final, NoReturn

import click

from agent import config
from agent.commands.question import read_question
from agent.commands.remote import in_a_pod
from agent.config import DEFAULT_RUNTIME_DIRECTORY
from agent.words import count
from policy import explain as explaining
from policy.diff import compare
from policy.evaluate import Evaluator, UnknownEndpoint
from policy.expectations import ask, read_expectations, run
from policy.files import Loaded, load_files
from policy.lint import Finding, Severity
from policy.lint import check as lint
from policy.matrix import make_matrix, render_lines, render_svg
from policy.objects import ClusterNetworkPolicy, NetworkPolicy
from policy.verdicts import InputError, answer_lines
from policy.workloads import with_workloads
from trireme_py.model import Direction, PlainLabels

OK: Final = 0
FINDING: Final = 1
ERROR: Final = 2
USAGE: Final = 3


class WrongUsage(click.UsageError):
    """Wrong usage, told apart from input that cannot be used."""

    exit_code = USAGE


class PolicyGroup(click.Group):
    """A group whose usage errors exit with 3."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise WrongUsage(error.format_message(), error.ctx) from error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise WrongUsage(error.format_message(), error.ctx) from error


PathType = click.Path(path_type=Path)
output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Form of the answer.",
)
files_option = click.option(
    "-f", "--file", "paths", type=PathType, multiple=True, help="File or folder; may be repeated.  [default: .]"
)
agent_option = click.option(
    "--agent",
    "runtime",
    type=click.Path(path_type=Path, readable=False),  # who may not read it is told so with what to do
    is_flag=False,
    flag_value=Path(DEFAULT_RUNTIME_DIRECTORY),
    metavar="[DIR]",
    help=f"What the agent here has in force, by its runtimeDirectory.  [default: {DEFAULT_RUNTIME_DIRECTORY}]",
)
paths_argument = click.argument("paths", type=PathType, nargs=-1, required=True)
optional_paths_argument = click.argument("paths", type=PathType, nargs=-1)


@click.group(name="policy", cls=PolicyGroup)
def command() -> None:
    """Check, explain, test and compare policies; no root needed.

    PATHS are files or folders of ordinary Kubernetes YAML: policies, namespaces, pods, or the Deployments and the like
    that make pods.
    """


@command.command()
@paths_argument
@output_option
def check(paths: tuple[Path, ...], output: str) -> None:
    """Find what is invalid and what is surely not meant, with file, line and advice.

    An AgentConfig is checked, too; the key files it names are not.
    """
    loaded = _read(paths)
    if not (loaded.objects or loaded.others or loaded.problems):
        _notice(f"nothing found in {', '.join(map(str, paths))}; name files or folders with .yaml, .yml or .json files")
    findings = lint(loaded)
    findings.extend(
        Finding(Severity.ERROR, "invalid", one.file, one.line, config.KIND, one.field, one.message, one.hint)
        for one in config.check(loaded.others)
    )
    if output == "json":
        _json([_finding_json(each) for each in findings])
    else:
        for each in findings:
            _line(str(each), _SEVERITY_COLOURS[each.severity])
        counts = {severity: sum(1 for each in findings if each.severity is severity) for severity in Severity}
        numbers = ", ".join(count(number, severity.value) for severity, number in counts.items())
        _line(f"{count(len(loaded.policies), 'policy', 'policies')} checked: {numbers}")
    if any(each.severity is not Severity.NOTE for each in findings):
        sys.exit(FINDING)


@command.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO:PORT")
@files_option
@agent_option
@click.option("--protocol", default="TCP", show_default=True, help="TCP, UDP, SCTP, ICMP or ICMPv6.")
@output_option
def explain(
    source: str, target: str, paths: tuple[Path, ...], runtime: Path | None, protocol: str, output: str
) -> None:
    """Say whether FROM may connect to TO, and which rule says so or what the nearest one lacks.

    FROM and TO are namespace/pod or an IP address: shop/web shop/db:5432, or 192.0.2.1 '[2001:db8::1]:80'.
    """
    evaluator = _evaluator(_load(_chosen(paths, runtime) or (Path(),)))
    try:
        name, number, port = read_question(evaluator, source, target, protocol, _command("show", paths, runtime))
        outcome = ask(evaluator, source, name, number, port)
        found = explaining.explain(evaluator, source, name, number, outcome.port)
    except InputError as error:
        _fail(str(error))
    except UnknownEndpoint as error:
        _fail(f"TO: {error}")
    if output == "json":
        _json(found.as_json())
    else:
        _show_explanation(found)
    sys.exit(OK if found.allowed else FINDING)


def _show_explanation(found: explaining.Explanation) -> None:
    word = "ALLOW" if found.allowed else "DENY"
    _line(f"{word}  {found.flow}  {found.source} -> {found.destination}", "green" if found.allowed else "red")
    for side in found.sides:
        decision = side.decision
        verdict = "allow" if decision.allowed else "deny"
        by = f" by {decision.policy}" if decision.policy else ""
        _line(f"  {side.direction:<8} {side.pod}: {verdict}, {decision.reason.value}{by}")
        for policy in side.policies:
            audit = ", audit" if policy.audit else ""
            _line(f"    {policy.policy} ({policy.tier}{audit})" + ("" if policy.rules else ": no rules"))
            for rule in policy.rules:
                peer, port = ("yes" if matches else "no " for matches in (rule.peer_matches, rule.port_matches))
                _line(f"      {rule.rule} {rule.action}: peer {peer} {rule.peer}; port {port} {rule.ports}")
        if not side.policies:
            _line(f"    no policy selects it for {side.direction}")
    if found.note:
        _line(found.note)
    if found.advice:
        _line(f"To allow it, {found.advice}")


@command.command()
@optional_paths_argument
@agent_option
@click.option("-n", "--namespace", default="", help="Only pods and policies of this namespace.")
@output_option
def show(paths: tuple[Path, ...], runtime: Path | None, namespace: str, output: str) -> None:
    """List the policies, and which of them select each pod."""
    loaded = _load(_given(paths, runtime))
    evaluator = _evaluator(loaded)
    policies = [_policy_json(evaluator, each) for each in loaded.policies if namespace in ("", _namespace_of(each))]
    pods = [
        {
            "pod": f"{pod.namespace}/{pod.name}",
            "labels": dict(pod.labels),
            **{
                direction.value: [each.key for each in explaining.selecting(evaluator, pod, direction)]
                for direction in Direction
            },
        }
        for pod in loaded.pods
        if namespace in ("", pod.namespace)
    ]
    if not policies and not pods:
        where = f"namespace {namespace} of " if namespace else ""
        _notice(f"nothing found in {where}{', '.join(map(str, _given(paths, runtime)))}")
    if output == "json":
        _json({"policies": policies, "pods": pods})
        return
    rows = [
        (*_bare([each["policy"]]), each["tier"], each["mode"], each["pods"], each["ingress"], each["egress"])
        for each in policies
    ]
    _table("Policies", ("POLICY", "TIER", "MODE", "PODS", "INGRESS RULES", "EGRESS RULES"), rows)
    _table(
        "Pods",
        ("POD", "INGRESS", "EGRESS"),
        [(pod["pod"], *(", ".join(_bare(pod[side])) or "open" for side in ("ingress", "egress"))) for pod in pods],
    )


@command.command(name="test")
@paths_argument
@output_option
def test_command(paths: tuple[Path, ...], output: str) -> None:
    """Run the expectations (`tests:`) kept beside the policies."""
    loaded = _load(paths)
    expectations, problems = read_expectations(loaded)
    if problems:
        _fail("\n".join(map(str, problems)))
    if not expectations:
        _fail("no tests: in these files; write tests: [{from: ns/pod, to: ns/pod:80, expect: allow}]")
    results = list(run(_evaluator(loaded), expectations))
    failed = [each for each in results if not each.passed]
    if output == "json":
        _json(
            [
                {
                    "file": each.expectation.file,
                    "line": each.expectation.line,
                    "from": each.expectation.source,
                    "to": each.expectation.destination,
                    "expect": "allow" if each.expectation.allow else "deny",
                    "by": each.expectation.by,
                    "actual": each.actual,
                    "passed": each.passed,
                }
                for each in results
            ]
        )
    else:
        for each in results:
            wanted = each.expectation
            expected = ("allow" if wanted.allow else "deny") + (f" by {wanted.by}" if wanted.by else "")
            port = "" if wanted.port is None else f":{wanted.port}"
            name = f"{wanted.source} -> {wanted.destination}{port}"
            why = each.outcome.deciding.nearest or each.outcome.deciding.policy if each.outcome is not None else ""
            text = (
                f"ok    {name}  {expected}" if each.passed else f"FAIL  {name}  expected {expected}, got {each.actual}"
            )
            place = f"  ({wanted.file}:{wanted.line}{f'; {why}' if why else ''})"
            _line(text + ("" if each.passed else place), "green" if each.passed else "red")
        _line(f"{count(len(results), 'test')}, {len(failed)} failed")
    if failed:
        sys.exit(FINDING)


@command.command()
@click.argument("old", type=PathType)
@click.argument("new", type=PathType)
@output_option
def diff(old: Path, new: Path, output: str) -> None:
    """Say which connections NEW would allow or deny that OLD does not."""
    found = compare(_load((old,)), _load((new,)))
    if output == "json":
        _json(found.as_json())
    else:
        for mark, keys in (("+", found.added), ("-", found.removed), ("~", found.changed)):
            for key in keys:
                _line(f"{mark} {key}")
        for change in found.connections:
            word, colour = ("newly ALLOWED", "green") if change.allowed else ("newly DENIED ", "red")
            _line(f"  {word}  {change.source} -> {change.destination}  {change.flow}  ({change.by})", colour)
        if not found.connections:
            _line("no connection between known pods would change")
    if not found.empty:
        sys.exit(FINDING)


@command.command()
@optional_paths_argument
@agent_option
@click.option("--svg", type=click.File("w", encoding="utf-8"), metavar="FILE", help="Draw it, too; - is stdout.")
@output_option
def matrix(paths: tuple[Path, ...], runtime: Path | None, svg: IO[str] | None, output: str) -> None:
    """Show who may open connections to whom."""
    made = make_matrix(_evaluator(_load(_given(paths, runtime))))
    if svg is not None:
        svg.write(render_svg(made))
        if svg is sys.stdout or svg.name == "<stdout>":
            return
    if output == "json":
        _json(made.as_json())
        return
    for line in render_lines(made):
        _line(line)
    if made.left_out:
        _line(f"{made.left_out} further workloads are left out; name fewer files")
    if not made.workloads:
        _fail("no pod is known; add Pods, or the Deployments that make them")


@command.command()
@click.argument("file", type=click.File("r", encoding="utf-8"), default="-")
def verdicts(file: IO[str]) -> None:
    """Answer JSON lines of policies, pods and queries, for holding another evaluator against this one."""
    good = True
    for text, answered in answer_lines(file):
        click.echo(text)
        good = good and answered
    if not good:
        sys.exit(ERROR)


def _chosen(paths: tuple[Path, ...], runtime: Path | None) -> tuple[Path, ...]:
    """Return the files, and those that the agent keeps of what it has in force (agent/folder.py)."""
    if runtime is None:
        return paths
    if (click.get_current_context().find_root().info_name or "").startswith("kubectl "):
        _fail(
            "--agent reads the agent of this machine, not of a node; in an agent's pod (name it for that of one node) "
            f"run: {in_a_pod(sys.argv[1:])}"
        )
    kept = runtime / "last-good"
    try:
        kept.stat()
        os.listdir(kept)
    except PermissionError:
        _fail(f"{kept}: is for root alone; run it as root, or name the agent's folder of policies instead of --agent")
    except OSError:
        _fail(f"{kept}: does not exist: no agent keeps its files here; name its spec.runtimeDirectory: --agent DIR")
    return (*paths, kept)


def _given(paths: tuple[Path, ...], runtime: Path | None) -> tuple[Path, ...]:
    chosen = _chosen(paths, runtime)
    if not chosen:
        raise WrongUsage("name files or folders, or --agent for what the agent on this machine has in force")
    return chosen


def _read(paths: tuple[Path, ...]) -> Loaded:
    wrong: list[str] = []
    for path in paths:
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            wrong.append(f"{path}: does not exist; name files or folders")
        except OSError as error:
            wrong.append(f"{path}: cannot be read: {error.strerror}; check its owner and mode")
    if wrong:
        _fail("\n".join(wrong))
    return with_workloads(load_files(paths))


def _command(name: str, paths: tuple[Path, ...], runtime: Path | None = None) -> str:
    """Write the command of that name about the same files."""
    words = [] if runtime is None else ["--agent"]
    if runtime not in (None, Path(DEFAULT_RUNTIME_DIRECTORY)):
        words.append(str(runtime))
    files = map(str, paths or (() if words else (Path(),)))
    return shlex.join(["trireme", "policy", name, *files, *words])


def _load(paths: tuple[Path, ...]) -> Loaded:
    """Read files; problems end the command, because an answer from half of the policies would be a wrong one."""
    loaded = _read(paths)
    if loaded.problems:
        _fail("\n".join(map(str, loaded.problems)) + f"\nrun this first: {_command('check', paths)}")
    return loaded


def _evaluator(loaded: Loaded) -> Evaluator:
    return Evaluator.as_enforced(loaded.objects)


def _fail(text: str) -> NoReturn:
    for line in text.splitlines():
        click.echo(f"trireme policy: {line}", err=True)
    sys.exit(ERROR)


def _notice(text: str) -> None:
    """Say what is no error and might go unseen; apart from the answer, which may be JSON."""
    click.echo(f"trireme policy: {text}", err=True)


def _json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


_SEVERITY_COLOURS: Final = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "blue"}


def _line(text: str, colour: str | None = None) -> None:
    """Print one line; click leaves colour out when the output is not a terminal."""
    click.secho(text, fg=colour)


def _table(title: str, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    """Print aligned columns; on a terminal, rich draws them."""
    texts = [tuple(map(str, row)) for row in rows]
    if sys.stdout.isatty():
        from rich import box  # noqa: PLC0415 - it takes longer to load than most commands to run
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for name in header:
            table.add_column(name, overflow="fold")
        for row in texts:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    widths = [max(len(row[column]) for row in (header, *texts)) for column in range(len(header))]
    for row in (header, *texts):
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    click.echo()


def _bare(keys: Iterable[str]) -> list[str]:
    return [key.partition("/")[2] for key in keys]


def _namespace_of(policy: NetworkPolicy | ClusterNetworkPolicy) -> str:
    return policy.namespace if isinstance(policy, NetworkPolicy) else ""


def _policy_json(evaluator: Evaluator, policy: NetworkPolicy | ClusterNetworkPolicy) -> dict[str, Any]:
    snapshot = evaluator.snapshot
    compiled = next(each for each in snapshot.all_policies() if each.key == policy.key)
    namespaces = snapshot.namespaces
    audit = compiled.audit or (isinstance(policy, NetworkPolicy) and namespaces.in_audit(policy.namespace))
    selected = [
        pod
        for pod in snapshot.pods.values()
        if not pod.host_network
        and not pod.completed
        and compiled.selects(pod.namespace, namespaces.labels(pod.namespace), PlainLabels(pod.labels))
    ]
    counts = {
        direction.value: len(compiled.rules[direction]) if compiled.acts(direction) else "-" for direction in Direction
    }
    tier = "NetworkPolicy" if isinstance(policy, NetworkPolicy) else f"{policy.tier.value} {policy.priority}"
    return {
        "policy": policy.key,
        "tier": tier,
        "mode": "audit" if audit else "enforce",
        "pods": len(selected),
        **counts,
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "severity": finding.severity.value,
        "code": finding.code,
        "file": finding.file,
        "line": finding.line,
        "object": finding.object,
        "field": finding.field,
        "message": finding.message,
        "hint": finding.hint,
    }

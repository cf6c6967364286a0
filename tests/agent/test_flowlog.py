from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest

from agent.flowlog import FlowLog, FlowRecord, encode
from agent.mailbox import Mailbox
from tests.harness.flow_events import event
from trireme_py.errors import ConfigError
from trireme_py.model import Direction, Protocol, Reason


def test_a_denial_has_every_field_of_the_schema() -> None:
    assert json.loads(encode(event())) == {
        "v": 1,
        "time": "2026-11-20T12:04:11.382000Z",
        "pod": "shop/db",
        "direction": "ingress",
        "verdict": "deny",
        "reason": "no_match",
        "protocol": "TCP",
        "source": {"address": "10.77.1.2", "port": 40000},
        "destination": {"address": "fd77:2::2", "port": 5432},
        "nearest": "NetworkPolicy/shop/allow-web rule 1 needs app=web (has app=cart)",
        "peer": {
            "namespace": "shop",
            "pod": "cart",
            "serviceAccount": "default",
            "labels": {"app": "cart"},
            "proven": False,
        },
    }


def test_an_allow_names_policy_rule_and_the_translated_destination() -> None:
    allowed = event(
        allowed=True,
        reason=Reason.POLICY,
        policy="NetworkPolicy/shop/allow-db",
        rule=0,
        nearest="",
        proven=True,
        direction=Direction.EGRESS,
        actual=(ip_address("10.77.2.2").packed, 5433),
    )
    line = json.loads(encode(allowed))
    assert (line["verdict"], line["policy"], line["rule"]) == ("allow", "NetworkPolicy/shop/allow-db", 0)
    assert line["actualDestination"] == {"address": "10.77.2.2", "port": 5433}
    assert line["peer"]["proven"] is True
    assert "nearest" not in line


def test_every_field_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "flowlog.md").read_text()
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert documented == set(FlowRecord.__struct_encode_fields__)
    assert all(f"`{reason.value}`" in text for reason in Reason)
    example = re.search(r"```json\n(.*)\n```", text)
    assert example is not None
    assert msgspec.json.decode(example[1], type=FlowRecord, strict=True).v == 1


def test_audit_is_a_verdict_of_its_own() -> None:
    assert json.loads(encode(event(allowed=True, reason=Reason.AUDIT)))["verdict"] == "audit"


def test_an_unidentified_peer_and_a_protocol_without_ports_leave_their_fields_out() -> None:
    flow = replace(event(peer=None, reason=Reason.UNIDENTIFIED), protocol=Protocol.ICMP, source_port=None)
    line = json.loads(encode(replace(flow, destination_port=None)))
    assert "peer" not in line
    assert line["source"] == {"address": "10.77.1.2"}
    assert line["protocol"] == "ICMP"
    assert json.loads(encode(replace(flow, protocol=132)))["protocol"] == "SCTP"
    assert json.loads(encode(replace(flow, protocol=47)))["protocol"] == "47"


def test_lines_are_appended_in_order_and_close_writes_the_rest(tmp_path: Path) -> None:
    target = tmp_path / "flows.jsonl"
    target.write_text("before\n")
    log = FlowLog(str(target))
    for number in range(2000):
        log.publish([event(pod=f"shop/p{number}")])
    log.close()
    first, *lines = target.read_text().splitlines()
    assert first == "before"
    assert [json.loads(line)["pod"] for line in lines] == [f"shop/p{number}" for number in range(2000)]
    assert log.dropped == 0


def test_the_log_names_people_and_is_not_for_everybody(tmp_path: Path) -> None:
    target = tmp_path / "flows.jsonl"
    FlowLog(str(target)).close()
    assert target.stat().st_mode & 0o007 == 0


def test_a_stuck_reader_loses_lines_but_never_holds_up_the_data_path(tmp_path: Path) -> None:
    """The FIFO's reader never reads: after the pipe and the buffer are full, publishing counts and returns."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = FlowLog(str(fifo), buffer_events=100)
    flow = event()
    while not log.dropped:
        log.publish([flow] * 10)
    os.close(reader)  # the write that is under way fails with EPIPE, and the thread can end
    log.close()
    assert log.dropped >= 100


def test_a_target_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"flow log .*/absent/x: No such file.*spec\.flowLog"):
        FlowLog(str(tmp_path / "absent" / "x"))


def test_the_mailbox_keeps_what_fits_and_counts_the_rest() -> None:
    box: Mailbox[int] = Mailbox(3)
    box.put([1, 2])
    box.put([3, 4, 5])
    assert box.dropped == 2
    assert box.take() == [1, 2, 3]
    assert box.take() == []
    box.put([6])
    assert box.take() == [6]
    box.close()

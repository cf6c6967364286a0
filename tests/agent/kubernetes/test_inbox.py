from __future__ import annotations

from agent.kubernetes.inbox import Inbox
from agent.kubernetes.resources import Known


def known(key: str, document: bytes = b"") -> Known:
    return Known(key, None, (), document)


def test_the_newest_state_of_each_object_is_kept() -> None:
    inbox = Inbox()
    inbox.put("pods", [("a", known("a", b"1")), ("b", known("b")), ("a", known("a", b"2"))], 5.0)
    inbox.put("pods", [("b", None)], 6.0)
    batch = inbox.take()
    assert batch.changes == {"pods": {"a": known("a", b"2"), "b": None}}
    assert batch.since_s == 5.0
    assert inbox.take().since_s is None
    inbox.close()


def test_a_list_overtakes_what_came_before_it_and_not_what_comes_after() -> None:
    inbox = Inbox()
    inbox.put("pods", [("gone", known("gone"))], 1.0)
    inbox.put("policies", [("other", known("other"))], 1.0)
    inbox.put_list("pods", {"a": known("a")}, 2.0)
    inbox.put("pods", [("b", known("b"))], 3.0)
    assert inbox.listed() == {"pods"}
    batch = inbox.take()
    assert batch.lists == {"pods": {"a": known("a")}}
    assert batch.changes == {"pods": {"b": known("b")}, "policies": {"other": known("other")}}
    inbox.close()


def test_whoever_wakes_the_reader_wakes_it_once() -> None:
    inbox = Inbox()
    assert not inbox.wait(0)
    inbox.wake()
    inbox.wake()
    assert inbox.waiting()
    assert inbox.wait(0)
    assert not inbox.waiting()
    inbox.close()

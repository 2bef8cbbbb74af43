"""Orders to end: real signals to this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from cluster.errors import Terminated
from cluster.placement.plan import Plan
from cluster.runtime import orders
from cluster.runtime.orders import Orders, not_for_children, unheard
from cluster.runtime.ray_cluster import RayCluster


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[Orders]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    hook = sys.unraisablehook
    monkeypatch.setattr(orders, "ECHO_S", 600.0)
    one = Orders()
    one.grace_s = 600.0
    one.listen()
    yield one
    sys.unraisablehook = hook
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


def tell(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_an_order_is_raised_at_once(listening: Orders, number: int, kind: type[KeyboardInterrupt]) -> None:
    assert listening.left_s > 1e9
    with pytest.raises(kind) as raised:
        tell(number)
    assert raised.type is kind is listening.told and 500 < listening.left_s <= 600


def test_an_order_where_python_drops_exceptions_is_raised_after_it(listening: Orders) -> None:
    class Finalized:
        def __del__(self) -> None:
            tell()

    with pytest.raises(Terminated):
        Finalized()
        time.sleep(60)
    assert listening.told is Terminated and listening.left_s > 500


def test_what_must_not_be_cut_in_two_holds_it_back(listening: Orders, capfd: pytest.CaptureFixture[str]) -> None:
    listening.hold()
    tell()
    tell()  # `timeout` tells the process, then its group
    assert "ending once what is under way is done, or in 600 s" in capfd.readouterr().err
    with pytest.raises(Terminated):
        listening.release()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_but_not_for_longer_than_the_grace(listening: Orders) -> None:
    listening.grace_s = 0.05
    listening.hold()
    began = time.monotonic()
    with pytest.raises(Terminated):
        tell()
        time.sleep(60)
    assert listening.left_s == 0 and time.monotonic() - began >= 0.05


def test_nor_for_a_second_one(listening: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "ECHO_S", 0.0)
    listening.hold()
    tell()
    with pytest.raises(Terminated):
        tell()


def test_without_an_order_nothing_is_raised(listening: Orders) -> None:
    listening.hold()
    listening.release()
    with unheard():
        tell()
        tell(signal.SIGINT)
    assert listening.told is None


def test_children_do_not_hear_sigterm(listening: Orders) -> None:
    program = "import signal, time; print(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with not_for_children():
        assert subprocess.check_output([sys.executable, "-c", program], text=True) == "True\n"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"


def test_an_order_that_arrives_while_ray_waits_for_room_is_that_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's waits turn each of them into KeyboardInterrupt."""
    cluster = RayCluster(Plan(()), deadline_s=1.0)

    def connect() -> None:
        orders.ORDERS.told = Terminated
        raise KeyboardInterrupt

    monkeypatch.setattr(orders.ORDERS, "told", None)
    monkeypatch.setattr(cluster, "_connect", connect)
    with pytest.raises(KeyboardInterrupt) as raised:
        cluster.__enter__()
    assert raised.type is Terminated

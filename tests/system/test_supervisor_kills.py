"""Workers that die, hang or lie: what is replaced, what is not, and that nobody is refused meanwhile."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

import pytest
from supervised import Supervised, descriptors, supervised

from supervisor import proc

WORKERS = ("policy", "admin", "bridge", "validator", "edge.0", "edge.1")


def kill(gateway: Supervised, name: str) -> dict[str, int]:
    """kill -9, and wait until the replacement is up. Returns all workers' pids after it."""
    before = gateway.worker(name)
    os.kill(before["pid"], signal.SIGKILL)
    gateway.until(
        lambda: gateway.worker(name)["incarnation"] > before["incarnation"] and gateway.worker(name)["state"] == "up",
        f"for the replacement of {name}",
    )
    gateway.family()
    return {worker["name"]: worker["pid"] for worker in gateway.tree()["workers"]}


def pids(gateway: Supervised) -> dict[str, int]:
    gateway.until(lambda: len([w for w in gateway.tree()["workers"] if w["state"] == "up"]) == len(WORKERS))
    return {worker["name"]: worker["pid"] for worker in gateway.tree()["workers"]}


def test_each_worker_is_replaced_alone_and_its_actors_are_reached_again() -> None:
    """kill -9 of any worker restarts that worker and no other, and every address works afterwards."""
    with supervised() as gateway:
        before = pids(gateway)
        for name in WORKERS:
            after = kill(gateway, name)
            assert {n for n in WORKERS if after[n] != before[n]} == {name}
            before = after
            for edge in ("edge.0", "edge.1"):
                for actor in ("audit", "bridge", "admin"):
                    gateway.until(lambda e=edge, a=actor: "pid" in gateway.ask_worker(e, "ask", a), f"{edge} {actor}")
                gateway.until(lambda e=edge: gateway.ask_worker(e, "link").get("size") == 12345, f"link of {edge}")
        events = Counter(event["event"] for event in gateway.until(lambda: _restarted(gateway, len(WORKERS))))
        assert events["worker.killed"] == len(WORKERS)
        assert gateway.stop() == 0


def _restarted(gateway: Supervised, count: int) -> list[dict[str, object]]:
    events = gateway.events()
    return events if sum(event["event"] == "worker.restarted" for event in events) >= count else []


def test_no_connection_is_refused_while_workers_are_killed() -> None:
    """Clients that connect all the time, while every worker is killed twice: each gets through, the pid stays."""
    with supervised() as gateway:
        pids(gateway)
        stop = threading.Event()
        refused: list[str] = []
        served = Counter[str]()

        def client() -> None:
            while not stop.is_set():
                try:
                    served[gateway.ask("who")["worker"]] += 1
                except ConnectionRefusedError as error:
                    refused.append(str(error))
                except OSError:
                    continue  # it was with the worker that died
                stop.wait(0.01)

        threads = [threading.Thread(target=client) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for name in (*WORKERS, *WORKERS):
                kill(gateway, name)
                before = sum(served.values())
                gateway.until(lambda b=before: sum(served.values()) > b, "for a call after a kill")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not refused
        assert gateway.popen.poll() is None
        assert gateway.stop() == 0


@pytest.mark.parametrize("how", ["stop", "spin"])
def test_a_hung_worker_is_fenced_and_replaced(how: str) -> None:
    """SIGSTOP and a spinning loop are noticed by the missing heartbeat; siblings serve its listeners meanwhile."""
    with supervised() as gateway:
        before = pids(gateway)
        victim = "edge.1"
        if how == "stop":
            os.kill(before[victim], signal.SIGSTOP)
        else:
            hang(gateway, victim)
        gateway.until(lambda: gateway.worker(victim).get("incarnation") == 2, "for its replacement")
        gateway.until(lambda: gateway.worker(victim)["state"] == "up")
        after = pids(gateway)
        assert {name for name in WORKERS if after[name] != before[name]} == {victim}
        killed = gateway.until(lambda: [e for e in gateway.events() if e["event"] == "worker.killed"])
        assert len(killed) == 1
        assert "no progress" in killed[0]["reason"]
        # A fence leaves a trace of where it hung; a stopped process can't write one.
        assert any("Fatal Python error: Aborted" in line for line in gateway.log) == (how == "spin")
        gateway.until(lambda: gateway.ask_worker("edge.0", "listeners") == 2, "for the listeners to be given back")
        assert gateway.stop() == 0


def hang(gateway: Supervised, worker: str) -> None:
    def attempt() -> bool:
        with gateway.connection() as ask:
            if ask("who")["worker"] != worker:
                return False
            threading.Thread(target=_swallow, args=(gateway, worker), daemon=True).start()
            return True

    gateway.until(attempt)


def _swallow(gateway: Supervised, worker: str) -> None:
    try:
        gateway.ask_worker(worker, "spin")
    except (OSError, AssertionError):
        return


def test_listeners_of_a_stopped_worker_are_served_by_its_sibling() -> None:
    """Without a standby, a suspect worker's listeners go to the sibling, before it is even fenced."""
    with supervised("no-standby", heartbeat_timeout_ms=8_000) as gateway:
        victim = pids(gateway)["edge.1"]
        os.kill(victim, signal.SIGSTOP)
        gateway.until(lambda: gateway.ask_worker("edge.0", "listeners") == 4, "for the listeners")
        found = proc.stat(victim)
        assert found is not None
        assert found.state == "T"
        for _ in range(20):
            assert gateway.ask("who")["worker"] == "edge.0"
        os.kill(victim, signal.SIGCONT)
        gateway.until(lambda: gateway.ask_worker("edge.0", "listeners") == 2, "for their return")
        assert gateway.worker("edge.1")["incarnation"] == 1
        assert gateway.stop() == 0


def test_an_actor_that_raises_is_restarted_alone() -> None:
    """In the same process, under the same pid; its siblings keep their incarnation. Too many crashes end the worker."""
    with supervised("flaky") as gateway:
        before = gateway.ask("ask", "audit")
        for crash in range(1, 4):
            assert gateway.ask("tell", "limiter", "oops")["error"] == "ActorDown"
            after = gateway.until(lambda: (r := gateway.ask("ask", "limiter")).get("pid") and r, "for the limiter")
            assert after["pid"] == before["pid"]
            assert after["incarnation"] == before["incarnation"] + crash
            assert gateway.ask("ask", "audit") == before
        for _ in range(3):
            gateway.until(lambda: gateway.ask("tell", "limiter", "oops").get("error") == "ActorDown")
            if gateway.until(lambda: (r := gateway.ask("ask", "limiter")).get("pid") and r)["pid"] != before["pid"]:
                break
        gateway.until(lambda: gateway.ask("ask", "audit").get("pid", before["pid"]) != before["pid"], "for escalation")
        names = gateway.until(lambda: (n := [e["event"] for e in gateway.events()]).count("worker.restarted") and n)
        assert "actor.crashed" in names
        assert "actor.restarted" in names
        assert names.count("actor.escalated") == 1
        assert gateway.stop() == 0


def test_a_peer_that_breaks_the_framing_is_fenced() -> None:
    """Whoever sends what is no frame is killed by the supervisor, and nobody else is."""
    with supervised("liar") as gateway:
        before = {name: gateway.ask("ask", name)["pid"] for name in ("audit", "bridge")}
        gateway.ask("tell", "bridge", "lie")
        gateway.until(lambda: gateway.ask("ask", "bridge").get("pid", before["bridge"]) != before["bridge"])
        killed = gateway.until(lambda: [e for e in gateway.events() if e["event"] == "worker.killed"])
        assert [event["worker"] for event in killed] == ["bridge"]
        assert "protocol" in killed[0]["reason"]
        assert gateway.ask("ask", "audit")["pid"] == before["audit"]
        assert gateway.stop() == 0


def test_kills_leak_no_descriptor() -> None:
    """After twenty kills every process that lived on holds as many descriptors of each kind as before."""
    with supervised() as gateway:
        pids(gateway)
        for name in WORKERS:  # everything that is made lazily exists after each was replaced once
            kill(gateway, name)
        rounds = ["edge.0", "validator", "bridge", "admin", "edge.1"] * 4
        before = {"supervisor": settled(gateway, gateway.pid), "policy": settled(gateway, pids(gateway)["policy"])}
        for name in rounds:
            kill(gateway, name)
        after = {"supervisor": settled(gateway, gateway.pid), "policy": settled(gateway, pids(gateway)["policy"])}
        assert after == before
        fresh = settled(gateway, pids(gateway)["edge.1"])
        assert settled(gateway, pids(gateway)["edge.0"]) == fresh
        assert gateway.stop() == 0


def settled(gateway: Supervised, pid: int) -> Counter[str]:
    """The kinds of a process's descriptors, once three looks in a row agree and the standby is there."""
    gateway.until(lambda: len(gateway.family() & _interpreters(gateway)) == len(WORKERS) + 1, "for the standby")
    looks: list[Counter[str]] = []

    def same() -> bool:
        threading.Event().wait(0.5)
        looks.append(kinds(pid))
        return len(looks) >= 3 and looks[-1] == looks[-2] == looks[-3]

    gateway.until(same, "for descriptors to settle")
    return looks[-1]


def _interpreters(gateway: Supervised) -> set[int]:
    return {pid for pid in gateway.family() if "supervisor.worker" in proc.command(pid)}


def kinds(pid: int) -> Counter[str]:
    return Counter(target.partition(":")[0] for target in descriptors(pid))

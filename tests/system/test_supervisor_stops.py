"""How a gateway ends, or refuses to begin; nothing is ever left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

import pytest
from supervised import HERE, ROOT, Supervised, descriptors, logged, supervised

from supervisor import proc


def helpers(gateway: Supervised) -> set[int]:
    """The stdio server of the test's bridge, and the helper that it has put into another session."""
    return {pid for pid in gateway.family() if "time.sleep(600)" in proc.command(pid)}


def with_helpers(gateway: Supervised) -> set[int]:
    gateway.until(lambda: len(helpers(gateway)) == 2, "for the bridge's children")
    return helpers(gateway)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_drains_in_order_and_leaves_nothing(number: signal.Signals) -> None:
    """Exit code 0; edges stop first, audit last, with gateway.stopped in it; the ports are free again."""
    with supervised() as gateway:
        with_helpers(gateway)
        ports = gateway.ports
        assert gateway.stop(number) == 0
        assert [event["event"] for event in gateway.events()] == ["gateway.started", "gateway.stopped"]
        assert not (gateway.directory / "ready.json").exists()
        for kind in ("ws", "tcp", "health"):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", ports[kind]))
        states = {worker["name"]: worker["state"] for worker in gateway.tree()["workers"]}
        assert gateway.tree()["draining"]
        assert states["admin"] == "up", "admin hears of the drain before it is stopped itself"


def test_a_stop_in_the_middle_of_the_start() -> None:
    """Some workers are up, others not yet: all end, in order, with exit code 0."""
    with supervised(wait=False) as gateway:
        gateway.until(lambda: logged(gateway, "worker policy is up"))
        assert gateway.stop() == 0
        assert [event["event"] for event in gateway.events()][-1] == "gateway.stopped"


def test_a_second_signal_ends_at_once() -> None:
    """With an exit code that names the signal, without waiting for the drain."""
    with supervised("stubborn", drain_timeout_ms=600_000) as gateway:
        gateway.family()
        gateway.popen.send_signal(signal.SIGTERM)
        gateway.until(lambda: logged(gateway, "draining"))
        gateway.popen.send_signal(signal.SIGTERM)
        assert gateway.ended() == 128 + signal.SIGTERM


def test_a_worker_that_does_not_stop_is_killed_at_its_deadline() -> None:
    """The stop goes on and still succeeds."""
    with supervised("stubborn") as gateway:
        assert gateway.stop() == 0
        assert logged(gateway, "edge.0 is killed: did not stop in time")


def test_signals_that_mean_nothing_here_do_nothing() -> None:
    """SIGHUP says that there is no reload; SIGUSR1 is ignored; neither ends anything, in any process."""
    with supervised() as gateway:
        before = gateway.ask("ask", "audit")
        for pid in (gateway.pid, *gateway.family()):
            if pid == gateway.pid or "supervisor.worker" in proc.command(pid):
                os.kill(pid, signal.SIGHUP)
                os.kill(pid, signal.SIGUSR1)
        gateway.until(lambda: logged(gateway, "SIGHUP"))
        assert gateway.ask("ask", "audit") == before
        assert gateway.stop() == 0


def test_a_terminal_or_a_service_manager_may_signal_everybody() -> None:
    """SIGINT and SIGTERM at a worker end no worker: only the supervisor decides."""
    with supervised() as gateway:
        before = gateway.ask("ask", "audit")
        os.kill(before["pid"], signal.SIGINT)
        os.kill(before["pid"], signal.SIGTERM)
        assert gateway.ask("ask", "audit") == before
        assert gateway.stop() == 0


@pytest.mark.parametrize("stopped", [False, True])
def test_everything_ends_with_a_killed_supervisor(stopped: bool) -> None:
    """kill -9: every worker, stdio server and grandchild ends, stopped ones and other sessions included."""
    with supervised() as gateway:
        with_helpers(gateway)
        if stopped:
            for name in ("bridge", "edge.0"):
                os.kill(gateway.until(lambda n=name: gateway.worker(n).get("pid")), signal.SIGSTOP)
        gateway.family()
        gateway.popen.kill()
        gateway.until(lambda: not gateway.survivors(), "for the end of all")


def test_a_successor_starts_while_the_last_workers_end() -> None:
    """On the same ports and state directory, at once after kill -9 of the one before."""
    with supervised() as gateway:
        ports = gateway.ports
        gateway.family()
        gateway.popen.kill()
        again = {"ws_port": ports["ws"], "tcp_port": ports["tcp"], "health_port": ports["health"]}
        with supervised(**again, state_dir=str(gateway.directory / "state")) as successor:
            assert successor.ask("who")["pid"]
            assert successor.stop() == 0


def test_a_dead_bridge_leaves_no_server() -> None:
    """kill -9 of the bridge: its server and the server's helper in another session end; the new bridge has its own."""
    with supervised() as gateway:
        old = with_helpers(gateway)
        os.kill(gateway.until(lambda: gateway.worker("bridge").get("pid")), signal.SIGKILL)
        gateway.until(lambda: not (old & gateway.survivors()), "for the end of the old ones")
        assert not with_helpers(gateway) & old
        zombies = [found for found in proc.children(gateway.pid) if found.state == "Z"]
        gateway.until(lambda: not [f for f in proc.children(gateway.pid) if f.state == "Z"], f"no zombies: {zombies}")
        assert gateway.stop() == 0


def test_orphans_of_others_are_left_alone() -> None:
    """Children that an exec'ed launcher has started before are not ended with the gateway."""
    launcher = "import os, subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; "
    launcher += "time.sleep(601)']).pid, flush=True); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    with supervised() as gateway:
        settings = gateway.directory / "settings.json"
        state = gateway.directory / "other"
        text = settings.read_text().replace(str(gateway.directory / "state"), str(state))
        settings.write_text(text.replace("ready.json", "other.json"))
        table = [str(HERE / "gateway_of_test_actors.py"), "whole", str(settings)]
        with subprocess.Popen(
            [sys.executable, "-c", launcher, *table],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as other:
            assert other.stdout is not None
            sibling = int(other.stdout.readline())
            try:
                gateway.until((gateway.directory / "other.json").exists, "for the second gateway")
                other.terminate()
                assert other.wait() == 0
                assert proc.stat(sibling) is not None
            finally:
                os.kill(sibling, signal.SIGKILL)
        assert gateway.stop() == 0


def test_a_second_gateway_on_one_state_directory_is_refused() -> None:
    """Exit code 1, naming the holder."""
    with supervised() as gateway, supervised(state_dir=str(gateway.directory / "state"), wait=False) as second:
        assert second.ended() == 1
        assert logged(second, f"in use by another gateway .pid {gateway.pid}")
        assert gateway.stop() == 0


def test_a_port_in_use_is_refused() -> None:
    """Exit code 1, naming the variable and the holder, REUSEPORT or not."""
    with supervised() as gateway, supervised(tcp_port=gateway.ports["tcp"], wait=False) as second:
        assert second.ended() == 1
        assert logged(second, rf"TCP_PORT.*{gateway.ports['tcp']}.*pid {gateway.pid}")
        assert gateway.stop() == 0


@pytest.mark.parametrize(("table", "reason"), [("fails-first", "not today"), ("fails-import", "no_such_function")])
def test_a_first_start_that_fails_ends_the_gateway(table: str, reason: str) -> None:
    """Exit code 1, with the worker, the actor and the reason; nothing is left, nothing was announced."""
    with supervised(table, wait=False) as gateway:
        assert gateway.ended() == 1
        assert logged(gateway, rf"the first start failed: edge.\d: acceptor.\d: .*{reason}")
        assert not (gateway.directory / "ready.json").exists()


def test_a_worker_inherits_neither_secrets_nor_descriptors() -> None:
    """The environment is a short list; the descriptors are its own and nobody else's."""
    with supervised() as gateway:
        environment = gateway.ask("environment")
        assert "SECRET_OF_THE_SHELL" not in environment
        assert set(environment) <= {
            *("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"),
            *("NO_COLOR", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH"),
        }
        for pid in with_helpers(gateway):
            kept = descriptors(pid)
            assert not [target for target in kept if "socket" in target or "memfd" in target]
        assert gateway.stop() == 0


def test_actors_may_live_elsewhere() -> None:
    """The validator in the policy worker, the bridge in the admin's: every address and link works all the same."""
    with supervised("moved") as gateway:
        for edge in ("edge.0", "edge.1"):
            places = {name: gateway.ask_worker(edge, "ask", name)["pid"] for name in ("audit", "validator")}
            assert places["audit"] == places["validator"]
            assert gateway.ask_worker(edge, "ask", "bridge")["pid"] == gateway.ask_worker(edge, "ask", "admin")["pid"]
            assert gateway.ask_worker(edge, "link") == {"size": 12345, "pid": places["validator"]}
        assert gateway.stop() == 0


def test_an_operator_drains_through_the_admin_actor() -> None:
    """What an actor asks of the supervisor is answered; a drain so asked for ends the gateway in order."""
    with supervised() as gateway:
        reload = gateway.ask("tell", "admin", "reload")
        assert reload["ok"]
        assert reload["detail"].startswith("changed: ")
        with suppress(ConnectionError):  # the edge may end before the answer is back
            assert gateway.ask("tell", "admin", "drain")["ok"]
        assert gateway.ended() == 0


@pytest.mark.skipif(subprocess.run(["unshare", "-Urpf", "true"]).returncode != 0, reason="needs a pid namespace")
def test_as_pid_1_it_reaps_what_nobody_else_does() -> None:
    """The init process of a container: no zombies, exit codes reach whom they belong to, SIGTERM works."""
    with supervised(prefix=("unshare", "-Urpf", "--kill-child", "--mount-proc")) as gateway:
        init = gateway.until(lambda: [p.pid for p in proc.children(gateway.pid)])[0]
        assert gateway.ports["pid"] == 1
        workers = {process.pid for process in proc.children(init)}
        parents = {found.parent for found in map(proc.stat, with_helpers(gateway)) if found is not None}
        (bridge,) = parents & workers
        os.kill(bridge, signal.SIGKILL)
        gateway.until(lambda: bridge not in gateway.family() and logged(gateway, "bridge is down .killed by SIGKILL"))
        gateway.until(lambda: not [p for p in proc.descendants({init}) if p.state == "Z"], "for the zombies' end")
        gateway.family()
        os.kill(init, signal.SIGTERM)
        assert gateway.ended() == 0

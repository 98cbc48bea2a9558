"""One gateway from start to stop: lock, listeners, workers, signals, exit code."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

import attrs
import trio

from ipc import tls_context
from ipc.messages import AdminRequest, AnyMessage, Done, ReloadCertificates, ReopenLog
from ipc.settings import Settings
from ipc.tls_context import TlsUnusable
from ipc.tls_material import TlsMaterial

from . import kernel, listeners, logs, ready, reload, sd_notify
from .journal import Details
from .settings.load import Loaded
from .settings.problems import ConfigurationError, Problem
from .settings.show import gateway_version
from .settings.tokens import generate_tokens, with_state_secrets
from .spawn import Spawner
from .specs import SpecTable
from .state_lock import StateLock, StateLocked
from .tree import WorkerTree

log = logging.getLogger("supervisor")

EXIT_FAILED = 1
"""The first start failed, or may not be tried: another gateway has the state or a port."""

_PORT_PATIENCE_S = 2.0
"""How long a port may still be held by the workers of a supervisor that was killed a moment ago."""

_PORT_LOOK_S = 0.05

_STOP_EXTRA_MS = 15_000
"""What a stop may take beyond its drain: workers end one after the other, each by its own deadline."""


class Gateway:
    """The supervisor's own part: what signals and operators ask for, and what is said at the start and the end."""

    def __init__(
        self,
        settings: Settings,
        table: SpecTable,
        opened: listeners.Listeners,
        generated: Collection[str],
        source: Source,
        tls: TlsMaterial | None = None,
    ) -> None:
        self._settings = settings
        self._opened = opened
        self._generated = generated
        self._source = source
        self._tls = tls
        self._stops = 0
        self._signal = 0
        self._service = sd_notify.of_environment(os.environ)
        self._spawner = Spawner(
            log_level=settings.log_level, as_json=logs.as_json(settings), search_path=table.search_path
        )
        self._tree = WorkerTree(
            table=table,
            settings=settings,
            listeners=opened,
            spawner=self._spawner,
            answer=self._answer,
            version=gateway_version(),
            tls=tls,
        )

    async def run(self) -> int:
        """Until everything has stopped; the exit code."""
        watched = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
        try:
            with trio.open_signal_receiver(*watched) as signals:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._obey, signals)
                    nursery.start_soon(self._announce)
                    nursery.start_soon(self._service.keep_alive, self._tree.lateness_ns)
                    await self._tree.run()
                    nursery.cancel_scope.cancel()
        finally:
            self._spawner.close()
            if self._tree.failed:
                self._service.status(f"the first start failed: {self._tree.failed}")
            self._service.close()
            if self._settings.ready_file:
                ready.remove_ready_file(self._settings.ready_file)
        if self._stops > 1:
            return 128 + self._signal if self._signal else EXIT_FAILED
        if self._tree.failed:
            log.critical("the first start failed: %s", self._tree.failed)
            return EXIT_FAILED
        log.info("stopped")
        return 0

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            try:
                self._on_signal(number)
            except Exception:
                log.exception("signal %d could not be handled", number)

    def _on_signal(self, number: int) -> None:
        match number:
            case signal.SIGCHLD:
                self._tree.reap()
            case signal.SIGTERM | signal.SIGINT:
                self._stop(number)
            case signal.SIGHUP:
                log.info("SIGHUP: %s", self._reload().detail)
            case signal.SIGUSR1:
                self._tree.tell_all("audit", ReopenLog())
            case _:
                log.debug("signal %d is ignored", number)

    def _stop(self, number: int = 0) -> None:
        self._stops += 1
        self._signal = number
        if self._stops == 1:
            log.info("draining for up to %d ms; a second signal ends at once", self._settings.drain_timeout_ms)
            self._service.stopping("draining", self._settings.drain_timeout_ms + _STOP_EXTRA_MS)
            self._tree.drain()
        else:
            log.warning("ending at once")
            self._tree.kill()

    def _reload(self) -> Done:
        with self._service.reloading():
            return self._reloaded()

    def _reloaded(self) -> Done:
        """Read the configuration and the certificates anew; whatever is wrong with any of it leaves all as it is."""
        try:
            loaded = self._source.read()
            change = reload.changes(self._settings, loaded, self._generated, self._source.complete)
            tls = _material(change.settings)
        except ConfigurationError as error:
            wrong = "; ".join(map(str, error.problems))
        except OSError as error:
            wrong = str(error)
        else:
            return self._take(loaded, change, tls)
        log.error("the configuration was not reloaded, the old one stays: %s", wrong)
        self._tree.record("config.refused", "error", "failure", reason=wrong[:1000])
        return Done(ok=False, detail=wrong)

    def _take(self, loaded: Loaded, change: reload.Change, tls: TlsMaterial | None) -> Done:
        for warning in loaded.warnings:
            log.warning("configuration: %s", warning)
        made_up = change.generated - set(self._generated)
        changed = sorted({*change.changed, *_differences(self._tls, tls)})
        self._tls = tls
        self._settings, self._generated = change.settings, change.generated
        logs.set_level(self._settings.log_level)
        self._tree.configure(self._settings, tls)
        if tls is not None:
            self._tree.tell_all("acceptor", ReloadCertificates())
        detail: Details = {"changed": ", ".join(changed), "kept": ", ".join(change.kept)}
        self._tree.record("config.reloaded", "info", "success", detail=detail)
        if made_up:
            print(ready.banner(self._settings, self._opened.ports, made_up), file=sys.stderr, flush=True)  # noqa: T201
        said = f"changed: {detail['changed'] or 'nothing'}"
        return Done(ok=True, detail=f"{said}; these need a restart: {detail['kept']}" if change.kept else said)

    def _answer(self, message: AnyMessage) -> AnyMessage:
        """What an actor wants of the supervisor."""
        match message:
            case AdminRequest(verb="drain"):
                if not self._stops:
                    self._stop()
                return Done(ok=True, detail="draining")
            case AdminRequest(verb="reload"):
                return self._reload()
            case _:
                return Done(ok=False, detail=f"the supervisor has no answer to {type(message).__name__}")

    async def _announce(self) -> None:
        await self._tree.ready.wait()
        if self._settings.ready_file:
            try:
                ready.write_ready_file(self._settings.ready_file, self._opened.ports)
            except OSError as error:
                log.warning("READY_FILE %s can't be written: %s", self._settings.ready_file, error)
        line = ready.ready_line(self._opened.ports, self._settings.state_dir)
        log.info("%s", line)
        self._service.ready(line)
        text = ready.banner(self._settings, self._opened.ports, self._generated)
        if text:
            # Not a log record: it has to be copied as it stands, and must not end up where logs are kept.
            await trio.to_thread.run_sync(_print, text)


@attrs.frozen
class Source:
    """Where the settings come from: ``read`` raises ConfigurationError for a configuration that would not start, and
    ``complete`` adds what only the locked state directory can tell; it may raise ConfigurationError and OSError."""

    read: Callable[[], Loaded]
    complete: Callable[[Settings], Settings] = lambda settings: settings


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def production(read: Callable[[], Loaded], loaded: Loaded, table_of: Callable[[Settings], SpecTable]) -> int:
    """Run the gateway that was configured; ``read`` reads the same configuration anew.

    Raises ConfigurationError for what shows only with the state at hand.
    """
    settings = generate_tokens(loaded.settings)
    tokens = ("ws_auth_token", "tcp_auth_token")
    generated = [field for field in tokens if getattr(settings, field) != getattr(loaded.settings, field)]
    warnings = [str(warning) for warning in loaded.warnings]
    source = Source(read, with_state_secrets)
    return run(settings, table_of(settings), generated=generated, warnings=warnings, source=source)


def run(
    settings: Settings,
    table: SpecTable,
    *,
    generated: Collection[str] = (),
    warnings: Collection[str] = (),
    source: Source | None = None,
) -> int:
    """Run a gateway in this process, from its main thread. Returns the exit code; what went wrong is logged.

    Args:
        generated: names of those settings whose values were made up for this run.
        warnings: of the configuration, for the log.
        source: what a reload reads; without one the settings are all there is.

    """
    logs.set_up("supervisor", settings.log_level, as_json=logs.as_json(settings))
    for warning in warnings:
        log.warning("configuration: %s", warning)
    try:
        kernel.check()
        kernel.become_subreaper()
        _raise_descriptor_limit()
        with StateLock(Path(settings.state_dir)):
            source = source or Source(lambda: Loaded(settings, (), {}))
            return _run_locked(source.complete(settings), table, generated, source)
    except (kernel.UnsupportedPlatform, StateLocked, listeners.PortInUse, OSError) as error:
        log.critical("%s", error)
        return EXIT_FAILED
    finally:
        logs.finish()


def _run_locked(settings: Settings, table: SpecTable, generated: Collection[str], source: Source) -> int:
    log.info("STATE_DIR is %s", settings.state_dir)
    if settings.ready_file:
        ready.remove_ready_file(settings.ready_file)
    tls = _material(settings)
    opened = _open(settings, table)
    try:
        return trio.run(Gateway(settings, table, opened, generated, source, tls).run)
    finally:
        # All has been stopped; a signal that comes now must not turn the exit code into its own.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        opened.close()


def _material(settings: Settings) -> TlsMaterial | None:
    """What TLS is served with from now on, judged by its own bytes: the files may change as soon as they are read.

    Raises ConfigurationError.
    """
    if not settings.ssl_enabled:
        return None
    try:
        return tls_context.material(settings)
    except TlsUnusable as error:
        raise ConfigurationError((Problem(error.field.upper(), "", error.what),)) from None


def _differences(before: TlsMaterial | None, after: TlsMaterial | None) -> list[str]:
    """The variables whose files hold something else by now."""
    if before is None or after is None:
        return []
    files = (("SSL_CERT_PATH", "certificates"), ("SSL_KEY_PATH", "key"), ("SSL_CA_PATH", "authorities"))
    return [variable for variable, field in files if getattr(before, field) != getattr(after, field)]


def _raise_descriptor_limit() -> None:
    """A limit of 1024, the usual soft one, is reached by the sockets of one busy worker."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _open(settings: Settings, table: SpecTable) -> listeners.Listeners:
    owners: dict[listeners.Kind, tuple[str, ...]] = {
        kind: tuple(worker.name for worker in table.workers if kind in worker.listens)
        for kind in ("ws", "tcp", "health")
    }
    deadline = time.monotonic() + _PORT_PATIENCE_S
    while True:
        try:
            return listeners.open_all(settings, owners)
        except listeners.PortInUse as error:
            if time.monotonic() >= deadline or not listeners.left_behind(error):
                raise
        time.sleep(_PORT_LOOK_S)


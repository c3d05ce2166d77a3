"""Jobs: training as a process of its own, started, watched and ended by one task in the server.

The jobs live in the store, which several servers may share. A server claims a job under a lease, renews it while the
trainer runs, and ends the trainer when the job is no longer its own. A job whose server died is taken over when the
lease is over: it goes on where its trainer left a whole artifact or a checkpoint, and has failed otherwise. Of a job
that ended nothing is left on disk but its artifact in the store.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import logging
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jsonschema

from guard import artifacts
from guard.artifacts import Artifact, ArtifactStore
from guard.config import JobSettings
from guard.detection import DETECTORS
from guard.errors import ArtifactError, BadRequest, GuardUnavailable, LetheError, NotFound, PreconditionFailed
from guard.interventions.lora_adapter import LEARNED
from guard.register import Caller, Precondition, Register
from guard.snapshot import AUTO
from guard.store.jobs import Filter, Job, Jobs, Report, Request, State
from server.jobs_trainer import PROGRAM, Log, Trainer, TrainerFailed, schemas

logger = logging.getLogger(__name__)
T = TypeVar("T")

ADAPTERS = "lora_adapter"  # the method of what a job may take
CHECKPOINT, OUT = "checkpoint.pt", "out"  # in a job's folder
LOST = "The server stopped while this job ran, and its trainer had left no checkpoint; start it again."


class NotOurs(Exception):
    """The job was cancelled, purged or taken over: its trainer must end, and nothing is to be written about it."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: how often the queue is looked at and a lease renewed, how long a lease is, how much longer the job of
    another machine is left to that machine, and how long trainers may take to tell their parameters."""

    poll: float = 1.0
    lease: float = 30.0
    grace: float = 300.0
    schemas: float = 120.0


@dataclass(frozen=True, slots=True)
class Model:
    """What is trained for: the folder of the served model's weights, and their digest."""

    folder: Path
    digest: str | None


class Runner:
    """Takes jobs and runs those of the queue. `folder` holds one folder for each running job; `encoder` are the words
    that tell trainers which encoder detects here."""

    def __init__(
        self,
        jobs: Jobs,
        register: Register,
        artifacts: ArtifactStore,
        settings: JobSettings,
        folder: Path,
        *,
        program: Sequence[str] = PROGRAM,
        encoder: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
        times: Times | None = None,
    ) -> None:
        self._jobs = jobs
        self._register = register
        self._artifacts = artifacts
        self._settings = settings
        self._folder = folder
        self._program = program
        self._encoder = encoder
        self._clock = clock
        self._times = times or Times()
        self._name = secrets.token_hex(8)
        self._wakes: dict[str, asyncio.Event] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._waiting = asyncio.Event()
        self._kinds: dict[str, Any] | None = None
        self._model: Model | None = None
        self._loop: asyncio.Task[None] | None = None

    async def submit(self, kind: str, target: str, request: Request, tenant: str | None) -> Job:
        """Queue a job.

        Raises:
            BadRequest: no such kind, parameters that its trainer does not take, or adapters that are none for the
                served model.
            NotFound: no such target, or not for this tenant.
        """
        check_params(kind, request.params, await self.kinds())
        self._view(target, tenant)
        await self._check_adapters(request.adapters, tenant)
        job = await self._store(lambda: self._jobs.create(kind, target, tenant, request, self._clock()))
        self._waiting.set()
        return job

    async def get(self, job_id: str, tenant: str | None = None) -> Job:
        """Raises NotFound: there is no such job, or not for this tenant."""
        job = await self._store(lambda: self._jobs.get(job_id))
        if tenant not in (None, job.tenant):
            raise NotFound("There is no such job.", param="id")
        return job

    async def page(self, wanted: Filter, *, limit: int, after: tuple[float, str] | None = None) -> list[Job]:
        """The next jobs, newest first."""
        return await self._store(lambda: self._jobs.page(wanted, limit=limit, after=after))

    async def end(self, job_id: str, tenant: str | None = None) -> tuple[bool, State]:
        """Cancel a job, or forget one that has ended; whether it is forgotten, and the state that it ended in.

        Raises:
            NotFound: there is no such job, or not for this tenant.
        """
        job = await self.get(job_id, tenant)
        if await self._store(lambda: self._jobs.cancel(job_id, self._clock())):
            if wake := self._wakes.get(job_id):
                wake.set()
            return False, "cancelled"
        return await self._store(lambda: self._jobs.delete(job_id)), job.state

    async def kinds(self) -> Mapping[str, Any]:
        """The JSON schema of each kind's parameters; the trainers are asked once.

        Raises:
            GuardUnavailable: they do not answer.
        """
        if self._kinds is None:
            try:
                self._kinds = await schemas(self._program, self._times.schemas)
            except TrainerFailed as error:
                raise GuardUnavailable(error.message) from None
        return self._kinds

    def start(self, model: Model) -> None:
        """Run the jobs of the queue from now on, for this model."""
        self._model = model
        self._loop = asyncio.create_task(self._run(model))

    async def close(self) -> None:
        """End all trainers. Their jobs go on, or are told to have failed, when a server runs again."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _run(self, model: Model) -> None:
        while True:
            try:
                await self._store(self._sweep)
                while len(self._running) < self._settings.parallel and (
                    found := await self._store(self._next)
                ):
                    self._begin(*found, model)
            except GuardUnavailable as error:
                logger.error("jobs wait: %s", error.message)
            self._waiting.clear()
            with suppress(TimeoutError):  # wait_for of Python 3.11 loses a cancellation that meets the event
                async with asyncio.timeout(self._times.poll):
                    await self._waiting.wait()

    def _begin(self, job: Job, taken_over: bool, model: Model) -> None:
        task = asyncio.create_task(self._work(job, model, taken_over=taken_over))
        self._running[job.id] = task
        self._wakes[job.id] = asyncio.Event()

        def ended(_: asyncio.Task[None]) -> None:
            del self._running[job.id], self._wakes[job.id]
            self._waiting.set()

        task.add_done_callback(ended)

    def _next(self) -> tuple[Job, bool] | None:
        """A job that is now ours, and whether another server had begun it."""
        now = self._clock()
        here = {path.name for path in self._folders()} - self._running.keys()
        lease = now + self._times.lease
        if lost := self._jobs.take_over(self._name, now, lease, here, self._times.grace):
            return lost, True
        job = self._jobs.claim(self._name, now, lease)
        return (job, False) if job else None

    def _sweep(self) -> None:
        """Remove what is left of jobs that ended without us."""
        left = {path.name: path for path in self._folders()}
        for name in left.keys() - self._running.keys() - self._jobs.unfinished(left):
            shutil.rmtree(left[name], ignore_errors=True)

    def _folders(self) -> list[Path]:
        return list(self._folder.glob("job_*"))

    async def _work(self, job: Job, model: Model, *, taken_over: bool) -> None:
        folder, log = self._folder / job.id, Log(job.report.log)
        try:
            made = taken_over and await asyncio.to_thread(is_whole, folder / OUT)
            if taken_over and not made and not (folder / CHECKPOINT).exists():
                raise TrainerFailed(LOST)
            version = job.version if made else None
            if version is None:
                version = await self._train(job, model, folder, log, resume=taken_over)
            await self._keep(job, folder, log, version)
        except NotOurs:
            return  # the sweep knows whether the folder is still somebody's
        except asyncio.CancelledError:  # the server ends: whoever runs next may take the job over at once
            await asyncio.shield(self._renew(job, log, until=0.0))
            raise
        except LetheError as error:
            await self._finish(job, "failed", log, error=error.message)
        except Exception:
            logger.exception("a job failed")
            await self._finish(
                job, "failed", log, error="The server could not run this job; its log says why."
            )
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _train(self, job: Job, model: Model, folder: Path, log: Log, *, resume: bool) -> int:
        """Run the trainer until its artifact is in `folder`; the version of the target that it was made for.

        Raises:
            NotOurs: the job was cancelled, purged or taken over.
            LetheError: it failed.
        """
        view = self._view(job.target, job.tenant)
        asks_for_kind = "kind" in (await self.kinds())[job.kind]["properties"]
        params = {**({"kind": view["kind"]} if asks_for_kind else {}), **job.request.params}
        command = await asyncio.to_thread(self._command, job, params, model, folder, resume)
        trainer = await Trainer.start(
            command,
            examples_of(job.request, view),
            folder=folder,
            log=log,
            nice=self._settings.nice,
            threads=self._settings.threads,
        )
        try:
            await self._attend(job, trainer, log, view["version"])
        finally:
            await trainer.stop()
        return int(view["version"])

    async def _keep(self, job: Job, folder: Path, log: Log, version: int) -> None:
        """From the artifact in `folder` to a job that succeeded.

        Raises:
            LetheError: the artifact is refused.
        """
        artifact = await self._take_in(folder / OUT)
        attached = job.request.attach and await self._attach(job, artifact, version, log)
        await self._finish(job, "succeeded", log, artifact=artifact.digest, attached=attached)
        try:
            await self.get(job.id)
        except NotFound:  # purged meanwhile, with all that was made of the target
            with suppress(NotFound):
                await self._register.remove_artifact(artifact.digest)

    def _command(
        self, job: Job, params: Mapping[str, Any], model: Model, folder: Path, resume: bool
    ) -> list[str]:
        if model.digest is None:
            raise TrainerFailed(
                "The served weights are in no safetensors files; nothing can be trained for them."
            )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.rmtree(folder / OUT, ignore_errors=True)
        command = [*self._program, job.kind, "--stdin", "--progress", "json", "--model", str(model.folder)]
        command += [*self._encoder, "--base-model", model.digest]
        command += ["--work", str(folder), "--out", str(folder / OUT)]
        command += ["--resume"] if resume else []
        for digest in job.request.adapters:
            command += ["--adapter", str(self._artifacts.get(digest).folder)]
        for name, value in params.items():
            command += ["--set", f"{name}={json.dumps(value)}"]
        return command

    async def _check_adapters(self, digests: Sequence[str], tenant: str | None) -> None:
        """Raises BadRequest: the store, or what a tenant sees of it, has no such adapter for the served model."""
        if not digests:
            return
        here = {row["digest"]: row for row in await self._register.artifacts(tenant)}
        model = self._model.digest if self._model else None
        for digest in digests:
            row = here.get(digest)
            if row is None:
                why = "is not here; `lethe artifacts list` shows what is"
            elif row["method"] != ADAPTERS:
                why = f"was made for {row['method']}, not for {ADAPTERS}"
            elif model not in (None, row["base_model"]):
                why = "was made for another model than the served one"
            else:
                continue
            raise BadRequest(f"The artifact {digest[:16]} {why}.", param="params.adapters")

    async def _attend(self, job: Job, trainer: Trainer, log: Log, version: int) -> None:
        """Renew the lease until the trainer has ended.

        Raises:
            NotOurs, TrainerFailed
        """
        wake = self._wakes[job.id]
        ended = asyncio.create_task(trainer.watch())
        try:
            while not ended.done():
                if not await self._renew(job, log, progress=trainer.progress, version=version):
                    raise NotOurs
                woken = asyncio.create_task(wake.wait())
                await asyncio.wait(
                    {ended, woken}, timeout=self._times.poll, return_when=asyncio.FIRST_COMPLETED
                )
                woken.cancel()
                wake.clear()
            ended.result()
        finally:
            ended.cancel()

    async def _take_in(self, folder: Path) -> Artifact:
        """The artifact in `folder`, verified and loaded into every worker; one that is refused is not kept."""
        before = await asyncio.to_thread(self._artifacts.digests)
        artifact = await asyncio.to_thread(self._artifacts.add, folder)
        try:
            await self._register.load_artifact(artifact.digest)
        except LetheError:
            if artifact.digest not in before:
                await self._register.remove_artifact(artifact.digest)
            raise
        return artifact

    async def _attach(self, job: Job, artifact: Artifact, version: int, log: Log) -> bool:
        """Put the artifact into the target, as a PATCH would; whether that was done."""
        method = artifact.manifest.method
        if LEARNED in artifact.manifest.facts:
            log.note("not attached: the adapter knows what it was given; serve it as a client's own")
            return False
        try:
            view = self._view(job.target, job.tenant)
            changes = changes_with(view, method, artifact.digest)
            if changes is None:
                log.note(f"not attached: the target's ladder has no rung of {method}")
                return False
            if all(view[name] == value for name, value in changes.items()):
                return True  # whoever put it there died before it could say so
            seen = Precondition(if_match=f'"{job.target}.{version}"')
            await self._register.patch(job.target, changes, Caller(job.tenant, seen))
        except (NotFound, PreconditionFailed):
            log.note("not attached: the target was changed meanwhile")
            return False
        except LetheError as error:
            log.note(f"not attached: {error.message}")
            return False
        return True

    async def _renew(
        self,
        job: Job,
        log: Log,
        *,
        until: float | None = None,
        progress: float = 0.0,
        version: int | None = None,
    ) -> bool:
        """Whether the job is still ours. A store that does not answer is waited for as long as the lease lasts."""
        lease = self._clock() + self._times.lease if until is None else until
        progress = max(progress, job.progress)
        report = Report(log.lines)
        try:
            return await self._store(
                lambda: self._jobs.renew(job, lease, progress=progress, report=report, version=version)
            )
        except GuardUnavailable as error:
            logger.error("the lease of a job was not renewed: %s", error.message)
            return (await self._store(lambda: self._jobs.get(job.id))).lease is not None

    async def _finish(
        self,
        job: Job,
        state: State,
        log: Log,
        *,
        error: str | None = None,
        artifact: str | None = None,
        attached: bool | None = None,
    ) -> None:
        report, now = Report(log.lines, error), self._clock()
        await self._store(
            lambda: self._jobs.finish(job, state, now, report=report, artifact=artifact, attached=attached)
        )

    def _view(self, target: str, tenant: str | None) -> dict[str, Any]:
        return self._register.view(target, tenant)[0]

    async def _store(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)


def check_params(kind: str, params: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raises BadRequest: no such kind, or parameters that it does not take. Paths are taken on the command line
    only."""
    if kind not in kinds:
        raise BadRequest(
            f"There is no kind '{kind}'; the kinds are {', '.join(sorted(kinds))}.", param="kind"
        )
    schema = kinds[kind]
    known = {name: of for name, of in schema["properties"].items() if not _is_path(of)}
    for name in params:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.6)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            raise BadRequest(f"{kind} has no parameter '{name}'{hint}", param=f"params.{name}")
    found = jsonschema.Draft202012Validator({**schema, "properties": known}).iter_errors(dict(params))
    error = jsonschema.exceptions.best_match(found)
    if error is not None:
        place = ".".join(("params", *map(str, error.absolute_path)))
        raise BadRequest(f"{place}: {error.message}.", param=place)


def _is_path(schema: Mapping[str, Any]) -> bool:
    return any(one.get("format") == "path" for one in (schema, *schema.get("anyOf", ())))


def examples_of(request: Request, target: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What is trained on: the given examples, else the target's own prompts; wrong answers where some are given; and
    what the target goes by."""
    sets = {"forget": (request.forget, target["examples"]), "retain": (request.retain, target["retain"])}
    examples = {
        name: [{"prompt": text} for text in own] if given is None else list(given)
        for name, (given, own) in sets.items()
    }
    wrong = {} if request.perturbed is None else {"perturbed": list(request.perturbed)}
    return {**examples, **wrong, "names": [target["name"], *target["aliases"]]}


def changes_with(view: Mapping[str, Any], method: str, artifact: str) -> dict[str, Any] | None:
    """What puts the artifact into the target: a detector's in the place of any other of that detector, any other into
    the ladder (`ladder_with`)."""
    if method in DETECTORS:
        replaced = {one["artifact"] for one in view["artifacts"] if one["method"] == method}
        return {"detectors": [*(d for d in view["detectors"] if d not in replaced), artifact]}
    ladder = ladder_with(view["intervention"], method, artifact)
    return None if ladder is None else {"intervention": ladder}


def is_whole(folder: Path) -> bool:
    """Whether an artifact lies in the folder, every byte of it."""
    try:
        artifacts.read(folder)
    except ArtifactError:
        return False
    return True


def ladder_with(intervention: Any, method: str, artifact: str) -> list[dict[str, Any]] | None:
    """The target's `intervention` with the artifact in every rung of the method; of "auto", that ladder with a rung
    for it in front. None: it was written by hand and has no such rung, so it stays as it is."""
    if intervention == "auto":
        first = {"method": method, "params": {"artifact": artifact}}
        return [first, *({"method": rung.method} for rung in AUTO)]
    rungs: list[dict[str, Any]] = [intervention] if isinstance(intervention, dict) else list(intervention)
    if all(rung["method"] != method for rung in rungs):
        return None
    return [
        {**rung, "params": {**rung.get("params", {}), "artifact": artifact}}
        if rung["method"] == method
        else rung
        for rung in rungs
    ]

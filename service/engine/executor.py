"""What runs on the device: jobs in, jobs one step further out."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipelines.canvas import Canvas
from pipelines.card import Shape
from pipelines.catalog import Catalog
from pipelines.checkpoint import resumed, tensors_of
from pipelines.draws import Draw, NoiseSource
from pipelines.errors import NonFiniteError
from pipelines.model import Condition, Model
from pipelines.networks import Answer, evaluate
from pipelines.plan import Plan, Row
from pipelines.sampler import SamplerState, Samples, finish, prepare, step
from service.engine.bounds import LeastRecentlyUsed, RowBudget, RunAhead, out_of_memory
from service.engine.job import Job, Outcome, Phase, Point, Preview, Snapshot, Source
from service.engine.metrics import Metrics

_LOG: Final = logging.getLogger(__name__)
_CACHED_CONDITIONS: Final = 1024
_BUDGETS: Final = 256


class Executor:
    """Takes jobs through their states; called from the engine's thread alone.

    Args:
        catalog: Where the models of jobs are that name no catalogue of their own.
        forward_rows: How many rows one forward may take where the model's entry does not say; larger sets are split and
            put together again.
        decode_images: How many samples are decoded in one go.
        metrics: Where it counts.
    """

    def __init__(
        self, catalog: Catalog, *, forward_rows: int = 96, decode_images: int = 8, metrics: Metrics | None = None
    ) -> None:
        self._catalog = catalog
        self._decode_images = decode_images
        # What a prompt is to a model depends on the catalogue: a model of one name may be another after a reload.
        self._conditions: LeastRecentlyUsed[tuple[Catalog, Row], Condition] = LeastRecentlyUsed(_CACHED_CONDITIONS)
        self._forward_rows = forward_rows
        # (model, sample shape) → how many rows one forward may take there.
        self._budgets: LeastRecentlyUsed[Hashable, RowBudget] = LeastRecentlyUsed(_BUDGETS)
        self._metrics = metrics or Metrics()
        self._run_ahead = RunAhead()
        # Noise for the next step is drawn while the network computes this one.
        self._drawing = ThreadPoolExecutor(1, "superdiff-noise")

    def hold(self, job: Job) -> None:
        """Keep the job's models loaded until :meth:`release`; any thread may ask."""
        self._catalog_of(job).hold(job.plan.models)

    def release(self, job: Job, *, unload: bool = True) -> None:
        """Undo :meth:`hold`; see :meth:`Catalog.release`."""
        self._catalog_of(job).release(job.plan.models, unload=unload)

    def start(self, job: Job) -> None:
        """Encode the prompts, fix the course, draw z_T; or go on from where an earlier run of the job had come to."""
        job.started = job.saved = time.monotonic()
        job.enter(Phase.RUNNING)
        models = self._models([job])
        job.noise = NoiseSource(job.params, job.plan.shape)
        canvas = None if job.source is None else _canvas(job.source, job.plan, models)
        job.state = prepare(job.plan, models, job.noise.draw(), self._encoder(job), canvas)
        if job.resume is None:
            self._draw_ahead(job)
        else:
            _go_on(job, job.resume)
            job.resume = None

    def snapshot(self, job: Job) -> Snapshot:
        """A running job between two steps, on the host; the device waits for the copies alone."""
        state, ahead = _state(job), None if job.pending is None else job.pending.result()
        if job.noise is None:
            raise RuntimeError(f"job {job.id} draws no noise")
        return Snapshot(
            index=state.index,
            tensors={name: tensor.cpu() for name, tensor in tensors_of(state).items()},
            streams=job.noise.states,
            ahead=ahead,
            points=tuple(job.points),
            ran_s=_ran(job),
        )

    def advance(self, jobs: Sequence[Job]) -> None:
        """Take one step of every job: one forward per model and sample shape, one superposition per shape.

        A job's step is taken whole or not at all: whatever is raised, the jobs whose index has not moved can be stepped
        again, with the same noise.
        """
        groups: dict[Hashable, list[Job]] = {}
        for job in jobs:
            state = _state(job)
            groups.setdefault((state.z.shape[1:], state.z.device, self._catalog_of(job)), []).append(job)
        for group in groups.values():
            before = [_state(job) for job in group]
            models = self._models(group)
            answers = self._evaluate(before, models, self._catalog_of(group[0]))
            after = step(before, answers, [_draw(job) for job in group])
            for job, state in zip(group, after, strict=True):
                job.state, job.pending = state, None
                self._draw_ahead(job)
                self._tell(job, state)
            self._run_ahead.queued(before[0].z.device, frozenset(models))

    def decode(self, jobs: Sequence[Job]) -> list[tuple[Job, Outcome | Exception]]:
        """Check, decode and bring to the host what finished jobs of one model and sample shape drew."""
        pictured: list[tuple[Job, Samples]] = []
        ends: list[tuple[Job, Outcome | Exception]] = []
        for job in jobs:
            try:
                samples = finish(_state(job))
            except Exception as error:
                ends.append((job, error))
                continue
            if job.source is not None and job.source.retrace:
                ends.append((job, _outcome(job, samples, _no_pictures())))
            else:
                pictured.append((job, samples))
        if pictured:
            model = self._decoder(pictured[0][0])
            pictures = self._within_memory(model.decode, torch.cat([samples.z for _, samples in pictured]))
            for (job, samples), part in zip(pictured, pictures.split([len(s.z) for _, s in pictured]), strict=True):
                if not part.isfinite().all():
                    ends.append((job, NonFiniteError("the autoencoder's pixels are not finite; float32 may help it")))
                    continue
                drawn = _pixels(part).numpy()
                ends.append((job, _outcome(job, samples, drawn if job.source is None else _blended(drawn, job))))
        return ends

    def decode_key(self, job: Job) -> Hashable:
        """What jobs must share to be decoded together."""
        return job.plan.lead, job.plan.shape, self._catalog_of(job)

    def close(self) -> None:
        """End the thread that draws noise."""
        self._drawing.shutdown(cancel_futures=True)

    def _evaluate(self, states: Sequence[SamplerState], models: Mapping[str, Model], catalog: Catalog) -> list[Answer]:
        asked = Counter[str]()
        for state in states:
            for row in state.plan.rows:
                asked[row.model] += len(state.z)
        # What fits depends on the network and on the pictures' size; one's shortage must not slow the others down.
        budgets = {name: self._budget(catalog, name, states[0].z.shape[1:]) for name in asked}
        while True:
            answers = self._try_evaluate(states, models, budgets, asked)
            if answers is not None:
                for budget in budgets.values():
                    budget.went_well()
                self._metrics.rows.inc(asked.total())
                self._metrics.forward_rows.set(min(budget.rows for budget in budgets.values()))
                return answers
            # Only here, past the handler, are the failed attempt's tensors free.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _budget(self, catalog: Catalog, model: str, shape: Shape) -> RowBudget:
        limit = catalog.entry(model).forward_rows or self._forward_rows
        return self._budgets.get((catalog, model, shape), lambda: RowBudget(limit))

    def _try_evaluate(
        self,
        states: Sequence[SamplerState],
        models: Mapping[str, Model],
        budgets: Mapping[str, RowBudget],
        asked: Mapping[str, int],
    ) -> list[Answer] | None:
        """The networks' answers, or None where memory ran out and smaller budgets may help."""
        try:
            return evaluate(states, models, {name: budget.rows for name, budget in budgets.items()})
        except Exception as error:
            # Which network it was, nobody says: all give way.
            smaller = [name for name in asked if out_of_memory(error) and budgets[name].shrink(asked[name])]
            if not smaller:
                raise
            told = ", ".join(f"{budget.rows} of {name}" for name, budget in budgets.items())
            _LOG.warning("out of memory; rows a forward from now on: at most %s", told)
            self._metrics.out_of_memory.inc()
            return None

    def _within_memory(self, act: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """Apply to a bounded number of samples at once, and to halves of them where memory does not suffice."""
        if len(z) <= self._decode_images:
            try:
                return act(z)
            except Exception as error:
                if not out_of_memory(error) or len(z) == 1:
                    raise
                self._metrics.out_of_memory.inc()
        half = -(-len(z) // 2)
        return torch.cat([self._within_memory(act, part) for part in (z[:half], z[half:])])

    def _tell(self, job: Job, state: SamplerState) -> None:
        """Record the step for those who asked; reading waits for the device, so nothing is read that nobody wants."""
        watched = job.channel.watched
        if job.ask.keep_trajectory or watched:
            point = _point(state)
            if job.ask.keep_trajectory and state.index <= state.schedule.steps:
                job.points.append(point)
            job.channel.publish("progress", point)
        every = job.preview_every
        if watched and every and state.index % every == 0 and state.index < state.schedule.steps:
            try:
                first = state.followed[:: job.params.candidates * job.params.particles]
                pictures = _pixels(self._decoder(job).preview(first)).numpy()
            except Exception:
                # A preview is a courtesy: without it the job is still whole.
                _LOG.exception("no preview of job %s", job.id)
            else:
                job.channel.publish("preview", Preview(state.index, pictures))

    def _draw_ahead(self, job: Job) -> None:
        """Start drawing the randomness of the job's next step, if it needs any."""
        state = _state(job)
        if job.noise is not None and not state.done and state.draws:
            job.pending = self._drawing.submit(job.noise.draw)

    def _catalog_of(self, job: Job) -> Catalog:
        return job.catalog or self._catalog

    def _decoder(self, job: Job) -> Model:
        return self._catalog_of(job).get(job.plan.lead)

    def _models(self, jobs: Sequence[Job]) -> Mapping[str, Model]:
        """The models of jobs of one catalogue."""
        catalog = self._catalog_of(jobs[0])
        return {name: catalog.get(name) for name in dict.fromkeys(n for job in jobs for n in job.plan.models)}

    def _encoder(self, job: Job) -> Callable[[Row], Condition]:
        """What encodes the prompts of a job, each once."""
        catalog = self._catalog_of(job)

        def encode(row: Row) -> Condition:
            key = catalog, row
            self._metrics.prompts.labels("hit" if key in self._conditions else "miss").inc()
            return self._conditions.get(
                key, lambda: catalog.get(row.model).encode_prompts([row.text], dict(row.adapters))
            )

        return encode


def _state(job: Job) -> SamplerState:
    if job.state is None:
        raise RuntimeError(f"job {job.id} is not running")
    return job.state


def _go_on(job: Job, snapshot: Snapshot) -> None:
    """Bring a job that was just prepared to where its snapshot was taken."""
    if job.noise is not None:
        job.noise.go_on(snapshot.streams)
    job.state = resumed(_state(job), snapshot.index, snapshot.tensors)
    job.points = list(snapshot.points)
    if snapshot.ahead is not None:
        job.pending = Future()
        job.pending.set_result(snapshot.ahead)


def _ran(job: Job) -> float:
    """Seconds that a job has run, in all its runs."""
    return job.ran_s + time.monotonic() - job.started


def _draw(job: Job) -> Draw:
    state = _state(job)
    return Draw.nothing(state.z, len(state.effective)) if job.pending is None else job.pending.result()


def _pixels(pictures: Tensor) -> Tensor:
    """(B, 3, height, width) in [0, 1] → (B, height, width, 3) uint8 on the host."""
    return pictures.permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).cpu()


def _no_pictures() -> NDArray[np.uint8]:
    return np.zeros((0, 0, 0, 3), dtype=np.uint8)


def _blended(drawn: NDArray[np.uint8], job: Job) -> NDArray[np.uint8]:
    """What was painted within the known picture, cut to the size asked for; exactly the picture where it is kept."""
    source = job.source
    if source is None:
        return drawn
    blend = np.zeros(source.pixels.shape[:2], np.uint8) if job.params.calls == 0 else source.blend
    if blend is not None:
        share = blend[:, :, None] / np.float32(255)
        mixed = np.rint(share * drawn + (1 - share) * source.pixels).astype(np.uint8)
        drawn = np.where(share == 0, source.pixels, mixed)
    return drawn[:, : source.height, : source.width]


def _canvas(source: Source, plan: Plan, models: Mapping[str, Model]) -> Canvas:
    """The known picture as the sampler wants it: a cell of its sample is painted if any of its pixels is."""
    image = torch.from_numpy(source.pixels).permute(2, 0, 1).unsqueeze(0).float() / 255
    mask = None if source.mask is None else torch.from_numpy(source.mask)[None, None] / 255
    model, shape = models[plan.lead], plan.shape
    return Canvas(
        clean=model.encode(image),
        mask=None if mask is None else functional.adaptive_max_pool2d(mask, shape[-2:]).to(model.device),
        conditions={name: models[name].painted(shape, image, mask) for name in plan.models},
        retrace=source.retrace,
    )


def _outcome(job: Job, samples: Samples, pictures: NDArray[np.uint8]) -> Outcome:
    keep_maps = job.ask.keep_lift_maps
    return Outcome(
        pictures=pictures,
        log_density=samples.log_density.cpu().numpy(),
        node_log_density={path: value.cpu().numpy() for path, value in samples.node_log_density.items()},
        mean_weights=samples.mean_weights.cpu().numpy(),
        clamp_rate=samples.clamp_rate.cpu().numpy(),
        lift=samples.lift.cpu().numpy(),
        lift_maps=samples.lift_maps.float().cpu().numpy() if keep_maps and samples.lift_maps is not None else None,
        candidate=samples.candidate.cpu().numpy(),
        survivors=samples.survivors.cpu().numpy(),
        trajectory=tuple(job.points),
        queued_s=max(0.0, job.started - job.submitted - job.ran_s),
        run_s=_ran(job),
        resumed_from=job.resumed_from,
    )


def _point(state: SamplerState) -> Point:
    return Point(
        step=state.index,
        sigma=state.reached,
        weights=np.array(state.weights.cpu()),
        log_density=np.array(state.log_density.cpu()),
        effective=np.array(state.effective.cpu()) if state.plan.params.particles > 1 else None,
    )

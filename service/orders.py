"""The intake: what any client asks for, checked, planned and queued by one function."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from PIL import Image

from pipelines import grammar
from pipelines.card import Card, Defaults
from pipelines.composition import lead, leaves
from pipelines.errors import InvalidInputError
from pipelines.params import SamplingParams
from pipelines.plan import Plan, make_plan
from service.callers import Caller
from service.engine.job import Ask, Job, Source
from service.expressions import Written
from service.logs import about_job
from service.metadata import Origin, digest
from service.pictures import decode_picture, picture_file
from service.quotas import pixel_steps
from service.registry import Record
from service.rendering import Rendering
from service.services import Services
from service.settings import Settings
from service.sources import Fit, Painted, prepare_source, read_mask, sampled_size
from service.store.records import Idempotency

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """A picture that comes with an order.

    Attributes:
        image: As the client sent it, a file or a file in base64; or a picture that was decoded from that already.
        mask: Likewise; None to paint everywhere.
        fit: How both come to the size asked for.
        feather: Over how many pixels painting blends in.
        retrace: Whether only the picture's densities are wanted.
        painted: Which part of the mask is painted anew.
    """

    image: str | bytes | Image.Image
    mask: str | bytes | Image.Image | None
    fit: Fit
    feather: float
    retrace: bool = False
    painted: Painted = "white"


@dataclass(frozen=True, slots=True)
class Order:
    """What a client asks for, whichever way it came.

    Attributes:
        written: What to compose.
        params: How to sample, given what requests for the expression have by default.
        ask: What is wanted besides the sample.
        known: The picture to begin from, if there is one; or what reads it, called once, when the pictures of no other
            request are held decoded.
    """

    written: Written
    params: Callable[[Defaults], SamplingParams]
    ask: Ask
    known: Known | Callable[[], Known] | None = None


async def take(order: Order, services: Services, caller: Caller) -> tuple[Job, Origin | None]:
    """Refuse what cannot be answered, and make a job of the rest, to be queued; nothing is computed before.

    Returns:
        The job, and what is remembered of the picture that it draws on.

    Raises:
        InvalidInputError: What is asked for has no meaning, or is more than this service does for one request.
        IncompatibleModelsError: The models cannot be composed.
        ModelLoadError: A model cannot be loaded.
    """
    # Taken once: a reload may put another in its place while the models are being loaded.
    expression, settings, catalog = order.written.expression, services.settings, services.catalog
    async with services.backend.cards((leaf.model for leaf in leaves(expression)), catalog) as cards:
        params = order.params(catalog.defaults(expression, cards))
        source = origin = None
        if order.known is not None:
            given = order.known, params, cards, lead(expression), settings
            params, source, origin = await services.decoded(prepare_known, *given)
        with order.written.located():
            retrace = source is not None and source.retrace
            plan = make_plan(expression, params, cards, on_canvas=source is not None, retrace=retrace)
            check_bounds(plan, order.ask, settings)
        ask = replace(order.ask, caller_jobs=caller.allowance.concurrent_jobs)
        return Job(plan, ask, source, catalog), origin


async def accept(
    order: Order,
    services: Services,
    caller: Caller,
    rendering: Rendering | None = None,
    *,
    keep: bool = False,
    idempotency: Idempotency | None = None,
    followed: bool = False,
    callback_url: str | None = None,
) -> Record:
    """Take an order in and queue its job, to be asked for by its id; or find the job that its key stands for.

    Args:
        order: What is asked for.
        services: The application's parts.
        caller: Who asks.
        rendering: How its pictures are wanted; of the picture that it began from nothing is said there.
        keep: Whether the job outlives this process; one with a key does.
        idempotency: The client's key, if it sent one.
        followed: Whether its client will listen to its events.
        callback_url: Where the end of a job that is kept is told, if anywhere; see :mod:`service.callbacks`.

    Raises:
        QueueFullError: There is no place, or the caller has as many jobs as it may.
        IdempotencyError: The key stands for another request.
        QuotaError: The caller has used what it may for now.
        StoreUnavailableError: The job cannot be kept now.
        DiskFullError: There is no space to keep it.
        PipelineError: See :func:`take`.
    """
    if idempotency is not None and (earlier := await services.keeper.standing(caller.id, idempotency)) is not None:
        return earlier
    job, origin = await take(order, services, caller)
    durable = keep or idempotency is not None
    kept = durable or services.backend.keeps_all
    record = Record(job, replace(rendering or Rendering(), origin=origin, label=caller.label), kept, durable)
    cost = pixel_steps(job.plan)
    spent = await services.quotas.spend(caller, cost)
    try:
        accepted = await _queue(record, services, idempotency, callback_url, followed=followed)
    except BaseException:
        await services.quotas.give_back(caller, cost, spent)
        raise
    if accepted is not record:
        await services.quotas.give_back(caller, cost, spent)
        return accepted
    _say(job, services.settings)
    return record


async def _queue(
    record: Record,
    services: Services,
    idempotency: Idempotency | None,
    callback_url: str | None,
    *,
    followed: bool,
) -> Record:
    """Queue a new job; the one that its key stands for already where another process was faster."""
    if record.kept:
        accepted = await services.keeper.accept(record, idempotency, callback_url, followed=followed)
        if callback_url is not None:
            services.callbacks.look_after(accepted.job.result)
        return accepted
    services.backend.submit(record)
    return record


def _say(job: Job, settings: Settings) -> None:
    """The line of a job that is taken in; what it composes stands there only where the operator wants it to."""
    about_job(job.id)
    fields: dict[str, object] = {"models": ",".join(job.plan.models), "rows": job.rows, "steps": job.plan.calls}
    if settings.log_prompts:
        fields["expression"] = grammar.format(job.expression)
    _LOG.info("job taken in", extra={"fields": fields})


def _origin_of(known: Known) -> Origin | None:
    """What is remembered of a known picture; nothing where none is drawn."""
    if known.retrace:
        return None
    image, mask = _digest(known.image, "image"), _digest(known.mask, "mask")
    return Origin(image, mask, known.painted, known.fit, known.feather)


def _digest(sent: str | bytes | Image.Image | None, field: str) -> str | None:
    """The digest of a file that a client sent; None where it sent none, or where a picture was made of it."""
    return digest(picture_file(sent, field)) if isinstance(sent, str | bytes) else None


def prepare_known(
    known: Known | Callable[[], Known],
    params: SamplingParams,
    cards: Mapping[str, Card],
    lead_model: str,
    settings: Settings,
) -> tuple[SamplingParams, Source, Origin | None]:
    """A known picture, the parameters at the size that is sampled for it, and its origin. Not for the event loop.

    The answer has the size that the request names, else the picture's own, else, of a model of one size, the model's.

    Args:
        known: The picture, or what reads it.
        params: At the size that the request names.
        cards: Of the expression's models.
        lead_model: Which of them gives the size.
        settings: The service's bounds.
    """
    if not isinstance(known, Known):
        known = known()
    origin = _origin_of(known)
    image = _decoded(known.image, "image", settings)
    mask = None
    if known.mask is not None:
        mask = read_mask(_decoded(known.mask, "mask", settings), known.painted, image.size)
    first = cards[lead_model]
    own = image.size if all(card.multiple for card in cards.values()) else (first.width, first.height)
    asked = params.width or own[0], params.height or own[1]
    width, height = sampled_size(asked, cards.values())
    check_pixels(width, height, params, settings, retrace=known.retrace)
    source = prepare_source(image, mask, asked, (width, height), known.fit, known.feather)
    return replace(params, width=width, height=height), replace(source, retrace=known.retrace), origin


def _decoded(picture: str | bytes | Image.Image, field: str, settings: Settings) -> Image.Image:
    return picture if isinstance(picture, Image.Image) else decode_picture(picture, field, settings.max_image_pixels)


def check_bounds(plan: Plan, ask: Ask, settings: Settings) -> None:
    """Refuse what this service will not do for one request."""
    check_pixels(plan.width, plan.height, plan.params, settings, retrace=plan.retrace)
    counts = _counts(plan.params, retrace=plan.retrace)
    told = " × ".join([f"{len(plan.rows)} network rows", *(f"{n} {name.removeprefix('num_')}" for name, n in counts)])
    rows = len(plan.rows) * plan.params.samples
    if rows > settings.max_job_rows:
        detail = f"{told} is {rows}; this service allows {settings.max_job_rows} in one step (max_job_rows)"
        # Where there is but one sample, the expression itself asks too many questions.
        raise InvalidInputError(detail, field=_largest(counts) if plan.params.samples > 1 else ("terms",))
    if plan.work > settings.max_job_work:
        steps = f"{plan.steps} steps" + (f" and {plan.judged} calls to choose by" if plan.judged else "")
        detail = f"{told} × {steps} is {plan.work}; this service allows {settings.max_job_work} (max_job_work)"
        raise InvalidInputError(detail, field=("steps",))
    if ask.timeout_s > settings.max_timeout_s:
        detail = f"timeout_s must be at most {settings.max_timeout_s:g} here (max_timeout_s), got {ask.timeout_s:g}"
        raise InvalidInputError(detail, field=("timeout_s",))


def check_pixels(width: int, height: int, params: SamplingParams, settings: Settings, *, retrace: bool) -> None:
    """Refuse more pixels than this service makes for one request."""
    pixels = width * height * params.samples
    if pixels > settings.max_pixels:
        counts = _counts(params, retrace=retrace)
        factors = " × ".join(["width", "height", *(name for name, _ in counts)])
        detail = f"{factors} is {pixels}; this service allows {settings.max_pixels} in one request (max_pixels)"
        raise InvalidInputError(detail, field=_largest(counts) if width * height <= settings.max_pixels else ("width",))


def _counts(params: SamplingParams, *, retrace: bool) -> list[tuple[str, int]]:
    """What multiplies a request's samples, by the names of the wire; candidates and particles where there are any."""
    several = {"candidates": params.candidates, "particles": params.particles}
    images = ("draws" if retrace else "num_images", params.num_images)
    return [images, *((name, count) for name, count in several.items() if count > 1)]


def _largest(counts: Sequence[tuple[str, int]]) -> tuple[str]:
    """The name of the largest factor."""
    return (max(counts, key=lambda each: each[1])[0],)

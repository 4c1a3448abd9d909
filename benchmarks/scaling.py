"""1 to 1000 workers that share one store: how busy they are, how long jobs wait, and what the store carries.

A simulation. The order of claims (``service.engine.turns``) and which jobs fit (``service.store.moves``) are the
service's own functions; what a step takes, by its rows, and what the store's calls take is measured on this machine
first. The day is shorter than a real one: as many jobs come in a second, but noon follows sooner after night.

    offered load   work that comes in a second, on the average, as a share of what the workers do at best: each job's
                   rows in full batches of one model, and its pictures' decoding
    utilisation    seconds of devices that compute ÷ seconds of devices for which there is something to do: those that
                   compute or load, and of those that do nothing as many as jobs wait
    wait           from a request to its end, as its client sees it
    ideal          the same jobs and devices, every model loaded everywhere, no call takes time, and one who sees all at
                   once places each job where it adds least to all step times
                   (no bound: who keeps to one model at a time may do better)
    bound          the same where rows of all models share a forward, which no device can do
    store busy     work that the store's cores are given, as a share of what they can do; above 1 it piles up
"""

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import report, table
from benchmarks.simulation.cluster import Cluster, Course, Ideal
from benchmarks.simulation.costs import Device, Policy, StoreCosts
from benchmarks.simulation.traffic import HEAVY, LIGHT, Job, Mix, day, of_models, shares

LOAD: Final = 0.8
DEFAULT: Final = Policy(together=1, patience_s=10.0, mixed_s=5.0, spread_s=0.02, defer_s=0.5)
"""What the comparison of policies recommends."""
CORES: Final = 4
# A model of several gigabytes from a local disk: assumed, not measured.
LARGE_LOAD_S: Final = 20.0
UTILISATION: Final = 0.9
P99: Final = 1.3

POLICIES: Final[Mapping[str, Policy]] = {
    "recommended": DEFAULT,
    "several at a claim (8)": replace(DEFAULT, together=8),
    "as many as fit": replace(DEFAULT, together=64),
    "emptier workers not first": replace(DEFAULT, defer_s=0.0),
    "models mix freely": replace(DEFAULT, mixed_s=0.0),
    "8 at a claim, patience 2 s, neither of these": Policy(together=8, patience_s=2.0),
    "as many as fit, no patience, neither of these": Policy(together=64),
    "claims spread over 1 s": replace(DEFAULT, spread_s=1.0),
    "renewed at rings, every second": replace(DEFAULT, beat_s=1.0),
    "not rung when a job ends": replace(DEFAULT, ring_finished=False),
}
PATIENCES: Final = (0.0, 2.0, 10.0, math.inf)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is simulated.

    Attributes:
        days: Workers → seconds of the day.
        policies: Workers and seconds of the day in which policies are compared, and of the days of the demands.
        seeds: How many days those are.
        partitions: Workers and seconds of the day for one store and for several.
        parts: Into how many parts the models are divided.
        steps: Steps of each size that are timed.
        calls: Calls of each kind that are timed.
    """

    days: Mapping[int, float]
    policies: tuple[int, float]
    seeds: int
    partitions: tuple[int, float]
    parts: Sequence[int]
    steps: int
    calls: int


FULL: Final = Size({1: 6_000, 10: 600, 100: 120, 1000: 30}, (100, 60), 8, (1000, 20), (1, 2, 4), 15, 60)
QUICK: Final = Size({1: 600, 10: 120}, (10, 60), 2, (20, 30), (1, 2), 4, 20)


def placed(jobs: Sequence[Job], workers: int, each: int) -> list[list[int]]:
    """The models that each worker has loaded in the morning, in proportion to what is asked of them."""
    wanted = shares(jobs)
    given = dict.fromkeys(wanted, 0)
    morning: list[list[int]] = []
    for _ in range(workers):
        own: list[int] = []
        for _ in range(min(each, len(wanted))):
            model = max((m for m in wanted if m not in own), key=lambda m: wanted[m] / (given[m] + 1))
            given[model] += 1
            own.append(model)
        morning.append(own)
    return morning


def divided(jobs: Sequence[Job], parts: int) -> list[frozenset[int]]:
    """The models in so many groups of about equal work."""
    groups: list[set[int]] = [set() for _ in range(parts)]
    work = [0] * parts
    for model, rows in shares(jobs).items():
        place = work.index(min(work))
        groups[place].add(model)
        work[place] += rows
    return [frozenset(group) for group in groups]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so large a share is not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def waits_of(course: Course, caller: str) -> list[float]:
    """Seconds that a caller's jobs waited."""
    return [job.wait for job in course.jobs if job.candidate.caller == caller and job.ended == job.ended]


def compared(course: Course, ideal: Course) -> dict[str, float]:
    """The numbers of a day, its waits also against the ideal's."""
    jobs = len(course.jobs)
    calls = {kind: course.calls.get(kind, 0) for kind in ("claim", "claimed")}
    numbers = {"workers": float(course.workers), "jobs a second": jobs / course.seconds}
    numbers |= {"computing": course.load, "utilisation": course.utilisation}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        ours, its = percentile(course.waits, share), percentile(ideal.waits, share)
        numbers |= {f"{name} wait, s": ours, f"{name} ÷ ideal": ours / its}
    light, heavy = (statistics.median(waits_of(course, caller)) for caller in (LIGHT, HEAVY))
    numbers["light ÷ heavy caller"] = light / heavy
    numbers |= {"loads": float(course.loads), "claims a job": calls["claim"] / jobs}
    numbers["calls a second"] = sum(course.calls.values()) / course.seconds
    numbers["store busy"] = course.store_busy_s / (course.seconds * course.cores)
    numbers["not done"] = float(jobs - len(course.waits))
    return numbers


@dataclass(frozen=True, slots=True)
class Setting:
    """What all days have in common.

    Attributes:
        device: What a worker can do.
        costs: What the store takes.
        mix: What comes.
    """

    device: Device
    costs: StoreCosts
    mix: Mix

    def jobs(self, workers: int, seconds: float, seed: int = 0) -> list[Job]:
        """A day's jobs for so many workers."""
        return day(seed, self.mix, self.device, workers, LOAD, seconds)

    def course(self, policy: Policy, jobs: Sequence[Job], workers: int, seconds: float) -> Course:
        """A day."""
        morning = placed(jobs, workers, self.device.models)
        return Cluster(self.device, workers, self.costs, policy, jobs, seconds, morning).run()

    def ideal(self, jobs: Sequence[Job], workers: int, seconds: float, *, merged: bool = False) -> Course:
        """The day that no cluster can have."""
        return Ideal(self.device, workers, jobs, seconds, merged=merged).run()


def sizes(setting: Setting, days: Mapping[int, float], say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """From one worker to many, by the recommended policy."""
    found = {}
    for workers, seconds in days.items():
        say(f"{workers} workers")
        jobs = setting.jobs(workers, seconds)
        course = setting.course(DEFAULT, jobs, workers, seconds)
        numbers = compared(course, setting.ideal(jobs, workers, seconds))
        bound = setting.ideal(jobs, workers, seconds, merged=True)
        found[str(workers)] = numbers | {"p99 ÷ bound": percentile(course.waits, 0.99) / percentile(bound.waits, 0.99)}
    return found


def policies(
    setting: Setting, given: Mapping[str, Policy], size: tuple[int, float], say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """The same day by different policies."""
    jobs = setting.jobs(*size)
    ideal = setting.ideal(jobs, *size)
    found = {}
    for name, policy in given.items():
        say(name)
        found[name] = compared(setting.course(policy, jobs, *size), ideal)
    return found


def joined(courses: Sequence[Course]) -> Course:
    """Days of several clusters that know nothing of one another, as one; the busiest store's share is theirs."""
    busiest = max(courses, key=lambda course: course.store_busy_s)
    calls: dict[str, int] = {}
    for course in courses:
        for kind, count in course.calls.items():
            calls[kind] = calls.get(kind, 0) + count
    jobs = sorted((job for course in courses for job in course.jobs), key=lambda job: job.candidate.submitted)
    return replace(
        busiest,
        jobs=jobs,
        workers=sum(course.workers for course in courses),
        busy_s=sum(course.busy_s for course in courses),
        needed_s=sum(course.needed_s for course in courses),
        loads=sum(course.loads for course in courses),
        calls=calls,
    )


def partitioned(setting: Setting, parts: int, jobs: Sequence[Job], workers: int, seconds: float) -> Course:
    """A store for each group of models, with workers in proportion to its work."""
    groups = [of_models(jobs, group) for group in divided(jobs, parts)]
    row_s = setting.device.step.best(setting.device.rows)
    work = [sum(job.work(setting.device, row_s) for job in group) for group in groups]
    total, given, courses, done = sum(work), 0, [], 0.0
    for group, own in zip(groups, work, strict=True):
        done += own
        count = max(1, round(workers * done / total) - given)
        given += count
        courses.append(setting.course(DEFAULT, group, count, seconds))
    return joined(courses)


def partitions(
    setting: Setting, parts: Sequence[int], size: tuple[int, float], say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """One store, and several."""
    jobs = setting.jobs(*size)
    ideal = setting.ideal(jobs, *size)
    found = {}
    for count in parts:
        say(f"{count} stores")
        found[str(count)] = compared(partitioned(setting, count, jobs, *size), ideal)
    return found


def shown(first: str, numbers: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> str:
    """A table of some of the numbers."""
    rows = [[name, *(f"{values[column]:.3g}" for column in columns)] for name, values in numbers.items()]
    return table([first, *columns], rows)


def days(setting: Setting, seeds: int, size: tuple[int, float], say: Callable[[str], None]) -> list[dict[str, float]]:
    """The same by other seeds, by the recommended policy."""
    found = []
    for seed in range(seeds):
        say(f"day {seed}")
        jobs = setting.jobs(*size, seed=seed)
        found.append(compared(setting.course(DEFAULT, jobs, *size), setting.ideal(jobs, *size)))
    return found


def demands(numbers: Sequence[Mapping[str, float]]) -> str:
    """Whether the recommended policy does what is asked of it on the median day; and the worst day."""
    busy, late = [each["utilisation"] for each in numbers], [each["p99 ÷ ideal"] for each in numbers]
    middle = statistics.median(busy), statistics.median(late)
    verdicts = ["held" if middle[0] >= UTILISATION else "NOT held", "held" if middle[1] <= P99 else "NOT held"]
    return (
        f"Demands at {numbers[0]['workers']:.0f} workers, the median of {len(numbers)} days: utilisation "
        f"{middle[0]:.3f} ≥ {UTILISATION}: {verdicts[0]}, the worst day {min(busy):.3f}; "
        f"p99 wait ÷ ideal {middle[1]:.2f} ≤ {P99}: {verdicts[1]}, the worst day {max(late):.2f}."
    )


def given_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/scaling.json"), help="where the JSON goes")
    parser.add_argument("--quick", action="store_true", help="small days of few workers: a minute")
    parser.add_argument("--cores", type=int, default=CORES, help="processors of the store's machine")
    return parser.parse_args()


def main() -> None:
    """Measure, simulate, print, write."""
    from benchmarks.simulation import measure  # torch and the models: what is simulated needs neither

    given = given_arguments()
    size, say = QUICK if given.quick else FULL, partial(print, flush=True)
    say("measuring the engine and the store")
    device = measure.device(size.steps)
    kind, costs = measure.store(size.calls, given.cores)
    setting = Setting(device, costs, Mix())
    large = replace(setting, device=replace(device, load_s=LARGE_LOAD_S))
    numbers: dict[str, Any] = {"device": asdict(device), "store": {"kind": kind, **asdict(costs)}}
    numbers["sizes"] = sizes(setting, size.days, say)
    numbers["policies"] = policies(setting, POLICIES, size.policies, say)
    patient = {f"{patience:g}": replace(DEFAULT, patience_s=patience) for patience in PATIENCES}
    numbers["patience, s"] = policies(setting, patient, size.policies, say)
    numbers["patience, s; loading takes 20 s"] = policies(large, patient, size.policies, say)
    numbers["stores"] = partitions(setting, size.parts, size.partitions, say)
    numbers["days"] = days(setting, size.seeds, size.policies, say)
    waiting = ["utilisation", "p50 wait, s", "p50 ÷ ideal", "p99 wait, s", "p99 ÷ ideal"]
    calling = ["claims a job", "calls a second", "store busy"]
    steps = ", ".join(f"{rows}: {seconds * 1e3:.0f}" for rows, seconds in device.step.points)
    per_core = 1 / costs.job_busy_s if costs.job_busy_s else math.inf
    sections = [
        f"A step, ms by rows: {steps}. Decoding a picture {device.decode_s * 1e3:.0f} ms, loading a model "
        f"{device.load_s:.1f} s.",
        f"{kind}, ms a call: "
        + ", ".join(
            f"{name} {call.seconds * 1e3:.1f} ({call.busy_s * 1e3:.2f} of a core)"
            for name in ("add", "claim", "claimed", "start", "finish", "renew")
            for call in (getattr(costs, name),)
        )
        + f". One core: {per_core:.0f} jobs a second, if each is claimed at the first try. {costs.cores} cores.",
        shown("workers", numbers["sizes"], ["jobs a second", *waiting, "p99 ÷ bound", "light ÷ heavy caller"]),
        shown("workers", numbers["sizes"], ["jobs a second", "computing", "loads", *calling, "not done"]),
        shown(f"{size.policies[0]} workers", numbers["policies"], [*waiting, *calling]),
        *(
            shown(name, numbers[name], [*waiting, "loads", "not done"])
            for name in ("patience, s", "patience, s; loading takes 20 s")
        ),
        shown("stores", numbers["stores"], ["jobs a second", *waiting, *calling, "not done"]),
        demands(numbers["days"]),
    ]
    report(f"Many workers, {LOAD} of what they can do at best", "\n\n".join(sections), numbers, given.out)


if __name__ == "__main__":
    main()

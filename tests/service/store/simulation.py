"""A service of clients, workers and a sweeper around one store, driven by a seed and a clock of its own.

Every turn one of them does one thing, so that a fault can fall between any two writes: workers crash, freeze past their
leases and go on with them, see clocks that jump; the store is busy, or does what it was asked and the answer is lost;
notifications are lost or come twice; the disk is full. Senders tell clients of jobs that are over: they crash between
sending and noting, sleep for longer than they may, and their receivers are away, or gone. :class:`Audit` stands beside
the store and knows by itself who may write to which job.
"""

import contextlib
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

from service.callbacks import HELD_S, TRIES, after_try, is_spent
from service.store.artifacts import Artifact, address_of
from service.store.memory import LocalBell, MemoryStore
from service.store.port import (
    DiskFullError,
    JobExistsError,
    KeyTakenError,
    LostLeaseError,
    Rules,
    StoreUnavailableError,
    Topic,
    UnknownJobError,
)
from service.store.records import Checkpoint, Ending, Failure, Idempotency, JobKind, JobRecord, JobState, Message, Wants
from service.store.retention import Retention, sweep

LEASE_S = 12.0
ATTEMPTS = 3
TURN_S = 1.0
# After so long a job whose caller wants no more of it is over, whatever happens: its lease expires, its worker's clock
# may be two leases behind that of who finds out, and the store may be busy for a few tries.
CANCELLED_WITHIN_S = 6 * LEASE_S
CALM_TURNS = 900


class ViolationError(AssertionError):
    """The store broke a promise."""


def run(coroutine):
    """What a coroutine returns that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


@dataclass
class Grant:
    """Who may write to a job, as the audit knows it."""

    fence: int
    expires: float


class Audit:
    """A store whose every call is judged."""

    def __init__(self, store, fair):
        self.store, self.fair = store, fair
        self.grants = {}
        self.ends = Counter()
        self.accepted = set()
        self.cancelling = {}
        # Who has a message, until when and at which try; how often a receiver got one, and took it; whose may not go.
        self.held = {}
        self.posted, self.took = Counter(), Counter()
        self.disowned = set()
        # Caller → who was served since it waits for its turn.
        self.passed = defaultdict(set)

    def call(self, name, *args):
        before = dict(self.store._entries)
        lease = args[0] if name in {"start", "checkpoint", "finish", "release"} else None
        lost = False
        try:
            result = run(getattr(self.store, name)(*args))
        except LostLeaseError:
            lost = True
            raise
        finally:
            if lease is not None:
                self._judge_write(name, lease, lost=lost)
            self._judge_changes(name, before)
        if name == "add":
            self.accepted.add(args[0].id)
        if name == "claim":
            self._judge_claims(result, args[2])
        if name == "note_message":
            self._judge_note(*args[:2], before)
        if name == "take_messages":
            self._judge_messages(result, *args[:2])
        if name == "renew":
            for kept in result.kept:
                if (grant := self.grants.get(kept.job_id)) is None or grant.fence != kept.fence:
                    raise ViolationError(f"a lease on {kept.job_id} was renewed that was lost")
                grant.expires = kept.expires
        return result

    def _judge_write(self, name, lease, *, lost):
        grant = self.grants.get(lease.job_id)
        holds = grant is not None and grant.fence == lease.fence
        if holds == lost:
            told = "was refused to its holder" if lost else "took effect under a stale fence"
            raise ViolationError(f"{name} of {lease} {told}")

    def _judge_changes(self, name, before):
        entries = self.store._entries
        for job_id, old in before.items():
            new = entries.get(job_id)
            if new is old:
                continue
            if new is None:
                if name != "delete" or not old.record.state.over:
                    raise ViolationError(f"{job_id} was lost by {name}")
                continue
            if old.record.state.over and replace(new.record, message=None) != replace(old.record, message=None):
                raise ViolationError(f"{name} changed {job_id} after its end")
            if new.record.state.over and not old.record.state.over:
                self.ends[job_id] += 1
            self._judge_message(name, old.record, new.record)
            if new.record.attempts > ATTEMPTS:
                raise ViolationError(f"{job_id} was tried {new.record.attempts} times")
            if new.worker is None:
                self.grants.pop(job_id, None)
        keys = Counter(
            (entry.record.caller, entry.record.key)
            for entry in entries.values()
            if entry.record.key and entry.record.state not in {JobState.FAILED, JobState.CANCELLED}
        )
        if keys and keys.most_common(1)[0][1] > 1:
            raise ViolationError(f"a key has two jobs: {keys}")

    def _judge_message(self, name, old, new):
        """What becomes of a message: only its sender changes it, and nobody once it is settled."""
        before, after = old.message, new.message
        if before == after:
            return
        if name not in {"take_messages", "note_message"} or before.url != after.url:
            raise ViolationError(f"{name} changed the message of {old.id}")
        if before.due is None:
            raise ViolationError(f"{name} changed the message of {old.id} after it was settled")
        if name == "note_message":
            self.held.pop(old.id, None)

    def _judge_note(self, job_id, tries, before):
        old, new = before.get(job_id), self.store._entries.get(job_id)
        if old is not new and old.record.message.tries != tries:
            raise ViolationError(f"the message of {job_id} was noted by one who has it no more")

    def _judge_messages(self, records, now, held_s):
        for record in records:
            if not record.state.over:
                raise ViolationError(f"the message of {record.id} was given out before its end")
            until, tries = self.held.get(record.id, (-1e18, 0))
            if until > now or record.message.tries <= tries:
                raise ViolationError(f"the message of {record.id} was given out while another sender has it")
            self.held[record.id] = now + held_s, record.message.tries

    def judge_post(self, record, *, took):
        """A receiver gets a message."""
        job_id, entry = record.id, self.store._entries.get(record.id)
        if not self.ends[job_id]:
            raise ViolationError(f"{job_id} was told of before its end")
        if entry is not None and (entry.record.state, entry.record.failure) != (record.state, record.failure):
            raise ViolationError(f"{job_id} was told of as {record.state}, and is {entry.record.state}")
        if record.message.url != url_of(job_id):
            raise ViolationError(f"{job_id} was told of at {record.message.url}")
        if job_id in self.disowned:
            raise ViolationError(f"{job_id} was told of, and its client never heard that it was accepted")
        self.posted[job_id] += 1
        self.took[job_id] += took
        if self.posted[job_id] > TRIES:
            raise ViolationError(f"{job_id} was told of {self.posted[job_id]} times")

    def judge_settled(self, gone):
        """What must hold of messages at the end; of deleted jobs nothing is owed."""
        for job_id in self.accepted & self.store._entries.keys():
            message = self.store._entries[job_id].record.message
            if message is None or job_id in self.disowned:
                continue
            given_up = message.outcome == "failed" and (message.tries >= TRIES or job_id in gone)
            if not (message.outcome == "delivered" and self.took[job_id]) and not given_up:
                raise ViolationError(f"{job_id} was neither told of nor given up: {message}")

    def _judge_claims(self, claims, now):
        for claim in claims:
            job_id, lease = claim.record.id, claim.lease
            grant = self.grants.get(job_id)
            if grant is not None and (grant.expires > now or grant.fence >= lease.fence):
                raise ViolationError(f"{job_id} was claimed while another worker has it")
            self.grants[job_id] = Grant(lease.fence, lease.expires)
        if self.fair:
            self._judge_turns(claims)

    def _judge_turns(self, claims):
        """Of equal jobs none is served twice while another caller waits for its turn."""
        taken = {claim.record.id for claim in claims}
        waiting = Counter(entry.record.caller for entry in self.store._entries.values() if entry.waiting)
        left = waiting + Counter(entry.record.caller for entry in map(self.store._entries.get, taken))
        for claim in claims:
            served = claim.record.caller
            left[served] -= 1
            self.passed[served] = set()
            for caller, count in left.items():
                if caller != served and count > 0:
                    if served in self.passed[caller]:
                        raise ViolationError(f"{served} was served twice while {caller} waited")
                    self.passed[caller].add(served)
        for caller in list(self.passed):
            if not waiting[caller]:
                self.passed[caller] = set()

    def judge_promises(self, now):
        """What must hold between any two calls."""
        for job_id in self.accepted:
            entry = self.store._entries.get(job_id)
            if entry is None and not self.ends[job_id]:
                raise ViolationError(f"{job_id} was accepted and is lost")
            if self.ends[job_id] > 1:
                raise ViolationError(f"{job_id} ended {self.ends[job_id]} times")
        for job_id, since in list(self.cancelling.items()):
            if self.ends[job_id]:
                del self.cancelling[job_id]
            elif now - since > CANCELLED_WITHIN_S:
                raise ViolationError(
                    f"{job_id} was to be cancelled {now - since:g} s ago: {self.store._entries[job_id]}"
                )


class Disk:
    """Artifacts in memory, on a disk that may be full."""

    def __init__(self, simulation):
        self._simulation = simulation
        self.files = {}

    async def put(self, data):
        if self._simulation.full:
            raise DiskFullError("the disk is full")
        address = address_of(data)
        self.files[address] = (data, self._simulation.now)
        return address

    async def get(self, address):
        return self.files[address][0]

    async def all(self):
        return [Artifact(address, len(data), used) for address, (data, used) in self.files.items()]

    async def remove(self, address, unused_since):
        if address not in self.files or self.files[address][1] > unused_since:
            return False
        del self.files[address]
        return True


@dataclass
class Doing:
    """A job in a worker's memory."""

    record: JobRecord
    lease: object
    step: int = 0
    started: bool = False
    cancel: bool = False
    saved: Checkpoint | None = None
    made: dict = field(default_factory=dict)


class Worker:
    """Claims, computes, saves, ends; one call of the store a turn."""

    def __init__(self, simulation, name):
        self.simulation, self.name = simulation, name
        self.doing = {}
        self.rung = False
        self.polled = self.beat = -1e9
        self.skew = 0.0
        self.frozen_until = -1e9

    @property
    def now(self):
        return self.simulation.now + self.skew

    def turn(self):
        sim, rng = self.simulation, self.simulation.rng
        if sim.now < self.frozen_until:
            return
        if sim.chaos:
            chance = rng.random()
            if chance < 0.01:  # killed: all that it knew is gone
                self.doing = {}
                return
            if chance < 0.02:  # stopped for a while; then it goes on as if nothing had been, without a heartbeat
                self.frozen_until = sim.now + rng.uniform(0.5, 3) * LEASE_S
                self.beat = self.frozen_until + self.skew
                return
            if chance < 0.025:
                self.skew = rng.uniform(-2, 2) * LEASE_S
        if self.doing and not -LEASE_S < self.now - self.beat < LEASE_S / 3:
            self._heartbeat()
        elif self.doing and rng.random() < 0.8:
            self._advance(rng.choice(list(self.doing.values())))
        elif len(self.doing) < 3 and (self.rung or not 0 <= self.now - self.polled < 8):
            self._claim()

    def _claim(self):
        self.rung, self.polled = False, self.now
        # Where the answer is lost, so is the claim: the leases expire.
        for claim in self.simulation.call("claim", self.name, Wants(jobs=3 - len(self.doing)), self.now):
            saved = claim.record.checkpoint
            if saved is not None and saved.address not in self.simulation.disk.files:
                raise ViolationError(f"{claim.record.id} has lost its checkpoint")
            self.doing[claim.record.id] = Doing(claim.record, claim.lease, saved.step if saved else 0)
            self.beat = self.now

    def _heartbeat(self):
        renewal = self.simulation.call("renew", [each.lease for each in self.doing.values()], self.now)
        self.beat = self.now
        for lease in renewal.kept:
            self.doing[lease.job_id].lease = lease
        for job_id in renewal.lost:
            del self.doing[job_id]
        for job_id in renewal.cancel:
            self.doing[job_id].cancel = True

    def _advance(self, job):
        try:
            self._write(job)
        except LostLeaseError:
            del self.doing[job.record.id]
        except DiskFullError:
            failure = Failure("there is no space for the picture", 507)
            self._end(job, Ending(JobState.FAILED, failure))

    def _write(self, job):
        sim = self.simulation
        if job.cancel:
            self._end(job, Ending(JobState.CANCELLED))
        elif sim.chaos and sim.rng.random() < 0.01:
            sim.call("release", job.lease, self.now)
            del self.doing[job.record.id]
        elif not job.started:
            sim.call("start", job.lease, self.now)
            job.started = True
        elif "poison" in job.record.request and job.step == 1:
            self.doing = {}
        elif job.saved is not None:
            sim.call("checkpoint", job.lease, job.saved)
            job.saved, job.step = None, job.saved.step
        elif job.step < job.record.steps or "endless" in job.record.request:
            address = run(sim.disk.put(f"{job.record.id} at {job.step + 1}".encode()))
            job.saved = Checkpoint(address, job.step + 1)
        elif not job.made:
            job.made = {"0.png": run(sim.disk.put(f"picture of {job.record.id}".encode()))}
        else:
            self._end(job, Ending(JobState.COMPLETED, artifacts=job.made))

    def _end(self, job, ending):
        with contextlib.suppress(LostLeaseError):
            self.simulation.call("finish", job.lease, ending, self.now)
        del self.doing[job.record.id]


def url_of(job_id):
    """Where the end of a job is told."""
    return f"https://hooks.example/{job_id}"


class Sender:
    """Tells clients that their jobs are over: takes, sends and notes, each in a turn of its own."""

    def __init__(self, simulation):
        self.simulation = simulation
        self.taken, self.sent = [], []
        self.skew, self.asleep_until = 0.0, -1e9

    @property
    def now(self):
        return self.simulation.now + self.skew

    def turn(self):
        sim, rng = self.simulation, self.simulation.rng
        if sim.now < self.asleep_until:
            return
        if sim.chaos:
            chance = rng.random()
            if chance < 0.03:  # killed, perhaps between sending and noting
                self.taken, self.sent = [], []
                return
            if chance < 0.05:  # stopped for longer than its messages are its own
                self.asleep_until = sim.now + rng.uniform(0.5, 2) * HELD_S
                return
            if chance < 0.06:
                self.skew = rng.uniform(-1, 1) * HELD_S
        if self.sent and rng.random() < 0.7:
            self._note(*self.sent.pop(rng.randrange(len(self.sent))))
        elif self.taken:
            record = self.taken.pop()
            self.sent.append((record, *after_try(record.message.tries, self._outcome(record))))
        elif not self.sent:
            self.taken += sim.call("take_messages", self.now, HELD_S, 3)

    def _outcome(self, record):
        return "failed" if is_spent(record.message) else self.simulation.receiver.get(record)

    def _note(self, record, outcome, pause):
        # Pauses are shorter here, as jobs are deleted sooner.
        due = self.now + pause / 40 if outcome is None else None
        self.simulation.call("note_message", record.id, record.message.tries, due, outcome)


class Receiver:
    """Where clients are told: sometimes away, of some jobs never to be told again; an answer may be lost on its way."""

    def __init__(self, simulation):
        self.simulation = simulation
        self.away = False
        self.gone = set()

    def get(self, record):
        """How a try ends."""
        sim, rng = self.simulation, self.simulation.rng
        if self.away:
            return None
        refused = sim.chaos and rng.random() < 0.05
        lost = sim.chaos and rng.random() < 0.1
        sim.audit.judge_post(record, took=not refused)
        if lost:
            return None
        if refused:
            self.gone.add(record.id)
            return "failed"
        return "delivered"


class Client:
    """Sends jobs, some twice, and gives some up."""

    def __init__(self, simulation, name, jobs):
        self.simulation, self.name, self.left = simulation, name, jobs
        self.sending = None
        self.sent = []
        self.endless = []
        self.disowning = None

    def turn(self):
        sim, rng = self.simulation, self.simulation.rng
        if self.disowning is not None:
            self._disown(self.disowning)
        elif self.sending is None and self.left and rng.random() < 0.3:
            self.left -= 1
            self.sending = self._job()
        elif self.sending is not None:
            try:
                sim.call("add", self.sending)
                self._accepted(self.sending)
            except JobExistsError:  # it had arrived
                self._accepted(self.sending)
            except KeyTakenError as taken:
                self._accepted(taken.winner)
            except StoreUnavailableError:
                if rng.random() < 0.3:  # it is told that nothing was accepted, but the store may have it
                    self.disowning, self.sending = self.sending.id, None
                raise
            self.sending = None
        elif self.endless and rng.random() < 0.03:
            # Only this ends them.
            self._cancel(self.endless.pop())
        elif self.sent and sim.chaos and rng.random() < 0.02:
            self._cancel(rng.choice(self.sent))

    def _disown(self, job_id):
        """Nobody shall be told of it, and it shall not run; to be tried again where the store is busy."""
        sim = self.simulation
        sim.call("note_message", job_id, 0, None)
        entry = sim.audit.store._entries.get(job_id)
        if entry is not None and entry.record.message is not None and entry.record.message.due is None:
            sim.audit.disowned |= {job_id} - set(sim.audit.posted)
        self.disowning = None
        if entry is not None:
            self._cancel(job_id)

    def _cancel(self, job_id):
        sim = self.simulation
        with contextlib.suppress(UnknownJobError):
            try:
                sim.call("request_cancel", job_id, sim.now)
            except StoreUnavailableError:
                self.endless.append(job_id)  # to be tried again
                return
        if not sim.audit.ends[job_id]:
            sim.audit.cancelling.setdefault(job_id, sim.now)

    def _accepted(self, record):
        self.sent.append(record.id)
        if record.request == "endless":
            self.endless.append(record.id)

    def _job(self):
        sim, rng = self.simulation, self.simulation.rng
        key = Idempotency(f"key {rng.randrange(4)}", "digest") if rng.random() < 0.5 else None
        return JobRecord(
            id=f"{self.name}-{self.left}",
            kind=JobKind.SUPERPOSITION,
            caller=self.name,
            request=rng.choice(["a cat"] * 18 + ["poison", "endless"]),
            seed=0,
            created=sim.now,
            models=("shapes",),
            components=("a cat",),
            steps=rng.randint(1, 4),
            priority=5 if sim.audit.fair else rng.randint(3, 7),
            deadline=sim.now + rng.uniform(1, 20) * LEASE_S if rng.random() < 0.1 else None,
            idempotency=key,
            message=Message(url_of(f"{self.name}-{self.left}")) if rng.random() < 0.5 else None,
        )


class Sweeper:
    """Frees what is stuck, and forgets what is old."""

    def __init__(self, simulation):
        self.simulation = simulation

    def turn(self):
        sim = self.simulation
        if sim.rng.random() < 0.1:
            sim.call("reap", sim.now)
        elif sim.rng.random() < 0.1:
            run(sweep(sim, sim.disk, Retention(8 * LEASE_S, 10_000, unused_s=5 * LEASE_S), sim.now))


class Ringer(LocalBell):
    """What the store rings for workers: sometimes nobody hears, sometimes twice."""

    def __init__(self, simulation):
        self.topics, self.simulation = frozenset({Topic.WORK}), simulation

    def ring(self):
        rng = self.simulation.rng
        for _ in range(rng.choice([0, 1, 1, 2])):
            rng.choice(self.simulation.workers).rung = True


class Simulation:
    """One seed's world. It stands in for the store where the sweeper asks for one."""

    def __init__(self, seed):
        self.seed, self.rng = seed, random.Random(seed)
        self.now = 1_700_000_000.0
        self.chaos, self.busy, self.full = True, 0.0, False
        fair = seed % 2 == 0
        store = MemoryStore(Rules(LEASE_S, ATTEMPTS, 1e12 if fair else LEASE_S))
        self.audit = Audit(store, fair)
        self.disk = Disk(self)
        self.workers = [Worker(self, f"worker {i}") for i in range(self.rng.randint(1, 3))]
        callers = self.rng.randint(2, 4)
        self.clients = [Client(self, f"caller {i}", self.rng.randint(1, 6)) for i in range(callers)]
        self.receiver = Receiver(self)
        self.senders = [Sender(self) for _ in range(self.rng.randint(1, 2))]
        self.actors = [*self.workers, *self.clients, *self.senders, Sweeper(self)]
        store._bells.add(Ringer(self))

    def call(self, name, *args):
        """One call of the store, which may fail before or after it has happened."""
        chance = self.rng.random()
        if chance < self.busy / 2:
            raise StoreUnavailableError("busy")
        result = self.audit.call(name, *args)
        if chance < self.busy:
            raise StoreUnavailableError("the answer was lost")
        return result

    async def expired(self, before, limit):
        return self.call("expired", before, limit)

    async def delete(self, job_ids):
        return self.call("delete", job_ids)

    async def references(self):
        return self.call("references")

    def tick(self):
        """One turn: somebody does one thing, and time goes on."""
        self.now += TURN_S / len(self.actors)
        if self.chaos and self.rng.random() < 0.01:
            self.busy = self.rng.choice([0.0, 0.05, 0.4])
            self.full = self.rng.random() < 0.1
            self.receiver.away = self.rng.random() < 0.3
        with contextlib.suppress(StoreUnavailableError):  # they try again
            self.rng.choice(self.actors).turn()
        self.audit.judge_promises(self.now)

    def play(self, turns=1500):
        """Let it all happen; then, without further faults, everything must come to its end."""
        for _ in range(turns):
            self.tick()
        self.chaos, self.busy, self.full, self.receiver.away = False, 0.0, False, False
        for each in (*self.workers, *self.senders):
            each.skew = 0.0
        for _ in range(CALM_TURNS * len(self.actors)):
            self.tick()
            if self.over:
                break
        else:
            left = [entry for entry in self.audit.store._entries.values() if unsettled(entry.record)]
            raise ViolationError(f"these never ended: {left}")
        for entry in self.audit.store._entries.values():
            if missing := entry.record.addresses - self.disk.files.keys():
                raise ViolationError(f"{entry.record.id} has lost {missing}")
        self.audit.judge_settled(self.receiver.gone)
        return self

    @property
    def over(self):
        waiting = any(client.left or client.sending or client.disowning for client in self.clients)
        return not waiting and not any(unsettled(entry.record) for entry in self.audit.store._entries.values())


def unsettled(record):
    """Whether a job is not over, or its client is still to be told."""
    return not record.state.over or (record.message is not None and record.message.due is not None)

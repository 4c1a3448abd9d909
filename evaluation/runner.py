"""Runs what is not yet measured, block by block, on several cores at once."""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from pathlib import Path

import torch
from tqdm import tqdm

from evaluation.findings import Section
from evaluation.store import Block, Scope, Store
from evaluation.suite import Bench
from evaluation.suites import open_suite


def run(names: Sequence[str], store: Store, *, workers: int = 1) -> None:
    """Measure every block of the suites that the store does not have yet.

    Args:
        names: Of the suites.
        store: An open one.
        workers: Processes, one thread each: blocks are independent, and small networks gain little from more threads.
    """
    suites = {name: open_suite(name) for name in dict.fromkeys(names)}
    # The suite of costs has the blocks of the others.
    wanted = list(dict.fromkeys(block for suite in suites.values() for block in suite.blocks(store.scope)))
    missing = [block for block in wanted if not store.has(block)]
    if not missing:
        return
    bench = Bench(store.folder, quick=store.scope.quick)
    for need in dict.fromkeys(need for block in missing for need in open_suite(block.suite).needs):
        getattr(bench, need)
    with tqdm(total=sum(b.work for b in wanted), unit="row", unit_scale=True, smoothing=0.1) as bar:
        bar.update(sum(block.work for block in wanted) - sum(block.work for block in missing))
        for block in _measured(missing, store, workers):
            bar.set_description(f"{block.suite}: {block.cell}"[:48])
            bar.update(block.work)


def _measured(blocks: Sequence[Block], store: Store, workers: int) -> Iterator[Block]:
    """Each block once it is in the store."""
    if workers <= 1:
        bench = Bench(store.folder, quick=store.scope.quick)
        for block in blocks:
            _measure(block, store, bench)
            yield block
        return
    # The longest first, so that no core is left with one at the end.
    ordered = sorted(blocks, key=lambda block: -block.work)
    spawn = multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, spawn, _start, (store.folder, store.scope)) as pool:
        futures = {pool.submit(_work, block): block for block in ordered}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_worker: dict[str, tuple[Store, Bench]] = {}


def _start(folder: Path, scope: Scope) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker["own"] = Store(folder, scope), Bench(folder, quick=scope.quick)


def _end_with_parent() -> None:
    """A run that is killed leaves no process behind: a worker waits for work on a pipe that its siblings keep open."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(block: Block) -> None:
    _measure(block, *_worker["own"])


def _measure(block: Block, store: Store, bench: Bench) -> None:
    start = time.process_time()
    outcome = open_suite(block.suite).measure(block, store.scope, bench)
    store.write(block, outcome, time.process_time() - start)


def sections(names: Sequence[str], store: Store) -> list[Section]:
    """What the store's blocks tell, suite by suite; suites without any are left out."""
    found = []
    for name in names:
        suite = open_suite(name)
        results = {block: store.read(block) for block in suite.blocks(store.scope) if store.has(block)}
        if results:
            found.append(suite.section(results, store.scope))
    return found

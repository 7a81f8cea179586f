"""Who does the shards of a run: this process, a pool of processes, or the actors of a Ray cluster.

What a shard gives depends on the shard alone, so the engine and the number of workers do not change a byte. A function
holds the keys of all photographs, so each worker is sent it once, and shards by their number.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Literal

import torch

from diffalign.core import DiffalignError, Mapper, Shard

__all__ = ["Engine", "default_workers", "open_engine"]

Engine = Literal["local", "ray"]
Function = Callable[[Shard], Path]

_MOST_WORKERS = 8  # by default, since each loads the models
_DIED = (
    "a worker died, which happens when memory runs out. What was finished is kept: the same command goes on; with "
    "fewer workers or a smaller batch_size if it dies again"
)


def default_workers(engine: Engine) -> int:
    """One worker per GPU of the machine or the Ray cluster, else one per CPU core, at most 8."""
    if engine == "ray":
        ray = _ray()
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False)
        resources = ray.cluster_resources()
        return int(resources.get("GPU", 0)) or max(1, min(_MOST_WORKERS, int(resources.get("CPU", 1))))
    return torch.cuda.device_count() or min(_MOST_WORKERS, len(os.sched_getaffinity(0)))


@contextmanager
def open_engine(engine: Engine = "local", workers: int = 1, *, threads: int = 1) -> Iterator[Mapper]:
    """What applies a function to every shard; see ``diffalign.core.run_shards``.

    Args:
        engine: "local" for processes of this machine (of one worker: this process), "ray" for actors; the folder of
            the run must then be one that every machine of the cluster sees.
        workers: how many at once; each keeps the models it has loaded.
        threads: of torch in a worker, and the CPU cores that an actor asks for.

    Raises:
        DiffalignError: Ray is not installed or has too few resources, or a worker died.
    """
    if workers < 1 or threads < 1:
        raise DiffalignError(f"expected workers and threads of at least 1, got {workers} and {threads}")
    if engine == "ray":
        with _ray_actors(workers, threads) as mapper:
            yield mapper
    elif workers == 1:
        yield map
    else:
        with _processes(workers) as mapper:
            yield mapper


@contextmanager
def _processes(workers: int) -> Iterator[Mapper]:
    """A pool; whatever ends the block early, Ctrl-C as well, ends the workers where they are."""
    context = multiprocessing.get_context("spawn")  # a fork would copy threads and GPU state half-way
    begun, functions = context.Value("i", 0), context.Queue()
    theirs, ours = context.Pipe(duplex=False)  # our end closes with this process, however it ends
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(theirs, begun, functions))
    numbers = count(1)

    def apply(function: Function, shards: Iterable[Shard], /) -> Iterator[Path]:
        number = next(numbers)
        packed = bytes(ForkingPickler.dumps(function))  # here, where an error would be seen
        for _ in range(workers):
            functions.put((number, packed))
        try:
            for done in as_completed([pool.submit(_run, number, shard) for shard in shards]):
                yield done.result()
        except BrokenProcessPool as error:
            raise DiffalignError(_DIED) from error

    try:
        yield apply
    except BaseException:
        ours.close()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        ours.close()
        functions.cancel_join_thread()  # what idle workers never took would keep us waiting
        functions.close()


_FUNCTIONS: Any = None  # in a worker: the queue of functions, each once for every worker
_LATEST: tuple[int, Any] = 0, None


def _begin(run: Connection, begun: Any, functions: Any) -> None:
    """A worker takes a GPU of its own, leaves Ctrl-C to the run, and does not outlive it when it is killed."""
    global _FUNCTIONS
    _FUNCTIONS = functions
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(run,), daemon=True).start()
    if torch.cuda.is_available():
        with begun.get_lock():
            torch.cuda.set_device(begun.value % torch.cuda.device_count())
            begun.value += 1


def _watch(run: Connection) -> None:
    run.poll(None)  # until the other end is closed
    os._exit(1)


def _run(number: int, shard: Shard) -> Path:
    """In a worker: the function of this number on a shard. Those before it, which this worker missed, are passed over.

    A worker takes each function once at most and there is one for every worker, so none waits in vain.
    """
    global _LATEST
    while _LATEST[0] != number:
        found, packed = _FUNCTIONS.get()
        _LATEST = found, ForkingPickler.loads(packed) if found == number else _LATEST[1]
    path: Path = _LATEST[1](shard)
    return path


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise DiffalignError("--engine ray needs Ray: pip install 'diffalign[ray]'") from None
    return ray


class _Actor:
    """Does shards one by one, in a process of its own that keeps its models."""

    def take(self, function: Function) -> None:
        """What is done from now on."""
        self.function = function

    def run(self, shard: Shard) -> Path:
        """A shard."""
        return self.function(shard)


@contextmanager
def _ray_actors(workers: int, threads: int) -> Iterator[Mapper]:
    ray = _ray()
    from ray.util import ActorPool

    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, include_dashboard=False)
    actors: list[Any] = []
    try:
        kind = ray.remote(num_cpus=threads, num_gpus=_gpus_each(ray.cluster_resources(), workers, threads))(_Actor)
        actors += [kind.remote() for _ in range(workers)]
        pool = ActorPool(actors)

        def apply(function: Function, shards: Iterable[Shard], /) -> Iterator[Path]:
            sent = ray.put(function)
            try:
                ray.get([one.take.remote(sent) for one in actors])
                yield from pool.map_unordered(lambda one, shard: one.run.remote(shard), list(shards))
            except ray.exceptions.RayTaskError as error:  # holds the worker's own
                if isinstance(error.cause, DiffalignError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayActorError as error:
                raise DiffalignError(_DIED) from error

        yield apply
    finally:
        for one in actors:
            ray.kill(one)
        if ours:
            ray.shutdown()


def _gpus_each(resources: dict[str, float], workers: int, threads: int) -> float:
    """A GPU for each worker, or such a part of one that all find room; 0 where there are none.

    Raises:
        DiffalignError: the cluster has too few CPU cores, so that some workers would never begin.
    """
    if resources.get("CPU", 0) < workers * threads:
        raise DiffalignError(
            f"expected {workers * threads} CPU cores for {workers} workers of {threads} threads, the Ray cluster has "
            f"{resources.get('CPU', 0):g}; set fewer --workers"
        )
    gpus = int(resources.get("GPU", 0))
    return 1 / -(-workers // gpus) if gpus else 0.0

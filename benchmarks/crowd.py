"""What a crowd does to the page: `python -m benchmarks.crowd load|cancel|soak` writes `results/crowd_*.json`.

The page runs in this process, on the embedded weights; its visitors speak to it over HTTP on loopback, in
Gradio's own queue protocol, as browsers do; those of the rush from a process of their own.

- load: many visitors at once; how long they wait, whether anyone is overtaken, how quick a light call stays,
  and what is said when the queue is full.
- cancel: runs that end at a random moment, by Stop, a client's cancel, a cut connection or a closed tab;
  how soon the sampler is free, and what is left behind.
- soak: calls by name through all tabs, one after another; memory, threads and files.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import httpx
from gradio.utils import get_cache_folder

import app
from benchmarks.common import RESULTS, positive, write_report
from benchmarks.first_picture import USUAL
from nestar.checkpoints import EMBEDDED
from nestar.model import NestAR, fingerprint_of
from nestar.settings import SampleSettings
from nestar.ui import together
from nestar.ui.assets import SESSIONS, launch_options

API = "/gradio_api"
CLASS = "lighthouse"
CLASSES = (CLASS, "flower", "fish", "planet", "forest")
OTHER_K = 2
"""Every fourth visitor's; the others keep the page's default."""
PATIENCE = 600.0
"""Seconds that a visitor waits for an answer at most."""
BEYOND = 20
"""Visitors more than the queue holds, who ask at once to see it full."""
WARM_UP = SESSIONS + 22
"""Runs before memory is first read: as many visitors' pages as Gradio keeps, and some."""
POLL = 0.002
LIGHT_GAP = 0.25
"""Seconds between two light calls."""


@dataclass
class Asked:
    """One call: when it was asked for, begun and ended, by the visitor's clock, and how."""

    asked: float
    begun: float | None = None
    ended: float | None = None
    places: tuple[int, ...] = ()
    error: str | None = None


class Visitors:
    """Visitors of a served page, who know of it what a browser does: its address, and the numbers of its
    events' functions."""

    def __init__(self, url: str, functions: dict[str, int]):
        self.functions = functions
        limits = httpx.Limits(max_connections=None)
        self.client = httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits)
        self._numbers = 0

    def session(self) -> str:
        self._numbers += 1
        return f"visitor{self._numbers}"

    async def join(self, session: str, seed: int) -> str:
        """Ask for a picture as the page does; returns the event's id.

        Raises:
            RuntimeError: it was not taken; with the server's sentence.
        """
        usual = SampleSettings(CLASSES[seed % len(CLASSES)], k=OTHER_K if seed % 4 == 3 else SampleSettings.k)
        names = ("k", "order", "steps", "temperature", "cfg")
        dials = {name: getattr(usual, name) for name in names} | {"seed": str(seed)}
        body = {
            "data": [usual.class_name, dials],
            "fn_index": self.functions["on_generate"],
            "session_hash": session,
        }
        answer = await self.client.post(f"{API}/queue/join", json=body)
        if answer.status_code != 200:
            raise RuntimeError(answer.json().get("detail", answer.text))
        return answer.json()["event_id"]

    @asynccontextmanager
    async def hearing(self, session: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """What a session is told, until the block is left."""
        async with self.client.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as answer:

            async def messages() -> AsyncIterator[dict[str, Any]]:
                async for line in answer.aiter_lines():
                    if line.startswith("data:"):
                        yield json.loads(line[5:])

            yield messages()

    async def picture(self, seed: int) -> Asked:
        """One visitor's run to its end."""
        session, run = self.session(), Asked(time.monotonic())
        try:
            await self.join(session, seed)
            async with self.hearing(session) as messages:
                async for message in messages:
                    if message["msg"] == "estimation":
                        run.places += (message["rank"],)
                    elif message["msg"] == "process_starts":
                        run.begun = time.monotonic()
                    elif message["msg"] == "process_completed":
                        run.ended = time.monotonic()
                        value = message["output"]["data"][0] if message["success"] else message["output"]
                        if value.get("state") != "finished":
                            run.error = str(value.get("message") or value.get("error") or value.get("state"))
                        break
        except (RuntimeError, httpx.HTTPError) as error:
            run.error = str(error) or type(error).__name__
        return run

    async def call(self, name: str, **values: Any) -> str | None:
        """One call by name, without a session, to its end; None, or what went wrong."""
        answer = await self.client.post(f"{API}/call/v2/{name}", json=values)
        if answer.status_code != 200:
            return answer.text
        heard = ""
        path = f"{API}/call/{name}/{answer.json()['event_id']}"
        with suppress(httpx.RemoteProtocolError):  # Gradio breaks the stream off after its end
            async with self.client.stream("GET", path) as stream:
                async for text in stream.aiter_text():
                    heard += text
        return None if "event: complete" in heard else heard[-300:]


class Crowd(Visitors):
    """Visitors beside the server, who see what it does."""

    def __init__(self, demo: gr.Blocks, url: str):
        super().__init__(url, {each.name: number for number, each in reversed(demo.fns.items())})
        self.demo, self.url = demo, url
        self.taken: list[str] = []
        """Sessions whose calls the server has taken, in its order."""
        self.begun: list[str] = []
        """Sessions whose calls have had their turn."""
        self._note_order()

    def _note_order(self) -> None:
        push, run = self.demo._queue.push, self.demo.runs.run

        async def noted_push(body: Any, *others: Any, **options: Any) -> Any:
            answer = await push(body, *others, **options)
            if answer[0]:
                self.taken.append(body.session_hash)
            return answer

        def noted_run(request: gr.Request, part: str = "") -> Any:
            self.begun.append(request.session_hash)
            return run(request, part)

        self.demo._queue.push, self.demo.runs.run = noted_push, noted_run


# ---- load ----------------------------------------------------------------------------------------


async def rush(visitors: Visitors, count: int, pictures: int) -> tuple[list[Asked], float, list[float]]:
    """`count` at once, each asking again as soon as its picture is there, `pictures` in all: what became of
    each, the seconds of it all, and those of a light call now and then."""
    numbers = iter(range(pictures))
    runs: list[Asked] = []

    async def visit() -> None:
        for seed in numbers:
            runs.append(await visitors.picture(seed))

    light: list[float] = []
    over = asyncio.Event()

    async def look_around() -> None:
        while not over.is_set():
            began = time.monotonic()
            (await visitors.client.get("/")).raise_for_status()
            light.append(time.monotonic() - began)
            await asyncio.sleep(LIGHT_GAP)

    began = time.monotonic()
    looking = asyncio.create_task(look_around())
    await asyncio.gather(*(visit() for _ in range(count)))
    seconds = time.monotonic() - began
    over.set()
    await looking
    return runs, seconds, light


def rush_from_elsewhere(url: str, functions: dict[str, int], count: int, pictures: int) -> Any:
    """As a process of its own, so that visitors do not hold up the server's threads."""

    async def all_of_them() -> Any:
        visitors = Visitors(url, functions)
        async with visitors.client:
            return await rush(visitors, count, pictures)

    return asyncio.run(all_of_them())


async def load(crowd: Crowd, count: int, pictures: int) -> dict[str, Any]:
    """A rush, as the visitors and the server have seen it."""
    await crowd.picture(0)
    crowd.taken.clear()
    crowd.begun.clear()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as elsewhere:
        runs, seconds, light = await asyncio.get_running_loop().run_in_executor(
            elsewhere, rush_from_elsewhere, crowd.url, crowd.functions, count, pictures
        )
    done = [run for run in runs if run.error is None and run.begun is not None and run.ended is not None]
    return {
        "visitors": count,
        "pictures": len(runs),
        "errors": [run.error for run in runs if run.error is not None],
        "seconds": round(seconds, 2),
        "pictures_per_second": round(len(done) / seconds, 3),
        "wait_seconds": quantiles([run.begun - run.asked for run in done]),
        "run_seconds": quantiles([run.ended - run.begun for run in done]),
        "told_their_place": sum(bool(run.places) for run in done),
        "most_overtaken": overtaken(crowd.taken, crowd.begun),
        "light_call_seconds": quantiles(light),
        "full": await fill(crowd),
    }


def overtaken(taken: Sequence[str], begun: Sequence[str]) -> int:
    """The most visitors who came after another and had their turn before."""
    place = {session: number for number, session in enumerate(taken)}
    turns = [place[session] for session in begun if session in place]
    assert len(turns) == len(taken), "every visitor's turn was noted"
    return max((sum(later > turn for later in turns[:i]) for i, turn in enumerate(turns)), default=0)


async def fill(crowd: Crowd) -> dict[str, Any]:
    """More visitors at once than the queue holds: how many are taken, and what the others read."""
    sessions = [crowd.session() for _ in range(app.QUEUE_LENGTH + BEYOND)]

    async def ask(session: str) -> str | None:
        try:
            await crowd.join(session, 0)
        except RuntimeError as error:
            return str(error)
        return None

    said = await asyncio.gather(*map(ask, sessions))
    refused = [sentence for sentence in said if sentence is not None]

    async def leave(session: str) -> None:  # whoever was taken listens for a moment, and is gone
        with suppress(httpx.HTTPError):
            async with asyncio.timeout(0.2), crowd.hearing(session) as messages:
                async for _ in messages:
                    pass

    with suppress(TimeoutError):
        await asyncio.gather(
            *(leave(s) for s, told in zip(sessions, said, strict=True) if told is None),
            return_exceptions=True,
        )
    return {
        "holds": app.QUEUE_LENGTH,
        "asked": len(sessions),
        "taken": len(sessions) - len(refused),
        "refused_with": sorted(set(refused)),
    }


# ---- cancel --------------------------------------------------------------------------------------


async def cancel(crowd: Crowd, runs: int, seed: int = 0) -> dict[str, Any]:
    """Runs that are ended at a random moment, in every way in turn."""
    chance = random.Random(seed)
    for number in range(WARM_UP):
        await crowd.picture(number)
    length = statistics.median([(r := await crowd.picture(n)).ended - r.begun for n in range(5)])
    before, freed = left_behind(), {name: [] for name in WAYS}
    stuck = 0
    for number in range(runs):
        way = list(WAYS)[number % len(WAYS)]
        moment = chance.uniform(0, length)
        try:
            freed[way].append(await end_one(crowd, WAYS[way], moment, number))
        except TimeoutError:
            stuck += 1
        if sys.stderr.isatty() and number % 20 == 0:
            print(f"\r{number} of {runs}", end="", file=sys.stderr, flush=True)
    after_all = await crowd.picture(0)
    return {
        "runs": runs,
        "a_whole_run_takes": round(length, 3),
        "seconds_until_free": {name: quantiles(values) for name, values in freed.items()},
        "stuck": stuck,
        "next_run": after_all.error or "made",
        **compared(before, left_behind()),
    }


async def end_one(crowd: Crowd, end: Callable[..., Any], moment: float, seed: int) -> float:
    """Ask for a picture, end it `moment` seconds after it began; seconds until the sampler is free.

    Raises:
        TimeoutError: it never was.
    """
    session = crowd.session()
    event = await crowd.join(session, seed)
    async with crowd.client.stream("GET", f"{API}/heartbeat/{session}") as heartbeat:
        async with crowd.hearing(session) as messages:
            async for message in messages:
                if message["msg"] == "process_starts":
                    break
            await asyncio.sleep(moment)
            ended = time.monotonic()
            await end(crowd, session, event, heartbeat)
            if end is not _cut and end is not _leave:
                await free(crowd)
                return time.monotonic() - ended
        await free(crowd)
        return time.monotonic() - ended


async def free(crowd: Crowd, longest: float = 20.0) -> None:
    """Until no run is going on."""
    async with asyncio.timeout(longest):
        while crowd.demo.runs.going:
            await asyncio.sleep(POLL)


async def _stop(crowd: Crowd, session: str, event: str, heartbeat: httpx.Response) -> None:
    body = {"data": [], "fn_index": crowd.functions["stop"], "session_hash": session}
    (await crowd.client.post(f"{API}/run/predict", json=body)).raise_for_status()


async def _cancel(crowd: Crowd, session: str, event: str, heartbeat: httpx.Response) -> None:
    body = {"session_hash": session, "fn_index": crowd.functions["on_generate"], "event_id": event}
    (await crowd.client.post(f"{API}/cancel", json=body)).raise_for_status()


async def _cut(crowd: Crowd, session: str, event: str, heartbeat: httpx.Response) -> None:
    """The stream is left, see `end_one`; the tab is still there."""


async def _leave(crowd: Crowd, session: str, event: str, heartbeat: httpx.Response) -> None:
    """A closed tab leaves the stream, too."""
    await heartbeat.aclose()


WAYS: dict[str, Callable[..., Any]] = {"stop": _stop, "cancel": _cancel, "cut": _cut, "leave": _leave}


# ---- soak ----------------------------------------------------------------------------------------

SOAKED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("generate", {"steps": 5}),
    ("diversity", {"steps": 2, "count": 4}),
    ("siblings", {"steps": 2, "count": 3}),
    ("generate", {"steps": 5, "k": 2}),
    ("temperatures", {"steps": 2}),
    ("nearest", {"steps": 2}),
    ("race", {"steps": 1}),
    ("failure", {"steps": 2}),
    ("animation", {"steps": 2}),
)
"""Calls of the soak, in turn, with a seed of their own each."""


async def soak(crowd: Crowd, calls: int) -> dict[str, Any]:
    """SOAKED, one after another; memory at ten moments."""
    errors: list[str] = []

    async def call(number: int) -> None:
        name, values = SOAKED[number % len(SOAKED)]
        wrong = await crowd.call(name, class_name=CLASS, seed=number, **values)
        if wrong is not None:
            errors.append(f"{name}: {wrong}")

    for number in range(max(WARM_UP, 2 * len(SOAKED))):
        await call(number)
    before, began, memory = left_behind(), time.monotonic(), [memory_mib()]
    for number in range(calls):
        await call(number)
        if (number + 1) % max(1, calls // 10) == 0:
            memory.append(memory_mib())
            print(f"{number + 1} calls: {memory[-1]:.0f} MiB", file=sys.stderr, flush=True)
    return {
        "calls": calls,
        "seconds": round(time.monotonic() - began, 1),
        "errors": errors,
        "memory_mib": memory,
        **compared(before, left_behind()),
    }


# ---- figures -------------------------------------------------------------------------------------


def memory_mib() -> float:
    """What this process holds: the page, and its visitors."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def left_behind() -> dict[str, float]:
    """Memory, threads, open files, and files in Gradio's folder."""
    folder = Path(get_cache_folder())
    return {
        "memory_mib": memory_mib(),
        "threads": threading.active_count(),
        "open_files": len(list(Path("/proc/self/fd").iterdir())),
        "cached_files": sum(each.is_file() for each in folder.rglob("*")) if folder.exists() else 0,
    }


def compared(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    growth = after["memory_mib"] / before["memory_mib"] - 1
    return {"before": before, "after": after, "memory_growth": round(growth, 4)}


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and most, in seconds."""
    if not values:
        return {}
    ordered = sorted(values)
    at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95)]
    return {"median": round(at[0], 4), "p95": round(at[1], 4), "most": round(ordered[-1], 4)}


async def measured(what: str, arguments: argparse.Namespace, crowd: Crowd) -> dict[str, Any]:
    async with crowd.client:
        if what == "load":
            return await load(crowd, arguments.visitors, arguments.count or 200)
        if what == "cancel":
            return await cancel(crowd, arguments.count or 1000)
        return await soak(crowd, arguments.count or 2000)


def on_a_page(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, measured on a page of its own."""
    demo = app.open_page(None, None, arguments.device)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    report = asyncio.run(measured(arguments.what, arguments, Crowd(demo, url)))
    demo.close(verbose=False)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("load", "cancel", "soak"))
    parser.add_argument("--visitors", type=positive, default=64)
    parser.add_argument("--count", type=positive, help="pictures, runs or calls; default: 200, 1000 and 2000")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    weights = fingerprint_of(NestAR.from_pretrained(EMBEDDED / f"k{SampleSettings.k}-lattice"))
    report = {"cores": os.cpu_count(), **USUAL, "fingerprint": weights, **on_a_page(arguments)}
    if arguments.what == "load":  # the same rush where no picture is made along with another
        together.MOST = 1
        alone = on_a_page(arguments)
        report["one_at_a_time"] = {
            name: alone[name] for name in ("pictures", "errors", "pictures_per_second", "wait_seconds")
        }
    out = arguments.out or RESULTS / f"crowd_{arguments.what}.json"
    write_report(out, report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()

"""The asyncio wrapper: the same answers, a loop that is never blocked, and tasks that take their images back."""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import pytest

from edgebert import AsyncClassifier
from edgebert.errors import BadDataError, BatchSizeError, ClosedError, NoSuchBundleError, QueueFullError, UsageError
from edgebert.runtime.classifier import Classifier
from edgebert.runtime.micro_batches import Request

WAIT = 30


def _run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), WAIT))


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def test_predict_answers_as_the_classifier(models: Any, toy: Any, toy_bundle: Path) -> None:
    images = toy.images(30)
    with Classifier(toy_bundle) as classifier:
        expected = [classifier.predict(image) for image in images]

    async def main() -> None:
        async with AsyncClassifier(toy_bundle) as classifier:
            assert await asyncio.gather(*(classifier.predict(image) for image in images)) == expected
            assert await classifier.predict_batch(images) == expected
            await classifier.warm_up(calls=1)
            assert classifier.counters().answers == 60
            assert classifier.properties()["backend"] == "fake"
            assert classifier.classifier.class_names == toy.card.class_names

    _run(main)
    assert [model.closed for model in models.opened] == [1, 1]


def test_the_loop_turns_while_the_model_runs(models: Any, toy: Any, toy_bundle: Path) -> None:
    async def main() -> None:
        async with AsyncClassifier(toy_bundle) as classifier:
            models[0].go.clear()
            tasks: list[asyncio.Task[Any]] = [asyncio.create_task(classifier.predict(image)) for image in toy.images(4)]
            tasks.append(asyncio.create_task(classifier.predict_batch(toy.images(2))))
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not any(task.done() for task in tasks)
            models[0].go.set()
            await asyncio.gather(*tasks)

    _run(main)


def test_a_cancelled_task_takes_its_image_back(models: Any, toy: Any, toy_bundle: Path) -> None:
    async def main() -> None:
        async with AsyncClassifier(toy_bundle) as classifier:
            images = toy.images(3)
            model = models[0]
            model.batches.clear()
            model.go.clear()
            held = asyncio.create_task(classifier.predict(images[0]))
            await _until(lambda: len(model.batches) == 1)
            task = asyncio.create_task(classifier.predict(images[1]))
            await _until(lambda: classifier.counters().queue_depth == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await _until(lambda: classifier.counters().cancelled == 1)
            model.go.set()
            await held
            assert model.sizes == [1]

    _run(main)


def test_a_task_cancelled_while_its_image_is_decoded_takes_it_back(
    models: Any, toy: Any, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding, go = threading.Event(), threading.Event()
    prepare = Request.prepare

    def slow(self: Request, *arguments: Any) -> None:
        decoding.set()
        assert go.wait(WAIT)
        prepare(self, *arguments)

    async def main() -> None:
        async with AsyncClassifier(toy_bundle) as classifier:
            models[0].go.clear()
            classifier.classifier.submit(toy.images(1)[0])
            monkeypatch.setattr(Request, "prepare", slow)
            task = asyncio.create_task(classifier.predict(toy.images(1)[0]))
            await _until(decoding.is_set)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go.set()
            await _until(lambda: classifier.counters().cancelled == 1)
            models[0].go.set()

    _run(main)


def test_a_cancelled_batch_ends_early(models: Any, toy: Any, toy_bundle: Path) -> None:
    async def main() -> None:
        async with AsyncClassifier(toy_bundle) as classifier:
            model = models[0]
            model.batches.clear()
            model.go.clear()
            task = asyncio.create_task(classifier.predict_batch(list(toy.images(1_000))))
            await _until(lambda: len(model.batches) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            model.go.set()
            await _until(lambda: classifier.counters().errors.get("CancelledError") == 1)
            assert len(model.batches) < 3

    _run(main)


def test_predict_raises_where_no_room_becomes_free_in_time(models: Any, toy: Any, toy_bundle: Path) -> None:
    async def main() -> None:
        async with AsyncClassifier(toy_bundle, max_queue=2) as classifier:
            image = toy.images(1)[0]
            models[0].go.clear()
            tasks = [asyncio.create_task(classifier.predict(image)) for _ in range(2)]
            await asyncio.sleep(0)
            for timeout in (0.0, 0.01):
                with pytest.raises(QueueFullError):
                    await classifier.predict(image, timeout=timeout)
            waiting = asyncio.create_task(classifier.predict(image, timeout=WAIT))
            gone = asyncio.create_task(classifier.predict(image, timeout=WAIT))
            await asyncio.sleep(0.01)
            gone.cancel()
            models[0].go.set()
            await asyncio.gather(*tasks, waiting)
            assert classifier._room._value == 2  # nothing was lost on the way

    _run(main)


def test_waiting_for_room_is_counted(models: Any, toy: Any, toy_bundle: Path) -> None:
    async def main() -> None:
        async with AsyncClassifier(toy_bundle, max_queue=1) as classifier:
            model, images = models[0], toy.images(5)
            model.batches.clear()
            model.go.clear()
            tasks = [asyncio.create_task(classifier.predict(images[0]))]
            await _until(lambda: len(model.batches) == 1)  # it is run, so that none of the others can be
            tasks += [asyncio.create_task(classifier.predict(image)) for image in images[1:]]
            await _until(lambda: classifier.counters().queue_depth == 4)
            begun = perf_counter_ns()  # all five have begun by now, so that each lasts longer than this
            await asyncio.sleep(0.05)
            held_s = (perf_counter_ns() - begun) / 1e9
            model.go.set()
            await asyncio.gather(*tasks)
            counters = classifier.counters()
            assert (counters.queue_depth, counters.queue_depth_max) == (0, 4)
            assert counters.whole.sum_s > 5 * held_s
            assert counters.queue.sum_s > 4 * held_s

    _run(main)


def test_waiting_for_a_thread_that_decodes_is_counted(
    models: Any, toy: Any, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, prepare = threading.Event(), Request.prepare

    def slow(self: Request, *arguments: Any) -> None:
        assert go.wait(WAIT)
        prepare(self, *arguments)

    async def main() -> None:
        async with AsyncClassifier(toy_bundle) as classifier:
            monkeypatch.setattr(Request, "prepare", slow)
            tasks = [asyncio.create_task(classifier.predict(image)) for image in toy.images(20)]
            await _until(lambda: classifier.counters().queue_depth == 20)
            tasks.pop().cancel()
            await _until(lambda: classifier.counters().queue_depth == 19)
            go.set()
            await asyncio.gather(*tasks)
            counters = classifier.counters()
            assert (counters.queue_depth, counters.answers, counters.cancelled) == (0, 19, 1)

    _run(main)


def test_refused_and_cancelled_tasks_are_counted(models: Any, toy: Any, toy_bundle: Path) -> None:
    async def main() -> None:
        async with AsyncClassifier(toy_bundle, max_queue=1) as classifier:
            image = toy.images(1)[0]
            models[0].batches.clear()
            models[0].go.clear()
            held = asyncio.create_task(classifier.predict(image))
            await _until(lambda: bool(models[0].batches))
            with pytest.raises(QueueFullError):
                await classifier.predict(image, timeout=0.0)
            waiting = asyncio.create_task(classifier.predict(image, timeout=math.inf))
            await _until(lambda: classifier.counters().queue_depth == 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            models[0].go.set()
            await held
            counters = classifier.counters()
            assert (dict(counters.errors), counters.cancelled) == ({"QueueFullError": 1}, 1)
            with pytest.raises(UsageError, match="timeout `nan`"):
                await classifier.predict(image, timeout=math.nan)

    _run(main)


def test_errors_come_as_they_are(models: Any, toy: Any, toy_bundle: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncClassifier(toy_bundle) as classifier:
            with pytest.raises(BadDataError):
                await classifier.predict(b"no image")
            with pytest.raises(BatchSizeError):
                await classifier.predict_batch([])
            with pytest.raises(NoSuchBundleError):
                await classifier.swap(tmp_path / "none")
        with pytest.raises(NoSuchBundleError):
            await AsyncClassifier(tmp_path / "none").open()

    _run(main)


def test_swap_is_awaited(models: Any, toy: Any, toy_bundle: Path, other_bundle: Path) -> None:
    async def main() -> None:
        async with AsyncClassifier(toy_bundle) as classifier:
            digest = await classifier.swap(other_bundle)
            assert (await classifier.predict(toy.images(1)[0])).digest == digest

    _run(main)


def test_use_before_open_and_after_close_is_refused(models: Any, toy: Any, toy_bundle: Path) -> None:
    async def main() -> None:
        classifier = AsyncClassifier(toy_bundle)
        await classifier.close()
        with pytest.raises(ClosedError, match="not open yet"):
            await classifier.predict(toy.images(1)[0])
        async with classifier:
            pass
        await classifier.close()
        with pytest.raises(ClosedError, match="was closed"):
            await classifier.predict(toy.images(1)[0])

    _run(main)


def test_close_tells_waiting_tasks_that_it_was_closed(models: Any, toy: Any, toy_bundle: Path) -> None:
    async def main() -> None:
        classifier = AsyncClassifier(toy_bundle)
        await classifier.open()
        models[0].go.clear()
        held = asyncio.create_task(classifier.predict(toy.images(1)[0]))
        await _until(lambda: len(models[0].batches) > 4)
        task = asyncio.create_task(classifier.predict(toy.images(1)[0]))
        await _until(lambda: classifier.counters().queue_depth == 1)
        closing = asyncio.create_task(classifier.close("cancel"))
        with pytest.raises(ClosedError):
            await task
        models[0].go.set()
        await closing
        assert (await held).label

    _run(main)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on Windows")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_refused(models: Any, toy: Any, toy_bundle: Path) -> None:
    classifier = AsyncClassifier(toy_bundle)
    asyncio.run(classifier.open())
    child = os.fork()
    if child == 0:
        code = 1
        try:
            asyncio.run(classifier.close())  # does nothing
            asyncio.run(classifier.predict(toy.images(1)[0]))
        except BaseException as error:  # noqa: BLE001  # told, and the child ends here whatever it was
            code = 41 if type(error).__name__ == "ForkedRuntimeError" else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 41
    asyncio.run(classifier.close())

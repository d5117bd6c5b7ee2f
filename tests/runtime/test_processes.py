"""How a program ends that holds a Classifier: at its own end, in forked children, on Ctrl-C. Each in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

# Forking with threads is what is tested; Python 3.12 warns of it.
COMMAND = (sys.executable, "-W", "ignore::DeprecationWarning", "-c")
TARGETS = pytest.mark.parametrize("target", ["cpu", "intel-cpu"])
NO_FORK = pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")

_OPEN = """
import concurrent.futures, os, signal, sys, threading, time
import numpy as np
from edgebert import Classifier
from edgebert.errors import ClosedError, ForkedRuntimeError
signal.signal(signal.SIGINT, signal.default_int_handler)  # programs that a shell starts beside itself inherit that it is ignored
classifier = Classifier({bundle!r}, target={target!r}, max_batch=1)
image = np.zeros((6, 8, 3), np.uint8)
"""


def _run(script: str, bundle: Path, target: str) -> subprocess.CompletedProcess[str]:
    code = _OPEN.format(bundle=str(bundle), target=target) + script
    return subprocess.run([*COMMAND, code], capture_output=True, text=True, timeout=60, check=False)


_PENDING = """
infer = classifier._opened.pipeline.runner.infer
def slow(batch):
    time.sleep(0.05)
    return infer(batch)
classifier._opened.pipeline.runner.infer = slow
futures = [classifier.submit(image) for _ in range(100)]
futures[0].result()
"""


@TARGETS
def test_a_program_that_ends_with_pending_futures_ends_cleanly(toy_bundle: Path, target: str) -> None:
    ran = _run(_PENDING + "print('end')", toy_bundle, target)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "end\n", "")


@TARGETS
def test_a_program_that_fails_with_pending_futures_keeps_its_exit_code(toy_bundle: Path, target: str) -> None:
    ran = _run(_PENDING + "sys.exit(3)", toy_bundle, target)
    assert (ran.returncode, ran.stderr) == (3, "")


@TARGETS
def test_threads_in_the_middle_of_calls_do_not_disturb_the_end(toy_bundle: Path, target: str) -> None:
    script = """
def work(call):
    while True:
        call(image)
for call in (classifier.predict, classifier.predict, classifier.submit, lambda image: classifier.predict_batch([image] * 9)):
    threading.Thread(target=work, args=(call,), daemon=True).start()
time.sleep(0.3)
"""
    ran = _run(script, toy_bundle, target)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_calls_in_an_exit_handler_are_refused(toy_bundle: Path) -> None:
    script = """
import atexit
classifier.submit(image).result()
def late():
    for call in (classifier.submit, classifier.predict):
        try:
            call(image)
        except ClosedError:
            print("closed")
atexit._clear()  # the handlers of edgebert run first, as for one that was registered before the import
import edgebert.runtime.micro_batches, edgebert.runtime.opened
atexit.register(late)
atexit.register(edgebert.runtime.opened._end_calls)
atexit.register(edgebert.runtime.micro_batches._end_workers)
"""
    ran = _run(script, toy_bundle, "cpu")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "closed\nclosed\n", "")


_FORK = (
    _PENDING
    + """
child = os.fork()
if child == 0:
    started = time.monotonic()
    for future in futures[-3:]:
        for call in (future.result, future.exception):
            try:
                error = call()
            except ForkedRuntimeError as raised:
                error = raised
            assert type(error) is ForkedRuntimeError, error
    assert futures[0].result().label  # what was answered before the fork stays
    assert len(concurrent.futures.wait(futures, 10).done) == len(futures)
    assert not futures[-1].cancel()
    for call in (classifier.submit, classifier.predict):
        try:
            call(image)
        except ForkedRuntimeError:
            continue
        os._exit(2)
    classifier.close()
    assert time.monotonic() - started < 10
    sys.exit(41)  # through the interpreter's own end, where inherited objects would be destroyed
_, status = os.waitpid(child, 0)
assert futures[-1].result().label  # the parent's go on
classifier.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""
)


@NO_FORK
@TARGETS
def test_a_forked_child_is_told_and_ends_while_futures_are_pending(toy_bundle: Path, target: str) -> None:
    ran = _run(_FORK, toy_bundle, target)
    assert ran.returncode == 41, ran.stderr
    assert ran.stderr == ""


@NO_FORK
@TARGETS
def test_a_child_that_drops_everything_ends(toy_bundle: Path, target: str) -> None:
    script = """
import gc
classifier.submit(image).result()
child = os.fork()
if child == 0:
    del classifier
    gc.collect()
    sys.exit(41)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ran = _run(script, toy_bundle, target)
    assert (ran.returncode, ran.stderr) == (41, "")


@NO_FORK
@TARGETS
def test_a_child_may_open_its_own(toy_bundle: Path, target: str) -> None:
    script = """
answer = classifier.predict(image)
child = os.fork()
if child == 0:
    with Classifier(classifier.path, target=classifier.target, threads=1) as own:
        os._exit(41 if own.submit(image).result(10) == answer else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ran = _run(script, toy_bundle, target)
    assert ran.returncode == 41, ran.stderr


@TARGETS
def test_spawned_workers_open_their_own(toy_bundle: Path, target: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"""
import multiprocessing
from edgebert import Classifier

def start():
    global classifier
    classifier = Classifier({str(toy_bundle)!r}, target={target!r}, threads=1)

def work(name):
    return classifier.submit(name).result(30).label

if __name__ == "__main__":
    start()
    image = {str(toy_bundle / "canary" / "0.png")!r}
    with multiprocessing.get_context("spawn").Pool(2, start) as pool:
        print(set(pool.map(work, [image] * 6)) == {{classifier.predict(image).label}})
""")
    ran = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stdout) == (0, "True\n"), ran.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@TARGETS
def test_ctrl_c_ends_the_program_as_python_does(toy_bundle: Path, target: str) -> None:
    script = """
classifier.submit(image)
print("ready", flush=True)
while True:
    classifier.predict(image)
"""
    code = _OPEN.format(bundle=str(toy_bundle), target=target) + script
    with subprocess.Popen([*COMMAND, code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT
    assert said.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_ctrl_c_ends_the_wait_for_a_future_and_the_with_block_closes(toy_bundle: Path) -> None:
    script = (
        _PENDING
        + """
with classifier:
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        futures[-1].result()
    except KeyboardInterrupt:
        print("interrupted", futures[-1].done())
print(futures[-1].result().label in classifier.class_names)
"""
    )
    ran = _run(script, toy_bundle, "cpu")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "interrupted False\nTrue\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@TARGETS
def test_ctrl_c_is_survived_after_models_were_closed_in_the_order_of_opening(toy_bundle: Path, target: str) -> None:
    script = """
second = Classifier(classifier.path, target=classifier.target)
classifier.close()
second.close()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""
    ran = _run(script, toy_bundle, target)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "interrupted\n", "")


@NO_FORK
def test_a_child_ends_after_every_model_was_closed(toy_bundle: Path) -> None:
    script = """
classifier.close()
child = os.fork()
if child == 0:
    sys.exit(41)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ran = _run(script, toy_bundle, "intel-cpu")
    assert (ran.returncode, ran.stderr) == (41, "")


@NO_FORK
def test_a_child_that_is_forked_while_an_answer_is_given_is_told(toy_bundle: Path) -> None:
    script = """
go, there, answered = threading.Event(), threading.Event(), classifier._tally.answered
def slow(*arguments):
    there.set()
    go.wait()
    answered(*arguments)
classifier._tally.answered = slow
future = classifier.submit(image)
there.wait()
child = os.fork()
if child == 0:
    try:
        future.result(10)
    except ForkedRuntimeError:
        os._exit(41)
    os._exit(1)
_, status = os.waitpid(child, 0)
go.set()
assert future.result(10).label
classifier.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""
    ran = _run(script, toy_bundle, "cpu")
    assert (ran.returncode, ran.stderr) == (41, "")


@NO_FORK
def test_a_child_that_is_forked_just_after_an_answer_was_given_keeps_it(toy_bundle: Path) -> None:
    script = """
go, there, model_goes = threading.Event(), threading.Event(), threading.Event()
def callback(future):
    there.set()
    go.wait()
infer = classifier._opened.pipeline.runner.infer
def held(batch):
    model_goes.wait()
    return infer(batch)
classifier._opened.pipeline.runner.infer = held
future = classifier.submit(image)
future.add_done_callback(callback)
model_goes.set()
there.wait()
child = os.fork()
if child == 0:
    os._exit(41 if future.result(10).label else 1)
_, status = os.waitpid(child, 0)
go.set()
classifier.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""
    ran = _run(script, toy_bundle, "cpu")
    assert (ran.returncode, ran.stderr) == (41, "")


def test_a_place_whose_thread_is_stopped_does_not_keep_the_program_from_ending(toy_bundle: Path) -> None:
    script = """
import edgebert.runtime.micro_batches as micro_batches
micro_batches._EXIT_WAIT_S = 3600  # which must not be waited for
classifier.submit(image).result()
reserve, there = classifier._queue.reserve, threading.Event()
def slow(*arguments):
    reserve(*arguments)
    there.set()
    threading.Event().wait()
classifier._queue.reserve = slow
threading.Thread(target=classifier.submit, args=(image,), daemon=True).start()
there.wait()
"""
    ran = _run(script, toy_bundle, "cpu")
    assert (ran.returncode, ran.stderr) == (0, "")


def test_an_image_that_is_decoded_while_the_program_ends_does_not_keep_it(toy_bundle: Path) -> None:
    script = """
import atexit
import edgebert.runtime.micro_batches as micro_batches, edgebert.runtime.opened as opened
micro_batches._EXIT_WAIT_S = opened._EXIT_WAIT_S = 3600  # which must not be waited for
classifier.submit(image).result()
put, there, go = classifier._queue.put, threading.Event(), threading.Event()
def slow(request):
    there.set()
    go.wait()
    put(request)
classifier._queue.put = slow
threading.Thread(target=classifier.submit, args=(image,), daemon=True).start()
there.wait()
dropped = micro_batches.MicroBatches.drop_places
def drop_places(queue):
    dropped(queue)
    go.set()
micro_batches.MicroBatches.drop_places = drop_places
"""
    ran = _run(script, toy_bundle, "cpu")
    assert (ran.returncode, ran.stderr) == (0, "")

"""A sketch of a GStreamer pipeline that ends in edgebert: any source GStreamer knows, one line of JSON for each answered frame.

    sudo apt-get install python3-gst-1.0 gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-base
    python3 pipeline.py widgets.edgebert                                               # a test picture, 30 frames
    python3 pipeline.py widgets.edgebert "v4l2src device=/dev/video0 ! videoconvert"
    python3 pipeline.py widgets.edgebert "rtspsrc location=rtsp://camera/1 latency=50 ! decodebin ! videoconvert"

`appsink` keeps one frame and drops older ones (`max-buffers=1 drop=true`), so that an answer is never about the past. The caps ask for
packed RGB in the size that the camera has: edgebert resizes by the rule of the bundle, as in training; a `videoscale` before it
would not. It needs Debian's own Python, since PyGObject comes from there, with edgebert on PYTHONPATH: the wheel file itself will do.

It is a sketch: it has no reconnect and no watchdog, and on a Jetson `nvvidconv ! video/x-raw,format=RGBA` comes before `videoconvert`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import gi
import numpy as np

gi.require_version("Gst", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import Gst, GstVideo

from edgebert import Classifier

TEST_PICTURE = "videotestsrc is-live=true num-buffers=30 ! video/x-raw,width=320,height=240 ! videoconvert"


def frame_of(sample: Gst.Sample) -> np.ndarray:
    """Return a sample as uint8 (height, width, 3) RGB; GStreamer pads each row to four bytes, and the padding is left out."""
    info = GstVideo.VideoInfo.new_from_caps(sample.get_caps())
    buffer = sample.get_buffer()
    there, mapped = buffer.map(Gst.MapFlags.READ)
    if not there:
        raise RuntimeError("the frame cannot be read")
    try:
        rows = np.frombuffer(mapped.data, np.uint8, count=info.stride[0] * info.height).reshape(info.height, -1)
        return rows[:, : info.width * 3].reshape(info.height, info.width, 3).copy()  # the buffer goes back to its pool
    finally:
        buffer.unmap(mapped)


def samples(pipeline: Gst.Element) -> Iterator[Gst.Sample]:
    """Yield what arrives at the sink until the stream ends; an element's error is raised, since the sink itself never says one."""
    sink, bus = pipeline.get_by_name("frames"), pipeline.get_bus()
    while not sink.get_property("eos"):
        sample = sink.emit("try-pull-sample", Gst.SECOND // 5)
        if sample is not None:
            yield sample
        elif (message := bus.pop_filtered(Gst.MessageType.ERROR)) is not None:
            error, details = message.parse_error()
            raise RuntimeError(f"{error.message} ({details})")


def main(bundle: str, source: str = TEST_PICTURE) -> int:
    """Classify frames until the stream ends; return 1 where it broke."""
    Gst.init(None)
    sink = "video/x-raw,format=RGB ! appsink name=frames max-buffers=1 drop=true sync=false"
    pipeline = Gst.parse_launch(f"{source} ! {sink}")
    with Classifier(bundle) as classifier:
        pipeline.set_state(Gst.State.PLAYING)
        try:
            for sample in samples(pipeline):
                prediction = classifier.predict(frame_of(sample))
                answer = {"pts_ms": sample.get_buffer().pts / Gst.MSECOND, "label": prediction.label}
                print(json.dumps({**answer, "score": round(prediction.score, 4)}), flush=True)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            pipeline.set_state(Gst.State.NULL)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

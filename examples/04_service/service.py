"""An HTTP service: `POST /predict` with an image as the body, `GET /metrics` for Prometheus, `GET /healthz`.

    pip install fastapi uvicorn
    BUNDLE=widgets.edgebert uvicorn service:app --port 8000            # in this folder
    curl --data-binary @part.jpg http://127.0.0.1:8000/predict
    curl -X POST "http://127.0.0.1:8000/swap?path=/srv/widgets-2.edgebert"  # from this computer only

One process and one model: requests that come together are answered as one batch. Start workers with `spawn` where one process is
not enough; a forked one would get an error for each answer. The body is capped; what is no image gets 422, and a full queue 503.

>>> callable(create_app)
True
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse

from edgebert.errors import EdgebertError, ImageError, QueueFullError
from edgebert.runtime.aio import AsyncClassifier
from edgebert.runtime.counters import prometheus_text

MAX_WAIT_S = 1.0  # for room in the queue; a client that gets 503 can ask another computer
MAX_BODY_BYTES = 16 << 20  # of one image; a phone's photograph has 3 to 8 MB
_LOCAL = ("127.0.0.1", "::1")


async def body_of(request: Request) -> bytes:
    """Return the body, or refuse it with 413 as soon as it is longer than the cap."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"at most {MAX_BODY_BYTES:,} bytes")
    return bytes(body)


def create_app(bundle: str | Path) -> FastAPI:
    """Return the service of one bundle, or of an installation; it is opened when the service starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncClassifier(bundle) as classifier:
            app.state.classifier = classifier
            yield

    app = FastAPI(title="edgebert", lifespan=lifespan)

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, object]:
        classifier: AsyncClassifier = request.app.state.classifier
        try:
            prediction = await classifier.predict(await body_of(request), timeout=MAX_WAIT_S)
        except ImageError as error:
            raise HTTPException(422, str(error)) from error
        except QueueFullError as error:
            raise HTTPException(503, str(error), headers={"Retry-After": "1"}) from error
        return {
            "label": prediction.label,
            "labels": prediction.labels,
            "score": prediction.score,
            "abstained": prediction.abstained,
            "bundle": prediction.digest,
        }

    @app.post("/swap")
    async def swap(request: Request, path: str) -> dict[str, str]:
        if request.client is None or request.client.host not in _LOCAL:
            raise HTTPException(403, "from this computer only")
        classifier: AsyncClassifier = request.app.state.classifier
        try:
            digest = await classifier.swap(path)
        except EdgebertError as error:  # the bundle that served goes on serving
            raise HTTPException(409, str(error)) from error
        return {"bundle": digest}

    @app.get("/metrics")
    async def metrics(request: Request) -> PlainTextResponse:
        classifier: AsyncClassifier = request.app.state.classifier
        return PlainTextResponse(prometheus_text(classifier.counters()), media_type="text/plain; version=0.0.4")

    @app.get("/healthz")
    async def healthz(request: Request) -> dict[str, str]:
        classifier: AsyncClassifier = request.app.state.classifier
        return {"bundle": classifier.classifier.digest}

    return app


if "BUNDLE" in os.environ:
    app = create_app(os.environ["BUNDLE"])

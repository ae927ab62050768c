"""An HTTP server over an exported model: POST a picture to /segments (JSON) or /labels (PNG).

curl --data-binary @street.jpg localhost:8000/segments
"""

import argparse
import io

import numpy as np
import uvicorn
from PIL import Image, UnidentifiedImageError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mask_former_runner import Result, Runner

MAX_BYTES = 32 * 2**20


def build_app(runner: Runner) -> Starlette:
    """Return the application around a runner."""

    async def predict(request: Request) -> Result:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BYTES:
                raise HTTPException(413, f"A picture may have {MAX_BYTES} bytes at most.")
        try:
            pixels = np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise HTTPException(415, f"The body is no picture: {error}") from error
        return await run_in_threadpool(lambda: next(runner(pixels)))

    async def segments(request: Request) -> JSONResponse:
        keys, names = ("id", "name", "score", "area", "box"), runner.classes["names"]
        rows = [(n, names[label], *rest) for _, n, label, *rest, _ in (await predict(request)).rows()]
        return JSONResponse([dict(zip(keys, row, strict=True)) for row in rows])

    async def labels(request: Request) -> Response:
        png = io.BytesIO()
        Image.fromarray((await predict(request)).labels()).save(png, "PNG")
        return Response(png.getvalue(), media_type="image/png")

    return Starlette(routes=[Route(f"/{f.__name__}", f, methods=["POST"]) for f in (segments, labels)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    uvicorn.run(build_app(Runner(arguments.model)), host="127.0.0.1", port=arguments.port)

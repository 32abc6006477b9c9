"""Denoise pictures in a web service that loads its model once.

    python examples/web_service.py            # tries the service without a network
    uvicorn --app-dir examples web_service:app

This needs `pip install fastapi httpx`, and `uvicorn` to serve.
"""

from __future__ import annotations

import functools
import io

from fastapi import Body, FastAPI, HTTPException, Response
from fastapi.testclient import TestClient
from PIL import Image
from skimage import data

import aeimg

app = FastAPI()


@functools.cache
def model() -> aeimg.LoadedDenoiser:
    """Returns the model, which threads may share."""
    return aeimg.load("denoise")


# FastAPI runs functions that are not `async` in threads, so that the service answers while the model works.
@app.post("/denoise")
def denoise(picture: bytes = Body(media_type="application/octet-stream")) -> Response:
    """Takes an image file, and returns it as a PNG file without noise."""
    try:
        clean = model()(Image.open(io.BytesIO(picture)))
    except (OSError, aeimg.InputError) as error:
        raise HTTPException(422, str(error)) from error
    buffer = io.BytesIO()
    clean.save(buffer, "PNG")
    return Response(buffer.getvalue(), media_type="image/png")


def main() -> None:
    """Sends a photograph to the service, and something that is none."""
    buffer = io.BytesIO()
    Image.fromarray(data.astronaut()[:96, :128]).save(buffer, "JPEG")
    client = TestClient(app)
    answer = client.post("/denoise", content=buffer.getvalue())
    image = Image.open(io.BytesIO(answer.content))
    print(f"denoise: {answer.status_code}, {image.format} {image.size}")
    print(f"no picture: {client.post('/denoise', content=b'no picture').status_code}")
    print(f"model loads: {model.cache_info().misses}")


if __name__ == "__main__":
    main()

"""aeimg's own image-to-image tasks, and a name's way to a task, whoever brought it.

Nothing here waits for torch: the command line makes its commands of these.
"""

from __future__ import annotations

from .. import registry
from ..contract import ImageTask
from .options import ColorizeOptions, DenoiseOptions, UpscaleOptions

DENOISE = ImageTask(
    name="denoise",
    summary="Denoise the images in SOURCES into the folder OUT.",
    options=DenoiseOptions,
    runner="aeimg.tasks.denoise:Denoise",
)
UPSCALE = ImageTask(
    name="upscale",
    summary="Enlarge the images in SOURCES into the folder OUT.",
    options=UpscaleOptions,
    runner="aeimg.tasks.upscale:Upscale",
    scale=None,
    hint="name a network by --model (spandrel:FILE.safetensors, or weights of your own), or train one: aeimg train "
    "upscale photos/ -o mine.safetensors",
)
COLORIZE = ImageTask(
    name="colorize",
    summary="Give the images in SOURCES likely colours, into the folder OUT.",
    options=ColorizeOptions,
    runner="aeimg.tasks.colorize:Colorize",
    channels_in=1,
    channels_out=3,
    hint="name weights by --model, or train some: aeimg train colorize photos/ -o mine.safetensors",
)

IMAGE_TASKS = {task.name: task for task in (DENOISE, UPSCALE, COLORIZE)}
"""Name -> task, of those that come with aeimg."""


def names() -> list[str]:
    """Returns the names of all image-to-image tasks, without loading anything of a plug-in."""
    return [*IMAGE_TASKS, *(name for name in registry.plugged_tasks() if name not in IMAGE_TASKS)]


def find(name: str) -> ImageTask | None:
    """Returns the image-to-image task of that name; None where there is none. Raises `ModelError` for a broken one."""
    return IMAGE_TASKS.get(name) or (None if name in registry.OWN_TASKS else registry.plugged_task(name))

"""Commands that are printed for the user to type."""

import os
import shlex
import sys
from pathlib import Path

# TensorBoard keeps ten images of a tag unless told, chosen at random: sliders of two runs would
# not stop at the same steps.
_IMAGES = 200


def tensorboard(logdir: os.PathLike) -> str:
    """The command as it can be typed here: an environment that is not activated is named."""
    return f"{_script()} --logdir {shlex.quote(str(logdir))} --samples_per_plugin=images={_IMAGES}"


def _script() -> str:
    script = Path(sys.executable).with_name("tensorboard")
    if not script.is_file():
        return "tensorboard"
    relative = os.path.relpath(script)
    if os.sep not in relative:
        relative = os.path.join(os.curdir, relative)  # else a shell would search for it
    return shlex.quote(min(relative, str(script), key=len))

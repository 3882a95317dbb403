"""mmx: train generative models of images and text with JAX, from a laptop to Cloud TPUs.

``mmx.load("runs/a")`` opens a finished or running training run; everything else is the ``mmx``
command. Importing this package is instant: jax is loaded when a run is.
"""

__version__ = "0.1.0"


def load(path, step=None):
    """Open a run directory for sampling and evaluation: see :class:`mmx.cli.run.Run`.

    Args:
      path: a run directory, or ``PATH@STEP``.
      step: which checkpoint; the newest one when None.
    """
    from mmx.cli.run import load_run

    return load_run(path, step=step)

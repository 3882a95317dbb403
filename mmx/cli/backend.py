"""Starting jax: where compiled programs are kept, and how much it may say."""

import logging
import os
from pathlib import Path


def start_jax() -> None:
    """Keep compiled programs on disk, so that a second start does not compile again."""
    import jax

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mmx", "jax"
    )
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    quiet_logs()


def quiet_logs() -> None:
    """The libraries' remarks on how we use them are not the user's concern; their errors are."""
    for name in ("absl", "orbax", "grain", "jax"):
        logging.getLogger(name).setLevel(logging.ERROR)

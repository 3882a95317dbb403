"""Pytrees by path: ``{"encoder/conv_in/kernel": leaf}``."""

from typing import Any

import jax


def path_str(path) -> str:
    """A key path as ``a/b/c``: dict keys, attribute names and list indices alike."""
    parts = []
    for entry in path:
        for field in ("key", "name", "idx"):
            if hasattr(entry, field):
                parts.append(str(getattr(entry, field)))
                break
    return "/".join(parts)


def flatten(tree: Any, is_leaf=None) -> dict[str, Any]:
    """Leaves by path, in the tree's own order."""
    return {path_str(path): leaf for path, leaf in jax.tree.leaves_with_path(tree, is_leaf=is_leaf)}


def map_with_path(fn, tree: Any, *rest, is_leaf=None) -> Any:
    """``jax.tree.map`` whose function also gets the leaf's path as its first argument."""
    return jax.tree.map_with_path(
        lambda path, *leaves: fn(path_str(path), *leaves), tree, *rest, is_leaf=is_leaf
    )


def unflatten(flat: dict[str, Any]) -> dict:
    """Nested dicts from paths: the inverse of :func:`flatten` for trees of dicts."""
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def num_params(tree: Any) -> int:
    """Number of scalars in a tree of arrays or abstract arrays."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))

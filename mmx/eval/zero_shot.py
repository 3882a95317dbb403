"""Classes told apart by their names, and by a linear probe; on embeddings, whoever made them.

Axis letters: N examples, C classes, P prompts of a class, E D width of embeddings and features.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mmx.core.errors import UserError
from mmx.eval import ranking, stats

# Ours. {} is the class's name. They mean the same, so that their embeddings may be averaged.
TEMPLATES = (
    "{}",
    "a photo of a {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "this is a {}.",
    "a close-up of a {}.",
    "a cropped picture of a {}.",
)
# Ours: of the ridge, on features of deviation 1, a share of the number of examples.
_PENALTIES = tuple(10.0**p for p in range(-6, 3))
_HELD_OUT = 5  # ours: one in five training examples chooses the penalty


def check_templates(templates: Sequence[str], where: str) -> None:
    """Raises UserError for a template without exactly one ``{}``."""
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"{where}: {template!r} needs one {{}}, where the class's name goes")
    if not templates:
        raise UserError(f"{where}: no template in it")


def class_embeddings(
    embed: Callable[[list[str]], np.ndarray], names: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """One embedding a class: its prompts' embeddings, averaged, and brought to length 1 again.

    arXiv 2103.00020 sec. 3.1.4: over embeddings, so that many prompts cost no more than one. They
    have to mean the same: an average over different contents loses which goes with which.

    Args:
      embed: texts -> float [n, E] of length 1.
      names: C classes.
      templates: P texts with ``{}``.

    Returns:
      float32 [C, E].
    """
    prompts = [template.format(name) for name in names for template in templates]
    prompt_CPE = embed(prompts).reshape(len(names), len(templates), -1)
    mean_CE = prompt_CPE.mean(axis=1)
    return mean_CE / np.maximum(np.linalg.norm(mean_CE, axis=1, keepdims=True), 1e-12)


def accuracy(likeness_NC: np.ndarray, label_N: np.ndarray) -> dict[str, stats.Score | float]:
    """Top-1 and, of more than ten classes, top-5 accuracy; the mean over classes; chance.

    Only classes that occur count, as answers too: of a data set whose names are a thousand and
    whose pictures are of two hundred (ImageNet-A, -R), the answer is one of the two hundred.
    Ties earn their share.

    Args:
      likeness_NC: higher is likelier.
      label_N: int, in [0, C).
    """
    present, label_N = np.unique(label_N, return_inverse=True)
    likeness_NC = np.asarray(likeness_NC)[:, present]
    right_NC = label_N[:, None] == np.arange(len(present))
    hits_N = ranking.hits_at(likeness_NC, right_NC, 1)
    scores: dict[str, stats.Score | float] = {"top1": stats.proportion(hits_N)}
    if len(present) > 10:
        scores["top5"] = stats.proportion(ranking.hits_at(likeness_NC, right_NC, 5))
    of_class = np.bincount(label_N, hits_N) / np.bincount(label_N)
    scores["mean_per_class"] = float(of_class.mean())
    scores["chance"] = 1 / len(present)
    return scores


def fit_probe(
    feature_ND: np.ndarray, label_N: np.ndarray, classes: int
) -> Callable[[np.ndarray], np.ndarray]:
    """A linear classifier by ridge regression on one-hot labels, in closed form.

    As Big Vision's few-shot evaluation: one eigendecomposition serves every penalty. The penalty is
    chosen by the accuracy on one in five of the examples, which are then fitted too. (The paper has
    a logistic regression by L-BFGS with a swept penalty, arXiv 2103.00020 app. A.3; this one needs
    no iterations and has one answer.)

    Args:
      feature_ND: of the training images.
      label_N: int, in [0, classes).

    Returns:
      features [n, D] -> likeness [n, classes].
    """
    feature_ND = np.asarray(feature_ND, np.float64)
    is_held = np.arange(len(feature_ND)) % _HELD_OUT == _HELD_OUT - 1
    penalty = _PENALTIES[0]
    if is_held.any() and len(np.unique(label_N[~is_held])) > 1:
        ridge = Ridge(feature_ND[~is_held], label_N[~is_held], classes)
        found = [
            (ridge.at(p)(feature_ND[is_held]).argmax(1) == label_N[is_held]).mean()
            for p in _PENALTIES
        ]
        penalty = _PENALTIES[len(found) - 1 - int(np.argmax(found[::-1]))]  # of equals the largest
    return Ridge(feature_ND, label_N, classes).at(penalty)


class Ridge:
    """min |X W + b - Y|^2 + penalty * N |W|^2, X standardised, Y one-hot; b is not penalised."""

    def __init__(self, feature_ND: np.ndarray, label_N: np.ndarray, classes: int):
        self.mean, self.std = feature_ND.mean(0), feature_ND.std(0) + 1e-8
        x_ND = (feature_ND - self.mean) / self.std
        y_NC = np.eye(classes)[label_N]
        self.bias = y_NC.mean(0)  # X is centred, so this is b whatever W is
        self._value_D, self._vector_DD = np.linalg.eigh(x_ND.T @ x_ND / len(x_ND))
        self._xy_DC = self._vector_DD.T @ (x_ND.T @ (y_NC - self.bias)) / len(x_ND)

    def at(self, penalty: float) -> Callable[[np.ndarray], np.ndarray]:
        """The classifier, features [n, D] -> [n, C], at one penalty > 0."""
        scaled_DC = self._xy_DC / (np.maximum(self._value_D, 0) + penalty)[:, None]
        weight_DC = self._vector_DD @ scaled_DC
        return lambda feature_nD: (feature_nD - self.mean) / self.std @ weight_DC + self.bias

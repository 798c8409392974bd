"""Label projectors: a small head that gives soft labels from embeddings, in place of stored ones. Written by train.projector, read here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillroom.errors import InputError
from stillroom.operators import Table

__all__ = ["TASK", "Projector", "load"]

# B = embeddings of a batch, D = numbers of each, R = rank, K = classes

TASK = "project_labels"


@dataclass(frozen=True)
class Projector:
    """softmax(U (V x) + b): V [R, D] and U [K, R] together are a K x D map of rank R at most.

    Args:
        config: what the model's row says: vectors (the column it was fitted to), label_names, rank, temperature of the labels.
    """

    down_RD: np.ndarray
    up_KR: np.ndarray
    bias_K: np.ndarray
    config: Mapping[str, Any]

    @property
    def label_names(self) -> list[str]:
        """The K class names, in the order of `probs`."""
        return list(self.config["label_names"])

    def probs(self, embeddings_BD: np.ndarray) -> np.ndarray:
        """Soft labels of embeddings, float32 [B, K], rows that sum to 1.

        Raises:
            InputError: embeddings of another length than those it was fitted to.
        """
        embeddings_BD = np.asarray(embeddings_BD, np.float32)
        if embeddings_BD.ndim != 2 or embeddings_BD.shape[1] != self.down_RD.shape[1]:
            found = "x".join(map(str, embeddings_BD.shape))
            raise InputError("embeddings", f"are {found}, the projector takes rows of {self.down_RD.shape[1]}", f"pass the column '{self.config['vectors']}'")
        logits_BK = embeddings_BD @ self.down_RD.T @ self.up_KR.T + self.bias_K
        probs_BK: np.ndarray = np.exp(logits_BK - logits_BK.max(axis=1, keepdims=True))
        return probs_BK / probs_BK.sum(axis=1, keepdims=True)


def load(models: Table) -> Projector:
    """The projector of a table that train.projector left, such as `stillroom.table("photos.projector")`.

    Raises:
        InputError: the table holds another kind of model.
    """
    from safetensors.numpy import load as tensors_of

    rows = models.take(range(min(1, models.rows)), ["config", "weights"]).to_pylist()
    config = json.loads(rows[0]["config"]) if rows else {}
    if config.get("task") != TASK:
        raise InputError("projector", f"the models are made for the task '{config.get('task')}'", "pass the table of a train.projector")
    tensors = tensors_of(rows[0]["weights"])
    return Projector(tensors["down_RD"], tensors["up_KR"], tensors["bias_K"], config)

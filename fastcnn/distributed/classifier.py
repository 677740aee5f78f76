"""`DaskCNNClassifier`: one model, trained and used on many machines."""

from __future__ import annotations

import inspect
import uuid
from copy import copy, deepcopy
from dataclasses import dataclass
from math import prod
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.metrics import accuracy_score
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from fastcnn.classifier import CNNClassifier, _Images
from fastcnn.distributed.chunks import (
    ChunkFacts,
    Found,
    Look,
    as_labels,
    inspect_chunk,
    is_dask_array,
    load_chunk,
    merged_labels,
    split,
)
from fastcnn.distributed.cluster import Rounds, find_client, results, submit_value
from fastcnn.distributed.rounds import Images, Job
from fastcnn.images import merge_scaling, resolve_image_shape, usable_scaling
from fastcnn.labels import NOTHING_WEIGHS, check_weight, weight_of_classes
from fastcnn.persistence import SavedModel
from fastcnn.training.augment import check_augment

__all__ = ["DaskCNNClassifier"]


class DaskCNNClassifier(CNNClassifier):
    """`CNNClassifier` for Dask arrays: training is shared out over the workers of a cluster.

    Training is data-parallel, in rounds. Each partition of the images takes `sync_every` steps from a common state
    on a worker; then the states (parameters, batch normalisation's statistics, the optimiser's moments) are averaged,
    each weighing as much as the images it has seen. Every round is made of pure tasks: what a worker that dies has lost
    is done again by another, and the result is the same bits for the same partitions, on however many workers. With one
    partition, and no block momentum, it has the bits of `CNNClassifier`.

    Parameters
    ----------
    client : distributed.Client or None, default=None
        The cluster. None: the client that was made last. It is not pickled, and clones share it.

    sync_every : int or None, default=16
        Steps in a round. 1 with ``solver="sgd"`` (and no block momentum) is training with batches of `batch_size` times
        the partitions; more steps mean less traffic. None: as many as a chunk has.

    block_momentum : float in [0, 1), default=0.0
        Share of what the parameters moved by in a round that they move by again in the next one [1]_. It makes up for
        what averaging takes: the more partitions and the longer the rounds, the larger. 0.5 was good for two partitions
        and two rounds an epoch.

    n_partitions : int or None, default=None
        How many partitions train side by side. None: each chunk is one. Otherwise neighbouring chunks are dealt out
        to so many, which train on one of theirs at a time: no more than five chunks of each partition are in memory,
        unless X was persisted.

    checkpoint_every : int or None, default=None
        Rounds after which `checkpoint` is written within an epoch too; the state then comes to the client each time.
        None: at the end of each epoch alone.

    **parameters
        Those of `CNNClassifier`. `batch_size` is each partition's. `n_jobs` counts within a worker's threads.

    Attributes
    ----------
    n_rounds_ : int
        Rounds of the last fit.

    See Also
    --------
    fastcnn.CNNClassifier : All other parameters and attributes.

    Notes
    -----
    `fit` looks at all images once before it trains: classes, scaling, sizes. Chunks should be of about one size, since
    a round takes as long as its slowest part.

    References
    ----------
    .. [1] Chen and Huo 2016, "Scalable training of deep learning machines by incremental block training with
       intra-block parallel optimization and blockwise model-update filtering", ICASSP.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **CNNClassifier._parameter_constraints,
        "client": "no_validation",  # type: ignore[dict-item]
        "sync_every": [Interval(Integral, 1, None, closed="left"), None],
        "block_momentum": [Interval(Real, 0, 1, closed="left")],
        "n_partitions": [Interval(Integral, 1, None, closed="left"), None],
        "checkpoint_every": [Interval(Integral, 1, None, closed="left"), None],
    }

    def __init__(
        self, *, client=None, sync_every=16, block_momentum=0.0, n_partitions=None, checkpoint_every=None, **parameters
    ):
        super().__init__(**parameters)
        self.client = client
        self.sync_every = sync_every
        self.block_momentum = block_momentum
        self.n_partitions = n_partitions
        self.checkpoint_every = checkpoint_every

    # ---------------------------------------------------------------------------------- copies

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "client": None}

    def __copy__(self) -> Self:
        made = object.__new__(type(self))
        made.__dict__.update(vars(self))
        return made

    def __sklearn_clone__(self) -> Self:
        without = copy(self)
        without.client = None  # a connection cannot be copied
        made = super(DaskCNNClassifier, without).__sklearn_clone__()
        made.client = self.client
        return made

    def to_local(self) -> CNNClassifier:
        """The same classifier for one machine, without Dask.

        Returns
        -------
        CNNClassifier
            Fitted if this one is.
        """
        own = {"n_rounds_"} | set(self._get_param_names()) - set(CNNClassifier._get_param_names())
        local = CNNClassifier(**{k: v for k, v in self.get_params(deep=False).items() if k not in own})
        local.__dict__ |= {k: v for k, v in vars(deepcopy(self)).items() if k not in own and not hasattr(local, k)}
        return local

    def _to_save(self) -> SavedModel:
        saved = super()._to_save()  # which CNNClassifier can load
        saved.parameters = {k: v for k, v in saved.parameters.items() if k in CNNClassifier._get_param_names()}
        return saved

    # ---------------------------------------------------------------------------------- training

    @property
    def partial_fit(self) -> Any:
        raise AttributeError("a DaskCNNClassifier has no partial_fit: train on all chunks with fit, or use to_local()")

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Self:
        """Train on images `X` with labels `y`, on the cluster.

        Parameters
        ----------
        X : dask array of shape (n, H, W), (n, H, W, C) or (n, H*W*C)
            Chunked along the first axis. Persisted, it stays in the cluster's memory; otherwise its chunks are loaded
            when their turn comes.
        y : dask array or array-like of shape (n,)
            Labels: numbers that are classes, booleans, strings or NumPy's dates.
        sample_weight : dask array or array-like of shape (n,), default=None
        X_val, y_val, sample_weight_val : as X, y, sample_weight, or arrays, default=None
            Validation data. Dask arrays are validated on the cluster, others here.

        Returns
        -------
        self : object

        Raises
        ------
        ImportError
            Without Dask.
        TypeError
            If `X` is no dask array.
        ValueError
            If the data or a parameter cannot be used; the message names the chunk. The estimator is as it was before.
        ConnectionError
            If the scheduler is lost, or all workers are for a minute.
        """
        find_client(self.client)
        if not is_dask_array(X):
            raise TypeError(
                f"X must be a dask array, got {type(X).__name__}: dask.array.from_array(X, chunks=...) makes one, "
                "dataframe.to_dask_array(lengths=True) another; CNNClassifier takes arrays"
            )
        super().fit(X, y, sample_weight, X_val=X_val, y_val=y_val, sample_weight_val=sample_weight_val)
        self.n_rounds_ = self.__dict__.pop("_rounds").rounds
        return self

    def _take_in(self, X: Any, y: Any, sample_weight: Any, goes_on: bool) -> _Chunks:
        if not 2 <= X.ndim <= 4:
            raise ValueError(
                f"X of shape {X.shape} has {X.ndim} dimensions: expected (n, H, W), (n, H, W, C) or (n, H*W*C)"
            )
        shape = None if X.ndim == 2 else (*X.shape[1:], 1)[:3]
        if not goes_on:
            self.n_features_in_ = prod(X.shape[1:])
            self.image_shape_ = resolve_image_shape(self.image_shape, shape, self.n_features_in_)
        data = self._look_at(X, y, sample_weight, ends=goes_on or sample_weight is not None)
        labels, counts, heaviest = merged_labels(data.numbers, data.facts)
        self._know_classes(labels, goes_on)
        if self.class_weight == "balanced":
            data.class_weight = counts.sum() / (len(labels) * counts)
        elif self.class_weight is not None:
            data.class_weight = weight_of_classes(self.class_weight, labels, labels)
        if data.class_weight is not None:
            most = (data.class_weight * heaviest).max()
            if not most:
                raise ValueError(NOTHING_WEIGHS)
            check_weight("class_weight times sample_weight", most, counts.sum(), self.dtype)
        return data

    def _look_at(self, X: Any, y: Any, sample_weight: Any, ends: bool = False) -> _Chunks:
        """Have each chunk checked; empty ones are left out."""
        import dask

        client, name = find_client(self.client), uuid.uuid4().hex
        look = Look(self.image_shape_, self.scale, float(np.finfo(self.dtype).max), self.checkpoint is not None, ends)
        blocks = split(X, y, sample_weight)
        looks = [
            dask.delayed(inspect_chunk)(number, *block, look, dask_key_name=f"fastcnn-inspect-{number}-{name}")
            for number, block in enumerate(blocks)
        ]
        facts = results(client, client.compute(looks))
        kept = [number for number, fact in enumerate(facts) if fact.n_images]
        if not kept:
            raise ValueError("X has no images")
        if not any(fact.weight for fact in facts):
            raise ValueError("sample_weight is zero for every image")
        if sample_weight is not None:
            most = max(fact.heaviest.max(initial=0) for fact in facts)
            check_weight("sample_weight", most, sum(fact.n_images for fact in facts), self.dtype)
        return _Chunks(
            kept,
            [blocks[number] for number in kept],
            [facts[number] for number in kept],
            [fact.digests for fact in facts],
            self._history.n_iter + int(self.max_iter),
        )

    def _loaded(self, data: _Chunks) -> list[Any]:
        """The chunks as delayed `Images`."""
        import dask

        found, name = Found(self.classes_, data.class_weight), uuid.uuid4().hex
        return [
            dask.delayed(load_chunk)(
                number, *block, self.image_shape_, found, dask_key_name=f"fastcnn-images-{number}-{name}"
            )
            for number, block in zip(data.numbers, data.blocks, strict=True)
        ]

    def _fit_scaling(self, data: _Chunks, index: Any) -> tuple[np.ndarray, np.ndarray]:
        parts = [fact.scaling for fact in data.facts if fact.scaling is not None]
        weights = [fact.weight for fact in data.facts if fact.scaling is not None]
        return usable_scaling(*merge_scaling(self.scale, parts, weights, data.facts[0].is_uint8))

    def _loader(self, data: Any, index: Any, seed: int) -> Any:
        network = self.network_
        job = Job(
            name=uuid.uuid4().hex,
            layers=network.layers,
            image_shape=self.image_shape_,
            dtype=network.dtype.name,
            device=network.device,
            precision=network.precision,
            n_jobs=self.n_jobs,
            optimizer=self._make_optimizer(),
            offset=self.channel_offset_,
            scale=self.channel_scale_,
            augment=tuple(check_augment(self.augment)),
            batch_size=int(self.batch_size),
            shuffle=self.shuffle,
            seed=seed,
            label_smoothing=self.label_smoothing,
            micro_batch_size=self.micro_batch_size,
            ema_decay=self.ema_decay,
            block_momentum=float(self.block_momentum),
        )
        sizes = [fact.n_images for fact in data.facts]
        self._rounds = Rounds(
            find_client(self.client),
            job,
            self._loaded(data),
            sizes,
            self.n_partitions or len(sizes),
            None if self.sync_every is None else int(self.sync_every),
            data.end,
            None if self.checkpoint is None or self.checkpoint_every is None else int(self.checkpoint_every),
        )
        return self._rounds

    # ---------------------------------------------------------------------------------- validation

    def _hold_out(self, data: Any, validation: Any, seed: int) -> tuple[Any, Any]:
        return None, validation

    def _check_validation(self, X_val: Any, y_val: Any, sample_weight_val: Any) -> Any:
        if self.early_stopping and X_val is None:
            raise ValueError("early_stopping on a cluster needs X_val and y_val: nothing is set aside")
        if not is_dask_array(X_val) or y_val is None:
            return super()._check_validation(X_val, y_val, sample_weight_val)
        if self.scoring not in (None, "loss"):
            raise ValueError(f"scoring={self.scoring!r} needs X_val in memory: a dask array is scored chunk by chunk")
        try:
            found = self._look_at(X_val, y_val, sample_weight_val, ends=True)
            for number, fact in zip(found.numbers, found.facts, strict=True):
                as_labels(fact.labels, self.classes_, number, "y_val")
        except ValueError as error:
            raise ValueError(f"validation data: {error}") from error
        return found

    def _check_range(self, images: Any, whose: str = "") -> None:
        if not isinstance(images, _Chunks):
            super()._check_range(images, whose)
            return
        dtype = self.network_.dtype
        for number, fact in zip(images.numbers, images.facts, strict=True):
            if fact.ends is not None and not self._scaled(fact.ends).max() <= float(np.finfo(dtype).max):
                values = f"values up to {np.abs(fact.ends).max():.3g}, too large for {dtype}, scaled"
                raise ValueError(f"{whose}chunk {number}: X has {values}")

    def _compared(self, images: Any) -> tuple[np.ndarray | None, ...]:
        if isinstance(images, _Images):
            return super()._compared(images)
        return tuple(np.frombuffer(b"".join(of_all), np.uint8) for of_all in zip(*images.digests, strict=True))

    def _validate(self, held_out: Any) -> tuple[float, float]:
        if isinstance(held_out, _Images):
            return super()._validate(held_out)
        client = find_client(self.client)
        if held_out.loaded is None:
            held_out.loaded = self._loaded(held_out)
        predictor = submit_value(client, CNNClassifier._of_saved, self._predictor(), "fastcnn-model")
        name = uuid.uuid4().hex
        futures = [
            client.submit(validate_chunk, predictor, images, key=f"fastcnn-validate-{number}-{name}")
            for number, images in zip(held_out.numbers, client.compute(held_out.loaded), strict=True)
        ]
        found = np.array(results(client, futures))
        score, loss = np.average(found[:, :2], axis=0, weights=found[:, 2])
        return float(score), float(loss)

    # ---------------------------------------------------------------------------------- prediction

    def predict(self, X: Any, tta: str | bool | None = None) -> Any:
        """The most probable label of each image.

        Parameters
        ----------
        X : dask array or array-like of shape (n, H, W), (n, H, W, C) or (n, H*W*C)
        tta : {"flip", "shift", "flip+shift"}, False or None, default=None
            As the parameter of the estimator, which None stands for; False: without.

        Returns
        -------
        dask array of shape (n,), not computed yet; for an `X` that is no dask array an ndarray
        """
        return self._chunkwise("predict", X, tta)

    def predict_proba(self, X: Any, tta: str | bool | None = None) -> Any:
        """The probability of each class.

        Parameters
        ----------
        X, tta : as for `predict`

        Returns
        -------
        dask array of shape (n, n_classes), not computed yet; for an `X` that is no dask array an ndarray
        """
        return self._chunkwise("predict_proba", X, tta)

    def predict_log_proba(self, X: Any, tta: str | bool | None = None) -> Any:
        """The logarithm of each class's probability.

        Parameters
        ----------
        X, tta : as for `predict`

        Returns
        -------
        dask array of shape (n, n_classes), not computed yet; for an `X` that is no dask array an ndarray
        """
        return self._chunkwise("predict_log_proba", X, tta)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The accuracy, computed at once.

        Parameters
        ----------
        X : dask array or array-like of shape (n, H, W), (n, H, W, C) or (n, H*W*C)
            Images.
        y : dask array or array-like of shape (n,)
            Labels.
        sample_weight : dask array, array-like of shape (n,) or None, default=None
            How much each image counts.

        Returns
        -------
        float
            Share of the images that are named rightly, weighted.
        """
        known = [value for value in (self.predict(X), y, sample_weight)]
        lazy = [value for value in known if is_dask_array(value)]
        if lazy:
            client = find_client(self.client)
            computed = iter(results(client, client.compute(lazy)))
            known = [next(computed) if is_dask_array(value) else value for value in known]
        return float(accuracy_score(known[1], known[0], sample_weight=known[2]))

    def _chunkwise(self, method: str, X: Any, tta: Any) -> Any:
        check_is_fitted(self)
        if not is_dask_array(X):
            return getattr(super(), method)(X, tta)
        import dask
        import dask.array as da

        self._views(tta)
        made = dask.delayed(CNNClassifier._of_saved, traverse=False)
        predictor = made(self._predictor(), dask_key_name=f"fastcnn-model-{uuid.uuid4().hex}")
        labels = method == "predict"
        dtype = self.classes_.dtype if labels else self.network_.dtype
        return da.blockwise(
            _predict_chunk,
            (0,) if labels else (0, X.ndim),
            X,
            tuple(range(X.ndim)),
            concatenate=True,
            new_axes={} if labels else {X.ndim: len(self.classes_)},
            dtype=dtype,
            meta=np.empty((0,) * (1 if labels else 2), dtype),
            name=f"fastcnn-{method.replace('_', '-')}-{uuid.uuid4().hex}",
            predictor=predictor,
            method=method,
            tta=tta,
        )

    def _predictor(self) -> SavedModel:
        """What a worker makes a classifier of that predicts: parameters as they are now, no moments."""
        saved = self._to_save()
        saved.parameters = {name: getattr(self, name) for name in ("tta", "scoring", "n_jobs", "device", "precision")}
        saved.params = {name: value.copy() for name, value in saved.params.items()}
        return saved


@dataclass
class _Chunks:
    """Images on the cluster: chunks that are not empty, and what is known of each."""

    numbers: list[int]
    blocks: list[tuple[Any, Any, Any]]  # images, labels, weights
    facts: list[ChunkFacts]
    digests: list[tuple[bytes, ...]]  # of all chunks, those that are empty too
    end: int  # the epoch that is not trained any more
    class_weight: np.ndarray | None = None
    loaded: list[Any] | None = None


def validate_chunk(predictor: CNNClassifier, images: Images) -> tuple[float, float, float]:
    """Score, loss and the weight of both."""
    weight = len(images.rows) if images.weight is None else images.weight.sum()
    if not weight:
        return 0.0, 0.0, 0.0
    return (*predictor._validate(_Images(*images)), float(weight))


def _predict_chunk(x: np.ndarray, *, predictor: CNNClassifier, method: str, tta: Any) -> np.ndarray:
    if len(x):
        return getattr(predictor, method)(x, tta)
    shape = () if method == "predict" else (len(predictor.classes_),)
    return np.empty((0, *shape), predictor.classes_.dtype if method == "predict" else predictor.network_.dtype)


def _signature() -> inspect.Signature:
    """All parameters by name, for scikit-learn and for readers."""
    own = inspect.signature(DaskCNNClassifier.__init__).parameters
    named = [p for p in own.values() if p.kind is not p.VAR_KEYWORD]
    inherited = list(inspect.signature(CNNClassifier.__init__).parameters.values())[1:]
    return inspect.Signature([named[0], *inherited, *named[1:]])


DaskCNNClassifier.__init__.__signature__ = _signature()  # type: ignore[attr-defined]

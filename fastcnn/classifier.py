"""`CNNClassifier`: a convolutional neural network as a scikit-learn classifier."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy, deepcopy
from functools import partial
from inspect import signature
from math import inf, isfinite, log, nan, prod
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import check_scoring, get_scorer_names
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, estimator_html_repr
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.multiclass import _check_partial_fit_first_call
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from fastcnn.architecture import Architecture, build_layers
from fastcnn.engine.network import Network, device_at_hand
from fastcnn.image_estimator import ImageEstimator
from fastcnn.images import chunks, fit_scaling, resolve_image_shape, row_contiguous
from fastcnn.inspection import Summary, draw, summarize
from fastcnn.kernels import choose_device, get_backend
from fastcnn.kernels.contract import PRECISIONS
from fastcnn.labels import NOTHING_WEIGHS, check_labels, check_weight, places, weight_of_classes
from fastcnn.layers import Dense
from fastcnn.model_files import ModelFiles
from fastcnn.persistence import Checkpoint, SavedModel
from fastcnn.sklearn_callbacks import CallbackSupport, FitTask
from fastcnn.training.augment import check_augment
from fastcnn.training.batches import BatchLoader
from fastcnn.training.builders import BatchBuilder, builder_for
from fastcnn.training.callbacks import progress as show_progress
from fastcnn.training.initializers import KINDS
from fastcnn.training.loop import History, train
from fastcnn.training.optimizers import SGD, Adam, AdamW, Muon, Optimizer
from fastcnn.training.schedules import SCHEDULES, make_schedule
from fastcnn.training.views import PLAIN, TTA, View, views_of

__all__ = ["CNNClassifier"]

OfBatch = Callable[[Any], np.ndarray]

# In inference: images together, and fewer of large ones.
_BATCH_IMAGES, _BATCH_VALUES = 256, 2**22


class _Images(NamedTuple):
    """Checked images (rows), their labels (0 to n_classes - 1) and weights."""

    rows: np.ndarray
    labels: np.ndarray
    weight: np.ndarray | None


class CNNClassifier(CallbackSupport, ClassifierMixin, ModelFiles, ImageEstimator):
    """Convolutional neural network classifier.

    Trained by stochastic gradient descent on the cross-entropy of a softmax. X may be images ``(n, H, W)``
    or ``(n, H, W, C)`` (channels last, as PIL, scikit-image, OpenCV and Keras have them) or flat ``(n,
    H*W*C)``. uint8, float32 and float64 are used as they are, each mini-batch being converted when it is
    built; X of these types is never copied whole to float.

    Parameters
    ----------
    conv_channels : int or sequence of int, default=(32, 64)
        Channels of each convolutional block: convolution with "same" padding, batch normalisation if asked
        for, activation, pooling.

    kernel_size : int or (int, int), default=3
        Height and width of the convolutions' windows. Where an image is so small that parts of a window would
        never see anything but padding, they are left out; `summary` says so.

    pool : {"max", "avg"} or None, default="max"
        Pooling at the end of each block.

    pool_size : int or (int, int), default=2
        Window and step of the pooling. A window larger than what is left of the image shrinks to it.

    dense_units : int or sequence of int, default=(128,)
        Sizes of the dense layers between the last block and the output.

    activation : {"relu", "elu", "tanh", "leaky_relu", "silu"}, default="relu"
        Activation of the convolutional and dense layers.

    batch_norm : bool, default=False
        Whether to normalise before each activation.

    dropout : float in [0, 1), default=0.4
        Share of the inputs of every dense layer, the output layer included, that is set to zero in training.

    layers : list of layer specs or None, default=None
        The network as a list of layers of `fastcnn.layers`, without the last ``Dense(n_classes)`` and the
        softmax, which are added. When given, none of the parameters above is used.

    image_shape : (H, W), (H, W, C) or None, default=None
        What the rows of a flat X are. None: square images of one channel if the number of features is a
        square, else images of one row. X that has the shape of images must agree.

    scale : {"standardize", "unit"} or None, default="standardize"
        How pixels are scaled. "standardize": each channel to mean 0 and standard deviation 1 over the
        training data (weighted by `sample_weight`). "unit": uint8 divided by 255; floats so that the
        smallest value in the training data becomes 0 and the largest 1. None: not at all.

    weight_init : {"auto", "he", "glorot", "orthogonal"}, default="auto"
        Initial weights. "auto": He before ReLU and its kin, else Glorot.

    augment : list of augmentations or None, default=None
        Random changes to the training images, of `fastcnn.training.augment`: `RandomHorizontalFlip`,
        `RandomShift`, `RandomAffine`, `RandomErasing` or `Cutout`, `RandomContrast`, `RandomBrightness`, `MixUp`,
        each once at most. They are done while the mini-batch before trains.

    solver : {"adam", "adamw", "muon", "sgd"}, default="adam"
        The optimiser. "adamw" is Adam with decoupled weight decay. "muon" learns most from each mini-batch: hidden
        layers' weights take orthogonalised steps, all other parameters those of "adamw"
        (`fastcnn.training.optimizers.Muon`).

    learning_rate_init : float, default=0.003
        The learning rate at the start; the highest for ``learning_rate="onecycle"``.

    learning_rate : {"constant", "cosine", "onecycle", "step"}, default="onecycle"
        The learning rate over the `max_iter` epochs: constant; down to 0 on half a cosine; up and down to
        nearly 0; a tenth after half of the epochs and again after three quarters. `partial_fit` keeps
        `learning_rate_init`.

    warmup : float in [0, 1) or None, default=None
        Share of the steps in which the learning rate rises. None: 0.3 for "onecycle", else none.

    momentum : float in [0, 1), default=0.9
        For ``solver="sgd"`` and "muon".

    nesterovs_momentum : bool, default=True
        For ``solver="sgd"`` and "muon".

    beta_1, beta_2 : float in [0, 1), default=0.9 and 0.999
        Decay of the moment estimates of Adam.

    epsilon : float, default=1e-8
        Added to the root of Adam's second moment.

    alpha : float, default=1e-4
        L2 penalty ``alpha / 2 * |w|^2`` of the weights (not of biases), added to the mean loss; the
        decoupled weight decay of "adamw" and "muon".

    label_smoothing : float in [0, 1), default=0.0
        Share of each label's weight that goes to all classes evenly.

    clip_norm : float or None, default=None
        Longest gradient, over all parameters, before it is scaled down.

    ema_decay : float in (0, 1) or None, default=None
        Average the parameters over the steps, such as 0.999: each step moves the average to ``decay * average +
        (1 - decay) * parameters``, the first ones by more. Validation sees the average, and `fit` ends with it; the
        next call begins a new one.

    batch_size : int, default=128
        Images in a mini-batch.

    micro_batch_size : int or None, default=None
        Images that go through the network together; gradients are added up over a mini-batch, so that large ones
        need the memory of small ones. None: the whole mini-batch.

    max_iter : int, default=12
        Epochs: how often each image is used.

    shuffle : bool, default=True
        Whether each epoch goes through the images in a new order.

    tol : float, default=1e-4
        Training ends when `n_iter_no_change` epochs in a row did not improve by this much.

    n_iter_no_change : int or inf, default=10
        See `tol`. What must improve is the training loss or, with `early_stopping`, the validation score.

    early_stopping : bool, default=False
        Whether to stop by the validation score and restore the parameters that had the best. Without
        `X_val` in `fit`, a stratified `validation_fraction` of the training data is set aside for it.

    validation_fraction : float in (0, 1), default=0.1
        See `early_stopping`.

    scoring : str, callable or None, default=None
        The validation score. None: accuracy. "loss": minus the cross-entropy. Else a scikit-learn scorer,
        which is called with images as rows ``(n, H*W*C)``.

    tta : {"flip", "shift", "flip+shift"} or None, default=None
        Test-time augmentation of `predict`, `predict_proba` and so `score`, where a call does not say otherwise: the
        mean of the probabilities of several views of an image. "flip": the image and its mirror image, left to
        right, for twice the time. "shift": the image, and moved by one pixel up, down, left and right, for five times
        the time; it helps networks that were trained with `RandomShift`. "flip+shift": the five and their mirror
        images. Validation during training goes without.

    class_weight : dict {label: weight}, "balanced" or None, default=None
        Weights of the classes in the training loss, times `sample_weight`. "balanced": ``n / (n_classes *
        count)``, whatever the images weigh.

    warm_start : bool, default=False
        Whether `fit` goes on from the parameters of the last `fit`, for `max_iter` more epochs, with the
        scaling of the first one. The optimiser and the learning rate's schedule start afresh.

    random_state : int, RandomState instance or None, default=None
        Determines the initial weights, the order of the images, dropout, augmentation and the validation
        split. With an int the results are the same bits whatever `n_jobs` is.

    n_jobs : int or None, default=None
        Threads. -1: all that Numba may use. None: as many, but one in the workers of a `multiprocessing` pool;
        loky's workers have their share of the cores.

    device : {"cpu", "cuda", "auto"}, default="cpu"
        Where to compute. "cuda": on an NVIDIA GPU (numba-cuda is needed), with the same results but for
        rounding; "auto": there where it works, else on the CPU.

    precision : {"float32", "tf32", "bf16", "fp16"}, default="float32"
        What a GPU's tensor cores may round the factors of products to; sums, and all that is stored, are float32.
        "float32": to 21 bits, by three products in place of one. Without effect on the CPU.

    dtype : {"float32", "float64"}, default="float32"
        Of the parameters and the computation.

    callbacks : list of callbacks or None, default=None
        Objects with some of the methods of `fastcnn.training.callbacks.Callback`. Each fit calls copies of
        them, `callbacks_`, so that no state goes from one fit, or fold, to another. With scikit-learn 1.9 or
        newer, `set_callbacks` takes scikit-learn's own callbacks, whose tasks are the epochs.

    checkpoint : path-like or None, default=None
        File that `fit` writes after each epoch, so that a fit that was killed can be called again and ends with the
        same bits as if nothing had happened; a finished one returns its result at once. Data and parameters must be
        the same, but for `callbacks`, `n_jobs`, `tta`, `verbose`, `warm_start` and this one. A folder that is there
        gives each fit a file of its own (with another `tta` too), which grid searches need. `partial_fit` does not
        write it.

    verbose : bool or int, default=False
        Whether to print a line for each epoch: losses, score, images/s, time left. Terminals have a progress bar below,
        notebooks a line that changes. 2: lines within the epochs too, where there is neither. The workers of a search
        print plain lines that begin with their names.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.

    n_features_in_ : int
        Values in an image, ``H * W * C``.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, if X was a DataFrame with string names.

    image_shape_ : (H, W, C)
        Shape of the images.

    channel_offset_, channel_scale_ : ndarray of shape (C,)
        The network sees ``(pixel - channel_offset_) / channel_scale_``.

    network_ : Network
        The trained network. It gives what the softmax takes.

    n_iter_ : int
        Epochs done, with those of earlier calls where training went on.

    best_iter_ : int
        The epoch (from 1) with the best validation score under `early_stopping`, of those of the last call, else
        with the lowest loss.

    loss_ : float
        Training loss of the last epoch; NaN if none was finished.

    best_loss_ : float
        Lowest of `loss_curve_`; infinite if there is none.

    loss_curve_ : list of float
        Training loss of each epoch.

    training_scores_ : list of float
        Accuracy on each epoch's mini-batches as they came: before the update that each was for, with augmentation and
        dropout. Below what `score` would give of the same images then.

    validation_scores_, validation_loss_curve_ : list of float
        Of each epoch from the first with validation data on; NaN for a later one without. Empty if there was none.

    learning_rates_ : list of float
        Of each epoch's last step.

    t_ : int
        Images that updates were made with.

    callbacks_ : list
        The copies of `callbacks` that the last fit called, with what they have noted.

    n_layers_ : int
        Layers of the network, each entry of its list being one.

    out_activation_ : str
        "softmax".

    See Also
    --------
    sklearn.neural_network.MLPClassifier : Dense layers only; the parameters here have its names.

    Notes
    -----
    Weights of single images (`sample_weight`) are weights in the mean loss of their mini-batch: with one
    batch for all the data, weight 2 is the image twice. Batch normalisation and ``class_weight="balanced"`` count
    images, not weights.

    A `ConvergenceWarning` says that training diverged (the last parameters that were finite are kept), or
    that with ``learning_rate="constant"`` `max_iter` was reached before `tol`; ``n_iter_no_change=np.inf``
    means that this is what you want. The other schedules are made to end at `max_iter`.

    Examples
    --------
    >>> from fastcnn import CNNClassifier
    >>> from fastcnn.datasets import load_digits_images
    >>> from sklearn.model_selection import train_test_split
    >>> X, y = load_digits_images()
    >>> X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    >>> clf = CNNClassifier(batch_size=32, random_state=0).fit(X_train, y_train)
    >>> clf.score(X_test, y_test) > 0.95
    True
    """

    classes_: np.ndarray
    channel_offset_: np.ndarray
    channel_scale_: np.ndarray
    network_: Network
    _history: History
    _split_seed: int | None = None  # of the images that the first of several fits set aside

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "conv_channels": [Interval(Integral, 1, None, closed="left"), "array-like"],
        "kernel_size": [Interval(Integral, 1, None, closed="left"), list, tuple],
        "pool": [StrOptions({"max", "avg"}), None],
        "pool_size": [Interval(Integral, 1, None, closed="left"), list, tuple],
        "dense_units": [Interval(Integral, 1, None, closed="left"), "array-like"],
        "activation": [StrOptions({"relu", "elu", "tanh", "leaky_relu", "silu"})],
        "batch_norm": ["boolean"],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "layers": [list, tuple, None],
        "image_shape": [list, tuple, None],
        "scale": [StrOptions({"standardize", "unit"}), None],
        "weight_init": [StrOptions(set(KINDS))],
        "augment": [list, tuple, None],
        "solver": [StrOptions({"adam", "adamw", "muon", "sgd"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "learning_rate": [StrOptions(set(SCHEDULES))],
        "warmup": [Interval(Real, 0, 1, closed="left"), None],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "nesterovs_momentum": ["boolean"],
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "clip_norm": [Interval(Real, 0, None, closed="neither"), None],
        "ema_decay": [Interval(Real, 0, 1, closed="neither"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "micro_batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {inf})],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "scoring": [StrOptions({*get_scorer_names(), "loss"}), callable, None],
        "tta": [StrOptions(set(TTA)), None],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "n_jobs": [Integral, None],
        "device": [StrOptions({"cpu", "cuda", "auto"})],
        "precision": [StrOptions(set(PRECISIONS))],
        "dtype": [StrOptions({"float32", "float64"})],
        "callbacks": [list, tuple, None],
        "checkpoint": [str, os.PathLike, None],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        *,
        conv_channels=(32, 64),
        kernel_size=3,
        pool="max",
        pool_size=2,
        dense_units=(128,),
        activation="relu",
        batch_norm=False,
        dropout=0.4,
        layers=None,
        image_shape=None,
        scale="standardize",
        weight_init="auto",
        augment=None,
        solver="adam",
        learning_rate_init=3e-3,
        learning_rate="onecycle",
        warmup=None,
        momentum=0.9,
        nesterovs_momentum=True,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        alpha=1e-4,
        label_smoothing=0.0,
        clip_norm=None,
        ema_decay=None,
        batch_size=128,
        micro_batch_size=None,
        max_iter=12,
        shuffle=True,
        tol=1e-4,
        n_iter_no_change=10,
        early_stopping=False,
        validation_fraction=0.1,
        scoring=None,
        tta=None,
        class_weight=None,
        warm_start=False,
        random_state=None,
        n_jobs=None,
        device="cpu",
        precision="float32",
        dtype="float32",
        callbacks=None,
        checkpoint=None,
        verbose=False,
    ):
        self.conv_channels = conv_channels
        self.kernel_size = kernel_size
        self.pool = pool
        self.pool_size = pool_size
        self.dense_units = dense_units
        self.activation = activation
        self.batch_norm = batch_norm
        self.dropout = dropout
        self.layers = layers
        self.image_shape = image_shape
        self.scale = scale
        self.weight_init = weight_init
        self.augment = augment
        self.solver = solver
        self.learning_rate_init = learning_rate_init
        self.learning_rate = learning_rate
        self.warmup = warmup
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.alpha = alpha
        self.label_smoothing = label_smoothing
        self.clip_norm = clip_norm
        self.ema_decay = ema_decay
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.scoring = scoring
        self.tta = tta
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.device = device
        self.precision = precision
        self.dtype = dtype
        self.callbacks = callbacks
        self.checkpoint = checkpoint
        self.verbose = verbose

    # ------------------------------------------------------------------------------------- training

    @_fit_context(prefer_skip_nested_validation=True)
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
        """Train on images `X` with labels `y`.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, H*W*C)
            Images.
        y : array-like of shape (n,)
            Labels: numbers that are classes, booleans, strings or NumPy's dates.
        sample_weight : array-like of shape (n,), default=None
            How much each image counts.
        X_val, y_val, sample_weight_val : as X, y, sample_weight, default=None
            Validation data. They give the validation curves and, with `early_stopping`, decide when to stop.

        Returns
        -------
        CNNClassifier
            This estimator, fitted.

        Raises
        ------
        ValueError
            If the data or a parameter cannot be used, or `checkpoint` is of another fit; the estimator is as it was
            before then.
        TypeError
            If there is a `checkpoint` and a parameter that cannot be stored in it.
        OSError
            If `checkpoint` cannot be read or written.
        """
        task = FitTask(self, X, y, sample_weight)
        goes_on = self.warm_start and self.__sklearn_is_fitted__()
        trained = self._copy_to_train(goes_on)
        data = trained._take_in(X, y, sample_weight, goes_on)
        validation = trained._check_validation(X_val, y_val, sample_weight_val)
        seed = _draw_seed(self.random_state)
        start = trained._history.n_iter
        checkpoint = progress = None
        if self.checkpoint is not None:
            checkpoint = trained._open_checkpoint(data, validation, seed, goes_on)
            seed = checkpoint.seed
        # Going on, the images that are set aside stay the same: others were trained on before.
        trained._split_seed = self._split_seed if goes_on and self._split_seed is not None else seed
        index, held_out = trained._hold_out(data, validation, trained._split_seed)
        trained._check_scoring(held_out)
        trained._renew_network(data, index, seed, goes_on)
        if goes_on and not self.early_stopping and start:  # the last fit may have gone by the score
            trained._history.best_iter = 1 + int(np.argmin(trained._history.loss_curve))
        if checkpoint is not None:
            progress = trained._resume(checkpoint)
        trained._check_range(held_out, "validation data: ")
        if goes_on or sample_weight is not None:  # else their scaling has seen to it
            trained._check_range(data)
        loader = trained._loader(data, index, seed)
        steps = int(self.max_iter) * len(loader)
        schedule = make_schedule(self.learning_rate, self.learning_rate_init, steps, len(loader), self.warmup)
        train(
            trained.network_,
            loader,
            schedule=lambda step: schedule(step - start * len(loader)),
            max_iter=self.max_iter,
            tol=self.tol,
            n_iter_no_change=self.n_iter_no_change,
            early_stopping=self.early_stopping,
            validate=None if held_out is None else partial(trained._for_scoring()._validate, held_out),
            label_smoothing=self.label_smoothing,
            ema_decay=self.ema_decay,
            micro_batch_size=self.micro_batch_size,
            callbacks=[*trained.callbacks_, *task.callbacks(trained._as_fitted), show_progress(self.verbose)],
            start_epoch=start,
            history=trained._history,
            keep=None if checkpoint is None else partial(trained._keep, checkpoint),
            progress=progress,
            run_epoch=getattr(loader, "run_epoch", None),
        )
        self._take(trained)
        task.end()
        self._warn()
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Go through `X` once, in mini-batches, on top of what was learnt before.

        The optimiser goes on where it was; the learning rate is `learning_rate_init`. With
        ``scale="standardize"`` or "unit", the images of the first call decide how pixels are scaled. What the network
        and its optimiser are made of is that of the first call too (or of `load`): the layers, `dtype`, `device`,
        `solver` and its numbers but the learning rate. Nothing is validated, and the average that `ema_decay` asks for
        is that of the call's own steps.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, H*W*C)
            Images.
        y : array-like of shape (n,)
            Labels.
        classes : array-like of shape (n_classes,), default=None
            All labels that will ever come; needed in the first call.
        sample_weight : array-like of shape (n,), default=None
            How much each image counts.

        Returns
        -------
        CNNClassifier
            This estimator.

        Raises
        ------
        ValueError
            If the data cannot be used, or `y` has a label that is not among the classes.
        """
        if self.class_weight == "balanced":
            raise ValueError('class_weight="balanced" needs all labels at once: give partial_fit a dict of weights')
        goes_on = self.__sklearn_is_fitted__()
        trained = self._copy_to_train(goes_on)
        _check_partial_fit_first_call(trained, classes)
        rows, y, weight = trained._check_training_data(X, y, sample_weight)
        data = _Images(rows, trained._encode(y), weight)
        seed = _draw_seed(self.random_state)
        index = np.arange(len(rows))
        if not goes_on:
            trained._renew_network(data, index, seed, goes_on)
        trained._check_range(data)
        network = trained.network_
        network.n_jobs = self.n_jobs
        loader = trained._loader(data, index, seed)
        with _restored_after_errors(network):
            train(
                network,
                loader,
                schedule=lambda step: self.learning_rate_init,
                max_iter=1,
                label_smoothing=self.label_smoothing,
                ema_decay=self.ema_decay,
                micro_batch_size=self.micro_batch_size,
                callbacks=[*trained.callbacks_, show_progress(self.verbose)],
                start_epoch=trained._history.n_iter,
                history=trained._history,
            )
        self._take(trained)
        self._warn(one_pass=True)
        return self

    def begin_fit(self, X: Any, y: Any) -> tuple[Network, Any, dict[str, Any]]:
        """What `fit` would begin with: for `fastcnn.training.find_learning_rate`.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, H*W*C)
            Images.
        y : array-like of shape (n,)
            Their labels.

        Returns
        -------
        network : Network
            New.
        loader : BatchLoader
            Its mini-batches.
        settings : dict
            What `Network.train_step` is to be told beside a mini-batch.

        Raises
        ------
        ValueError
            If the data or a parameter cannot be used.
        """
        self._validate_params()
        trained = self._copy_to_train(goes_on=False)
        data, seed = trained._take_in(X, y, None, False), _draw_seed(deepcopy(self.random_state))
        index, _ = trained._hold_out(data, None, seed)
        trained._renew_network(data, index, seed, False)
        settings = {"label_smoothing": self.label_smoothing, "micro_batch_size": self.micro_batch_size}
        return trained.network_, trained._loader(data, index, seed), settings

    def _copy_to_train(self, goes_on: bool) -> Self:
        """What is trained in place of `self`, which so stays as it is if anything fails."""
        get_backend(choose_device(self.device))
        trained = copy(self)
        if goes_on:
            asked, shape = self.image_shape, self.image_shape_
            if asked is not None and resolve_image_shape(asked, None, self.n_features_in_) != shape:
                raise ValueError(f"image_shape={asked}, but training goes on with images of shape {shape}")
            trained._history = deepcopy(self._history)
        else:
            for name in [name for name in vars(trained) if name.endswith("_")]:
                delattr(trained, name)
            trained._history = History()
        trained.callbacks_ = [deepcopy(callback) for callback in self.callbacks or ()]
        return trained

    def _take(self, trained: Self) -> None:
        """Become `trained`."""
        trained._note_history()
        self.__dict__ = trained.__dict__

    def _note_history(self) -> None:
        history = self._history
        self.n_iter_, self.best_iter_, self.t_ = history.n_iter, history.best_iter, history.t
        self.loss_ = history.loss_curve[-1] if history.loss_curve else nan
        self.best_loss_, self.loss_curve_ = history.best_loss, history.loss_curve
        self.training_scores_ = history.training_scores
        self.validation_scores_ = history.validation_scores
        self.validation_loss_curve_ = history.validation_loss_curve
        self.learning_rates_ = history.learning_rates
        self.n_layers_, self.out_activation_ = len(self.network_.layers), "softmax"

    def _as_fitted(self) -> dict[str, Any]:
        """The attributes of a copy that stays as this is now, amid training."""
        fitted = copy(self)
        fitted.network_, fitted._history = deepcopy(self.network_), deepcopy(self._history)
        fitted._note_history()
        return dict(vars(fitted))

    def _warn(self, one_pass: bool = False) -> None:
        reason = self._history.reason
        if reason == "diverged":
            warnings.warn(
                f"Training diverged in epoch {self.n_iter_ + 1}: the loss or a parameter is not finite any "
                "more. The last good parameters are kept. A lower learning_rate_init, clip_norm or "
                "scaled input may help.",
                ConvergenceWarning,
                stacklevel=3,
            )
        elif reason == "interrupted":
            warnings.warn("Training interrupted by user; what was learnt is kept.", UserWarning, stacklevel=3)
        elif (
            reason == "max_iter"
            and not one_pass
            and self.learning_rate == "constant"
            and isfinite(self.n_iter_no_change)
        ):
            warnings.warn(
                f"Maximum iterations ({self.max_iter}) reached and the optimization hasn't converged yet "
                "(n_iter_no_change=np.inf: this many epochs are what is wanted).",
                ConvergenceWarning,
                stacklevel=3,
            )

    # ----------------------------------------------------------------------------------- input data

    def _take_in(self, X: Any, y: Any, sample_weight: Any, goes_on: bool) -> Any:
        """The data of a fit, checked; the classes are known then."""
        rows, y, weight = self._check_training_data(X, y, sample_weight)
        self._know_classes(np.unique(y), goes_on)
        return _Images(rows, self._encode(y), weight)

    def _know_classes(self, classes: np.ndarray, goes_on: bool) -> None:
        if not goes_on:
            self.classes_ = classes
        elif not np.array_equal(classes, self.classes_):
            raise ValueError(f"warm_start=True needs the classes of the previous fit, {self.classes_}, got {classes}")

    def _check_training_data(
        self, X: Any, y: Any, sample_weight: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Rows, labels and weights; `n_features_in_` and `image_shape_` are set, or checked if there."""
        X, y, sample_weight = map(_on_host, (X, y, sample_weight))
        rows, y = self._check_images(X, y, reset=not hasattr(self, "image_shape_"))
        check_labels(y)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, rows, dtype=np.float64, ensure_non_negative=True)
            if not sample_weight.any():
                raise ValueError("sample_weight is zero for every image")
            check_weight("sample_weight", sample_weight.max(), len(rows), self.dtype)
        return row_contiguous(rows), y, sample_weight

    def _encode(self, y: np.ndarray) -> np.ndarray:
        return places(y, self.classes_)

    def _check_validation(self, X_val: Any, y_val: Any, sample_weight_val: Any) -> Any:
        """Validation data that were given."""
        if X_val is not None and y_val is not None:
            try:
                rows, y, weight = self._check_training_data(X_val, y_val, sample_weight_val)
                return _Images(rows, self._encode(y), weight)
            except (TypeError, ValueError) as error:
                raise type(error)(f"validation data: {error}") from error
        for name, value in (("X_val", X_val), ("y_val", y_val), ("sample_weight_val", sample_weight_val)):
            if value is not None:
                raise ValueError(f"{name} was given: X_val and y_val are needed together")
        return None

    def _open_checkpoint(self, data: Any, validation: Any, seed: int, goes_on: bool) -> Checkpoint:
        """The file of this fit; ValueError if it is of another one."""
        arrays: dict[str, np.ndarray | None] = {}
        for images, after in ((data, ""), (validation, "_val")):
            values = (None, None, None) if images is None else self._compared(images)
            arrays |= dict(zip((f"X{after}", f"y{after}", f"sample_weight{after}"), values, strict=True))
        start = (self._history.n_iter, self.network_.params if goes_on else None)
        known = (self.get_params(deep=False), self.classes_, self.image_shape_, arrays, seed, start)
        return Checkpoint(self.checkpoint, *known)

    def _compared(self, images: Any) -> tuple[np.ndarray | None, ...]:
        """The arrays by which a checkpoint knows images, labels and weights."""
        return images

    def _hold_out(self, data: Any, validation: Any, seed: int) -> tuple[Any, Any]:
        """Which images to train on, and what to validate with."""
        everything = np.arange(len(data.rows))
        if validation is not None or not self.early_stopping:
            return everything, validation
        weighty = everything if data.weight is None else np.flatnonzero(data.weight)
        _, held_out = train_test_split(
            weighty, test_size=self.validation_fraction, stratify=data.labels[weighty], random_state=seed
        )
        weight = None if data.weight is None else data.weight[held_out]
        return np.delete(everything, held_out), _Images(data.rows[held_out], data.labels[held_out], weight)

    def _check_scoring(self, held_out: Any) -> None:
        """Scoring that takes no weights is refused now, not when the first epoch is over."""
        if getattr(held_out, "weight", None) is None or self.scoring in (None, "loss"):
            return
        scorer = check_scoring(self, self.scoring)
        try:  # scikit-learn's scorers pass weights on to what may not take them
            known = signature(getattr(scorer, "_score_func", scorer)).parameters.values()
        except Exception:  # nobody knows what it takes
            return
        if not any(p.name == "sample_weight" or p.kind is p.VAR_KEYWORD for p in known):
            raise ValueError("there are weights of the images to validate with, and scoring takes no sample_weight")

    def _check_range(self, images: Any, whose: str = "") -> None:
        """Scaled, images must be numbers yet: else training seems to diverge."""
        rows = getattr(images, "rows", None)
        if rows is None or rows.dtype == np.uint8:
            return
        dtype = self.network_.dtype
        limit = float(np.finfo(dtype).max)
        for part in chunks(len(rows)):
            # At most so much in any channel; only where that is too much do the channels count.
            most = max(abs(float(rows[part].min())), abs(float(rows[part].max())))
            if (most + float(np.abs(self.channel_offset_).max())) / float(np.abs(self.channel_scale_).min()) <= limit:
                continue
            if not self._scaled(rows[part].reshape(-1, self.image_shape_[2])).max() <= limit:
                raise ValueError(f"{whose}X has values up to {most:.3g}, too large for {dtype}, scaled")

    def _scaled(self, pixels: np.ndarray) -> np.ndarray:
        """How large they are for the network."""
        with np.errstate(over="ignore"):
            return np.abs((pixels.astype(np.float64) - self.channel_offset_) / self.channel_scale_)

    # --------------------------------------------------------------------- what training works with

    def _renew_network(self, data: Any, index: Any, seed: int, goes_on: bool) -> None:
        """A new `network_`: with the old parameters if training goes on, or else with a new scaling."""
        network = Network(
            [*self._architecture().layers, Dense(len(self.classes_))],
            self.image_shape_,
            dtype=self.dtype,
            device=self.device,
            random_state=np.random.default_rng([seed, self._history.n_iter]),
            n_jobs=self.n_jobs,
            optimizer=self._make_optimizer(),
            weight_init=self.weight_init,
            precision=self.precision,
        )
        if goes_on:
            network.load_params(self.network_.params)
        else:
            self.channel_offset_, self.channel_scale_ = self._fit_scaling(data, index)
        self.network_ = network

    def _fit_scaling(self, data: Any, index: Any) -> tuple[np.ndarray, np.ndarray]:
        limit = float(np.finfo(self.dtype).max)
        return fit_scaling(self.scale, data.rows, self.image_shape_, index, data.weight, limit)

    def _architecture(self) -> Architecture:
        if self.layers is not None:
            return Architecture(list(self.layers), {})
        return build_layers(
            self.image_shape_,
            conv_channels=self.conv_channels,
            kernel_size=self.kernel_size,
            pool=self.pool,
            pool_size=self.pool_size,
            dense_units=self.dense_units,
            activation=self.activation,
            batch_norm=self.batch_norm,
            dropout=self.dropout,
        )

    def _make_optimizer(self) -> Optimizer:
        rate, clip = self.learning_rate_init, self.clip_norm
        if self.solver == "sgd":
            return SGD(rate, self.momentum, self.nesterovs_momentum, l2=self.alpha, clip_norm=clip)
        adam = (rate, self.beta_1, self.beta_2, self.epsilon)
        if self.solver == "muon":
            return Muon(
                rate, self.momentum, self.nesterovs_momentum, *adam[1:], weight_decay=self.alpha, clip_norm=clip
            )
        if self.solver == "adamw":
            return AdamW(*adam, weight_decay=self.alpha, clip_norm=clip)
        return Adam(*adam, l2=self.alpha, clip_norm=clip)

    def _loader(self, data: Any, index: Any, seed: int) -> Any:
        """What gives an epoch's batches, or trains them itself by its `run_epoch`."""
        weight = data.weight
        if self.class_weight is not None:
            y = self.classes_[data.labels[index]]
            by_class = weight_of_classes(self.class_weight, self.classes_, y)
            weight = by_class[data.labels] * (1 if weight is None else weight)
            check_weight("class_weight times sample_weight", weight.max(), len(weight), self.dtype)
        if weight is not None and not weight[index].any():
            raise ValueError(NOTHING_WEIGHS)
        builder = self._builder(data.rows, check_augment(self.augment))
        return BatchLoader(builder, data.labels, weight, self.batch_size, self.shuffle, seed, rows=index)

    def _builder(self, rows: np.ndarray, augment: Any = None) -> BatchBuilder:
        return builder_for(
            self.network_.batch_kernels,
            rows,
            self.image_shape_,
            self.channel_offset_,
            1 / self.channel_scale_,
            augment,
            self.network_.dtype,
        )

    def _for_scoring(self) -> Self:
        """For scorers: they get rows without names, and scikit-learn would wonder where the names are."""
        scored = copy(self)
        scored.tta = None
        if hasattr(scored, "feature_names_in_"):
            del scored.feature_names_in_
        return scored

    def _validate(self, held_out: Any) -> tuple[float, float]:
        """Score and loss."""
        logits = self._run(self.network_.forward, held_out.rows)
        if not np.isfinite(logits).all():
            return nan, nan
        log_proba = _log_softmax(logits)
        losses = -np.take_along_axis(log_proba, held_out.labels[:, np.newaxis], axis=1)[:, 0]
        loss = float(np.average(losses, weights=held_out.weight))
        if self.scoring == "loss":
            return -loss, loss
        if self.scoring is None:
            hits = log_proba.argmax(axis=1) == held_out.labels
            return float(np.average(hits, weights=held_out.weight)), loss
        scorer = check_scoring(self, self.scoring)
        weight = {} if held_out.weight is None else {"sample_weight": held_out.weight}
        return float(scorer(self, held_out.rows, self.classes_[held_out.labels], **weight)), loss

    # ----------------------------------------------------------------------------------- prediction

    def predict(self, X: Any, tta: str | bool | None = None) -> np.ndarray:
        """The most probable label of each image.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, H*W*C)
            Images.
        tta : {"flip", "shift", "flip+shift"}, False or None, default=None
            As the parameter of the estimator, which None stands for; False: without.

        Returns
        -------
        ndarray of shape (n,)
            Labels of `classes_`.
        """
        proba = self.predict_proba(X, tta)
        return self.classes_[proba.argmax(axis=1)]

    def predict_proba(self, X: Any, tta: str | bool | None = None) -> np.ndarray:
        """The probability of each class.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, H*W*C)
            Images.
        tta : {"flip", "shift", "flip+shift"}, False or None, default=None
            As the parameter of the estimator, which None stands for; False: without.

        Returns
        -------
        ndarray of shape (n, n_classes), of the network's dtype
            In the order of `classes_`.
        """
        views, rows = self._views(tta), self._rows(X)
        return self._predict(self.network_.predict_proba, rows, views) / len(views)

    def predict_log_proba(self, X: Any, tta: str | bool | None = None) -> np.ndarray:
        """The logarithm of each class's probability, finite where the probability is rounded to 0.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, H*W*C)
            Images.
        tta : {"flip", "shift", "flip+shift"}, False or None, default=None
            As the parameter of the estimator, which None stands for; False: without.

        Returns
        -------
        ndarray of shape (n, n_classes), of the network's dtype
            In the order of `classes_`.
        """
        views, rows = self._views(tta), self._rows(X)

        def log_proba(x: np.ndarray) -> np.ndarray:
            return _log_softmax(self.network_.forward(x))

        return self._predict(log_proba, rows, views, np.logaddexp) - log(len(views))

    def _rows(self, X: Any) -> Any:
        check_is_fitted(self)
        if hasattr(X, "__cuda_array_interface__"):
            X = self._rows_on_device(X)
            if not isinstance(X, np.ndarray):
                return X
        return row_contiguous(self._check_images(X))

    def _rows_on_device(self, X: Any) -> Any:
        """Images on the GPU as rows that stay there; or a copy on the host, if that is what it takes."""
        kernels = self.network_.batch_kernels
        if kernels is None:
            return _on_host(X)
        placed = kernels.place(X)
        if placed.shape[1:] not in self._forms() or placed.dtype not in (np.uint8, self.network_.dtype):
            return np.asarray(placed)
        return placed.reshape(len(placed), self.n_features_in_)

    def _views(self, tta: str | bool | None) -> tuple[View, ...]:
        """The views of images that are averaged over, for what a call says."""
        check_is_fitted(self)
        return views_of(self.tta if tta is None else tta)

    def network_input(self, X: Any) -> np.ndarray:
        """Images as `network_` takes them: ``(image - channel_offset_) / channel_scale_``.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, H*W*C)

        Returns
        -------
        ndarray of shape (n, H, W, C), of the network's dtype
        """
        rows = np.asarray(self._rows(X))
        x = np.empty((len(rows), *self.image_shape_), self.network_.dtype)
        args = self.channel_offset_, 1 / self.channel_scale_, None, x.dtype
        BatchBuilder(rows, self.image_shape_, *args).build(np.arange(len(rows)), x)
        return x

    def _predict(
        self, of_batch: OfBatch, rows: np.ndarray, views: Sequence[View], add: np.ufunc = np.add
    ) -> np.ndarray:
        """`_run`, if its result is finite."""
        result = self._run(of_batch, rows, views, add)
        if not np.isfinite(result).all():
            image = int(np.nonzero(~np.isfinite(result).all(axis=1))[0][0])
            pixels = np.asarray(rows[image])
            raise ValueError(
                f"the network's output is not finite for image {image} of X: its pixels (from {pixels.min():.3g} "
                f"to {pixels.max():.3g}) are too large for {self.network_.dtype}, or the parameters are"
            )
        return result

    def _run(
        self, of_batch: OfBatch, rows: np.ndarray, views: Sequence[View] = (PLAIN,), add: np.ufunc = np.add
    ) -> np.ndarray:
        """`of_batch` of all images, a few at a time, added up over `views`."""
        self.network_.n_jobs = self.n_jobs
        size = max(1, min(len(rows), _BATCH_IMAGES, _BATCH_VALUES // rows.shape[1]))
        builder = self._builder(rows)
        x = builder.empty(size)
        y = np.empty((len(rows), len(self.classes_)), self.network_.dtype)
        for part in chunks(len(rows), size):
            index = np.arange(part.start, part.stop)
            for i, view in enumerate(views):
                builder.build(index, x[: len(index)], view=view)
                result = of_batch(x[: len(index)])
                y[part] = add(y[part], result) if i else result
        return y

    # ---------------------------------------------------------------------------------------- files

    def _to_save(self) -> SavedModel:
        names = getattr(self, "feature_names_in_", None)
        return SavedModel(
            parameters=self.get_params(deep=False),
            layers=self.network_.layers,
            image_shape=self.image_shape_,
            dtype=self.network_.dtype.name,
            classes=self.classes_,
            offset=self.channel_offset_,
            scale=self.channel_scale_,
            params=self.network_.params,
            history=self._history,
            feature_names=None if names is None else names.tolist(),
            split_seed=self._split_seed,
        )

    @classmethod
    def _of_saved(cls, saved: SavedModel) -> Self:
        unknown = sorted(set(saved.parameters) - set(cls._get_param_names()))
        if unknown:
            raise ValueError(f"{cls.__name__} has no parameter {unknown[0]!r}")
        model = cls(**saved.parameters)
        model._validate_params()
        model.classes_, model.image_shape_ = saved.classes, saved.image_shape
        model.n_features_in_ = prod(saved.image_shape)
        if saved.feature_names is not None:
            model.feature_names_in_ = np.array(saved.feature_names, dtype=object)
        model.channel_offset_, model.channel_scale_ = saved.offset, saved.scale
        model.network_ = Network(
            saved.layers,
            saved.image_shape,
            dtype=saved.dtype,
            device=device_at_hand(model.device),
            random_state=None if isinstance(model.random_state, np.random.RandomState) else model.random_state,
            n_jobs=model.n_jobs,
            optimizer=model._make_optimizer() if saved.training is None else saved.training.optimizer,
            precision=model.precision,
        )
        model.network_.load_params(saved.params)
        if saved.training is not None:
            model.network_.load_training_state(saved.training.state)
        model._history, model.callbacks_, model._split_seed = saved.history, [], saved.split_seed
        model._note_history()
        return model

    # ----------------------------------------------------------------------------------- inspection

    def summary(self) -> Summary:
        """The network as a table: each layer's output shape, parameters, multiply-adds, memory and kernel.

        Says too what was made smaller than asked for, because the images are small.

        Returns
        -------
        Summary
            Shows itself as text, in notebooks as HTML, and as a table of rich on its consoles.
        """
        check_is_fitted(self)
        layers = self.network_.layers
        notes: dict[int, str] = {}
        with suppress(KeyError, TypeError, ValueError):  # parameters may have changed since `fit`
            asked = self._architecture()
            notes = asked.notes if tuple(asked.layers) == layers[:-1] else {}
        network = self.network_
        return summarize(layers, self.image_shape_, notes, dtype=network.dtype.name, kernels=network.kernels())

    def _repr_html_inner(self) -> str:
        """scikit-learn's picture of an estimator, and once it is fitted the layers."""
        html = estimator_html_repr(self)
        return html + _layers_html(self.summary()) if self.__sklearn_is_fitted__() else html

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        bundle = super()._repr_mimebundle_(**kwargs)
        return bundle | {"text/html": self._repr_html_inner()} if "text/html" in bundle else bundle

    # --------------------------------------------------------------------------------- scikit-learn

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")


def _layers_html(summary: Summary) -> str:
    table = f"<details><summary>layers</summary>{summary._repr_html_()}</details>"
    return f'<div style="overflow-x:auto">{draw(summary)}{table}</div>'


def _draw_seed(random_state: Any) -> int:
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


@contextmanager
def _restored_after_errors(network: Network) -> Iterator[None]:
    """Within the block `network` is trained; what it was before comes back if that fails."""
    params = {name: np.array(value) for name, value in network.params.items()}
    state = network.training_state()
    try:
        yield
    except BaseException:
        network.load_params(params)
        network.load_training_state(state)
        raise


def _on_host(values: Any) -> Any:
    """`values`, or a copy of them if they lie on a GPU."""
    if not hasattr(values, "__cuda_array_interface__"):
        return values
    return np.asarray(get_backend("cuda").place(values))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

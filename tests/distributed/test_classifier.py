"""`DaskCNNClassifier` on clusters of this machine."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone

from fastcnn import CNNClassifier
from fastcnn.distributed import DaskCNNClassifier, cluster
from fastcnn.kernels.cpu import runtime
from fastcnn.persistence.checkpoints import Checkpoint
from fastcnn.training.augment import MixUp, RandomShift

da = pytest.importorskip("dask.array")
dask = pytest.importorskip("dask")

SMALL = {
    "conv_channels": (4,), "dense_units": (8,), "batch_size": 16, "max_iter": 2, "learning_rate_init": 0.01,
    "random_state": 0,
}  # fmt: skip


def new(**parameters):
    return DaskCNNClassifier(**(SMALL | parameters))


def chunked(X, *sizes):
    return da.from_array(X, chunks=(sizes or (len(X),), *X.shape[1:]))


def assert_same_bits(one, other):
    for name, value in one.network_.params.items():
        np.testing.assert_array_equal(other.network_.params[name], value, err_msg=name)
    assert one.loss_curve_ == other.loss_curve_


# ------------------------------------------------------------------------------------------------------------ the bits


@pytest.mark.parametrize(
    ("sync_every", "parameters"),
    [
        (1, {"solver": "sgd", "dropout": 0.0}),
        (3, {"batch_norm": True, "ema_decay": 0.9, "augment": [RandomShift(1), MixUp()], "class_weight": "balanced",
             "label_smoothing": 0.1, "clip_norm": 0.5}),
        (None, {"solver": "muon", "micro_batch_size": 5, "scale": "unit", "dtype": "float64"}),
    ],
)  # fmt: skip
def test_one_partition_has_the_bits_of_one_machine(client, digits, sync_every, parameters):
    X, y = digits[0][:150], digits[1][:150]
    weight = np.linspace(0.5, 1.5, len(X))
    here = CNNClassifier(**SMALL, **parameters).fit(X, y, weight)
    there = new(sync_every=sync_every, **parameters).fit(chunked(X), y, weight)
    assert_same_bits(here, there)
    assert there.n_rounds_ == 2 * (-(-10 // sync_every) if sync_every else 1)
    np.testing.assert_array_equal(here.predict_proba(X), there.predict_proba(chunked(X, 100, 50)))


def test_states_that_are_sent_again_change_nothing(client, digits, monkeypatch):
    X, y = chunked(digits[0][:120], 60, 60), digits[1][:120]
    parameters = {"max_iter": 3, "sync_every": 2, "block_momentum": 0.5, "ema_decay": 0.9}
    usual = new(**parameters).fit(X, y)
    monkeypatch.setattr(cluster, "AFRESH", 2)
    assert_same_bits(usual, new(**parameters).fit(X, y))


def test_partitions_decide_not_workers(client, threads, digits):
    X, y = chunked(digits[0][:240], 100, 60, 80), digits[1][:240]
    parameters = {"sync_every": 2, "batch_norm": True}
    two = new(**parameters).fit(X, y)
    one = new(client=threads, **parameters).fit(X, y)
    assert_same_bits(two, one)
    other = new(**parameters).fit(X.rechunk({0: 120}), y)
    assert other.loss_curve_ != one.loss_curve_
    assert new(**parameters, block_momentum=0.5).fit(X, y).loss_curve_ != one.loss_curve_


def test_empty_chunks_count_for_nothing(client, digits):
    X, y = digits[0][:150], digits[1][:150]
    weight = np.where(np.arange(150) < 50, 0.0, 1.0)  # one chunk that weighs nothing
    full = new(sync_every=2).fit(chunked(X, 50, 100), y, weight)
    with_empty = new(sync_every=2).fit(chunked(X, 0, 50, 0, 100), chunked(y, 0, 50, 0, 100), weight)
    assert_same_bits(full, with_empty)
    np.testing.assert_array_equal(full.channel_scale_, with_empty.channel_scale_)
    assert full.t_ == with_empty.t_ == 300


@pytest.mark.parametrize("scale", ["standardize", "unit"])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_pixels_are_scaled_as_if_all_were_here(client, digits, scale, kind):
    X, y = digits[0][:150].astype(kind), digits[1][:150]
    X[:40] //= 2
    weight = np.linspace(0, 1, 150)
    here = CNNClassifier(**SMALL | {"max_iter": 1}, scale=scale).fit(X, y, weight)
    there = new(scale=scale, max_iter=1).fit(chunked(X, 40, 110), y, weight)
    np.testing.assert_allclose(there.channel_offset_, here.channel_offset_, rtol=1e-12)
    np.testing.assert_allclose(there.channel_scale_, here.channel_scale_, rtol=1e-12)


def test_it_learns(client, digits):
    X, y = digits
    clf = new(conv_channels=(8, 16), dense_units=(32,), dropout=0.1, max_iter=8, sync_every=8).fit(
        chunked(X[:1500], 750, 750), y[:1500]
    )
    assert clf.score(chunked(X[1500:], 200, 97), y[1500:]) > 0.85
    assert clf.score(X[1500:], y[1500:]) == clf.score(chunked(X[1500:]), chunked(y[1500:]))


# ------------------------------------------------------------------------------------------------ data from elsewhere


def _rows(path, start, stop):
    return np.load(path, mmap_mode="r")[start:stop]


def _picture(path):
    from PIL import Image

    return np.asarray(Image.open(path))[np.newaxis]


def test_images_from_files(client, digits, tmp_path):
    """A memory-mapped file, pictures and a zarr store, which workers read: all the same images."""
    from PIL import Image

    X, y = digits[0][:48], digits[1][:48]
    np.save(tmp_path / "X.npy", X)
    load = dask.delayed(_rows)
    mapped = da.concatenate(
        [da.from_delayed(load(str(tmp_path / "X.npy"), start, start + 24), (24, 8, 8), X.dtype) for start in (0, 24)]
    )
    for number, image in enumerate(X):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    one = dask.delayed(_picture)
    pictures = da.concatenate(
        [da.from_delayed(one(str(tmp_path / f"{number}.png")), (1, 8, 8), X.dtype) for number in range(len(X))]
    ).rechunk({0: 24})
    sources = [mapped, pictures]
    try:
        chunked(X, 24, 24).to_zarr(str(tmp_path / "X.zarr"))
        sources.append(da.from_zarr(str(tmp_path / "X.zarr")))
    except ImportError:
        pass
    expected = new(max_iter=1).fit(chunked(X, 24, 24), y)
    for source in sources:
        assert_same_bits(expected, new(max_iter=1).fit(source, y))


def _noted(path, start, stop, folder):
    with open(f"{folder}/loads", "a") as file:
        file.write(f"{start}\n")
    return _rows(path, start, stop)


def test_chunks_are_loaded_when_their_turn_comes(client, digits, tmp_path):
    X, y = digits[0][:120], digits[1][:120]
    np.save(tmp_path / "X.npy", X)
    load = dask.delayed(_noted)
    parts = [load(str(tmp_path / "X.npy"), start, start + 20, str(tmp_path)) for start in range(0, 120, 20)]
    streamed = da.concatenate([da.from_delayed(part, (20, 8, 8), X.dtype) for part in parts])
    clf = new(n_partitions=2, sync_every=1, max_iter=3).fit(streamed, y)
    loads = (tmp_path / "loads").read_text().split()
    assert len(loads) > 6 * 3  # looked at, and then in each epoch, save for those that two epochs share
    assert len(loads) <= 6 * 4
    held = client.persist(chunked(X, *[20] * 6))
    assert_same_bits(clf, new(n_partitions=2, sync_every=1, max_iter=3).fit(held, y))
    assert clf.n_rounds_ == 3 * 3 * 2


def test_unknown_sizes_and_flat_rows(client, digits):
    X, y = digits[0][:100].reshape(100, 64), digits[1][:100]
    lazy, labels = chunked(X, 50, 50), chunked(y, 50, 50)
    unknown = lazy[lazy[:, 0] >= 0]
    assert np.isnan(unknown.shape[0])
    clf = new(max_iter=1).fit(unknown, labels[lazy[:, 0] >= 0])
    assert_same_bits(clf, new(max_iter=1).fit(lazy, y))
    assert clf.predict(unknown).compute().shape == (100,)
    with pytest.raises(ValueError, match="y must be a dask array"):
        new().fit(unknown, y)


# ---------------------------------------------------------------------------------------- validation, checkpoints


def test_validation_on_the_cluster(client, digits):
    X, y = chunked(digits[0][:150], 75, 75), digits[1][:150]
    X_val, y_val = digits[0][150:250], digits[1][150:250]
    weight = np.linspace(0, 1, 100)
    stopped = {"early_stopping": True, "max_iter": 4, "ema_decay": 0.5}
    there = new(**stopped).fit(
        X, y, X_val=chunked(X_val, 30, 0, 70), y_val=chunked(y_val, 30, 0, 70), sample_weight_val=weight
    )
    here = new(**stopped).fit(X, y, X_val=X_val, y_val=y_val, sample_weight_val=weight)
    np.testing.assert_allclose(there.validation_scores_, here.validation_scores_)
    np.testing.assert_allclose(there.validation_loss_curve_, here.validation_loss_curve_, rtol=1e-5)
    assert_same_bits(here, there)
    f1 = new(scoring="f1_macro")
    assert f1.fit(X, y, X_val=X_val, y_val=y_val).validation_scores_[-1] > 0
    with pytest.raises(ValueError, match="needs X_val in memory"):
        f1.fit(X, y, X_val=chunked(X_val), y_val=y_val)
    with pytest.raises(ValueError, match="nothing is set aside"):
        new(early_stopping=True).fit(X, y)


class Stop:
    def on_epoch_begin(self, epoch):
        if epoch == 3:
            raise RuntimeError("the client dies")


def test_a_fit_goes_on_from_its_checkpoint(client, digits, tmp_path):
    X, y = digits[0][:150], digits[1][:150]
    data, path = (chunked(X, 100, 50), y), tmp_path / "run.safetensors"
    parameters = {"max_iter": 4, "batch_norm": True, "ema_decay": 0.9, "sync_every": 2, "block_momentum": 0.5}
    with pytest.raises(RuntimeError, match="the client dies"):
        new(**parameters, checkpoint=path, callbacks=[Stop()]).fit(*data)
    assert CNNClassifier.load(path).n_iter_ == 2
    gone_on = new(**parameters, checkpoint=path).fit(*data)
    assert_same_bits(new(**parameters).fit(*data), gone_on)
    with pytest.raises(ValueError, match="X has other values"):
        new(**parameters, checkpoint=path).fit(chunked(X + 1, 100, 50), y)
    with pytest.raises(ValueError, match="sync_every was 2 and is 5"):
        new(**parameters | {"sync_every": 5}, checkpoint=path).fit(*data)


@pytest.mark.parametrize(("after", "momentum"), [(1, 0.0), (3, 0.5), (5, 0.0), (5, 0.5), (6, 0.5)])
def test_a_fit_goes_on_within_an_epoch(client, digits, tmp_path, monkeypatch, after, momentum):
    X, y = digits[0][:150], digits[1][:150]
    data, path, kept = (chunked(X, 100, 50), y), tmp_path / "run.safetensors", []
    # Four rounds an epoch: three pauses, and the epoch's end.
    parameters = {"max_iter": 3, "batch_norm": True, "ema_decay": 0.9, "sync_every": 2, "dropout": 0.3}
    parameters["block_momentum"] = momentum
    save = Checkpoint.save

    def and_die(self, model, progress):
        save(self, model, progress)
        kept.append((progress.epoch, progress.within and progress.within.done))
        if len(kept) == after:
            raise RuntimeError("the client dies")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", and_die)
        with pytest.raises(RuntimeError, match="the client dies"):
            new(**parameters, checkpoint=path, checkpoint_every=1).fit(*data)
    assert kept == [(0, 1), (0, 2), (0, 3), (1, None), (1, 1), (1, 2)][:after]
    assert CNNClassifier.load(path).n_iter_ == kept[-1][0]
    rounds = new(**parameters).fit(*data)
    gone_on = new(**parameters, checkpoint=path, checkpoint_every=2).fit(*data)
    assert_same_bits(rounds, gone_on)
    assert gone_on.training_scores_ == rounds.training_scores_ and gone_on.t_ == rounds.t_
    assert gone_on.n_rounds_ == 12 - 4 * kept[-1][0] - (kept[-1][1] or 0)


def test_warm_start(client, digits):
    X, y = chunked(digits[0][:100], 50, 50), digits[1][:100]
    clf = new(warm_start=True).fit(X, y).fit(X, y)
    assert clf.n_iter_ == 4
    with pytest.raises(ValueError, match="needs the classes of the previous fit"):
        clf.fit(X, y // 2)


# ------------------------------------------------------------------------------------------------------ as an estimator


def test_predictions_are_lazy(client, digits):
    X, y = digits[0][:100], digits[1][:100]
    names = np.array([f"digit {label}" for label in y])
    clf = new(tta="flip").fit(chunked(X), names)
    local = clf.to_local()
    lazy = chunked(X, 60, 0, 40)
    for method in ("predict", "predict_proba", "predict_log_proba"):
        for tta in (None, False):
            found = getattr(clf, method)(lazy, tta)
            assert isinstance(found, da.Array) and found.chunks[0] == (60, 0, 40)
            expected = getattr(local, method)(X, tta)
            assert found.dtype == expected.dtype and found.shape == expected.shape
            np.testing.assert_array_equal(found.compute(), expected)
            np.testing.assert_array_equal(getattr(clf, method)(X, tta), expected)
    assert clf.score(lazy, chunked(names, 100)) == local.score(X, names)


def test_copies_and_files(client, digits, tmp_path):
    X, y = digits[0][:60], digits[1][:60]
    clf = new(client=client, sync_every=5, n_partitions=1).fit(chunked(X), y)
    expected = clf.predict_proba(X)
    local = clf.to_local()
    assert type(local) is CNNClassifier and local.get_params().keys() == CNNClassifier().get_params().keys()
    clf.save(tmp_path / "model.safetensors")
    pickled = pickle.loads(pickle.dumps(clf))
    assert pickled.client is None and pickled.sync_every == 5
    loaded = [kind.load(tmp_path / "model.safetensors") for kind in (CNNClassifier, DaskCNNClassifier)]
    for other in (local, pickled, *loaded):
        np.testing.assert_array_equal(other.predict_proba(X), expected)
    local.partial_fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), expected)
    copied = clone(clf)
    assert copied.client is client and copied.get_params() == clf.get_params()
    assert not hasattr(copied, "classes_") and clone(new()).client is None
    assert "sync_every=5" in repr(clf) and "max_iter" not in repr(DaskCNNClassifier())
    assert not hasattr(clf, "partial_fit")
    with pytest.raises(TypeError, match="unknown"):
        DaskCNNClassifier(unknown=1)


class Seen:
    def __init__(self):
        self.batches, self.epochs = [], []

    def on_batch_end(self, info):
        self.batches.append(info)

    def on_epoch_end(self, info):
        self.epochs.append(info)


def test_progress_and_names(client, digits, capsys, monkeypatch):
    monkeypatch.setattr("fastcnn.training.loop._TICK", 0.0)
    from distributed import get_task_stream

    X, y = digits[0][:100], digits[1][:100]
    with get_task_stream(client=client) as stream:
        clf = new(callbacks=[Seen()], verbose=True, sync_every=2).fit(chunked(X, 50, 50), y, X_val=chunked(X), y_val=y)
    seen = clf.callbacks_[0]
    assert [info.batch for info in seen.batches] == [1, 2, 3, 4] * 2
    assert all(info.images_per_second > 0 for info in seen.epochs) and seen.epochs[0].n_samples == 100
    assert "images/s" in capsys.readouterr().out
    from dask.utils import key_split

    names = {key_split(task["key"]) for task in stream.data}
    assert names >= {f"fastcnn-{name}" for name in "inspect images state train average loss validate".split()}


def test_a_task_takes_the_threads_of_its_worker(client, threads, monkeypatch):
    asked = (None, -1, 1, 64)
    assert client.submit(lambda: [runtime.max_threads(n) for n in asked], pure=False).result(30) == [1, 1, 1, 1]
    monkeypatch.setattr("numba.config.NUMBA_NUM_THREADS", 8)
    assert threads.submit(lambda: [runtime.max_threads(n) for n in asked], pure=False).result(30) == [2, 2, 1, 2]
    assert runtime.max_threads(None) == 8  # outside of a task nothing has changed


# ---------------------------------------------------------------------------------------------------------------- abuse


def test_a_chunk_that_cannot_be_used_is_named(client, digits):
    X, y = digits[0][:60], digits[1][:60]

    def with_part(part):
        parts = [dask.delayed(X[:30]), dask.delayed(part)]
        return da.concatenate([da.from_delayed(p, (30, 8, 8), X.dtype) for p in parts])

    before = new().fit(chunked(X), y)
    params = {name: value.copy() for name, value in before.network_.params.items()}
    for part, message in [
        (X[30:, :7], r"chunk 1: X has images of shape \(7, 8, 1\)"),
        (X[30:55], "chunk 1: Found input variables with inconsistent numbers of samples"),
        (np.where(X[30:] > 3, np.nan, X[30:]), "chunk 1: Input X contains NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            before.fit(with_part(part), y)
    for labels, message in [
        (np.linspace(0, 1, 60), "chunk 0: Unknown label type"),
        (y[:50], "y has 50 entries for 60 images"),
        (y.reshape(30, 2).repeat(2, axis=0), "y must have one dimension"),
    ]:
        with pytest.raises(ValueError, match=message):
            before.fit(chunked(X, 30, 30), labels)
    texts = da.concatenate([da.from_array(y[:30]), da.from_delayed(dask.delayed(y[30:].astype(str)), (30,), y.dtype)])
    with pytest.raises(ValueError, match="y has numbers in chunk 0 and text in chunk 1"):
        before.fit(chunked(X, 30, 30), texts)
    message = r"^validation data: chunk 1: y_val has labels that are not among the classes .*\[77\]"
    with pytest.raises(ValueError, match=message):
        before.fit(chunked(X), y, X_val=chunked(X, 30, 30), y_val=np.where(np.arange(60) == 40, 77, y))
    with pytest.raises(ValueError, match="sample_weight is zero for every image"):
        before.fit(chunked(X, 30, 30), y, np.zeros(60))
    huge = X.astype(np.float64)
    huge[40] = 1e100
    with pytest.raises(ValueError, match=r"^validation data: chunk 1: X has values up to 1e\+100, too large for"):
        before.fit(chunked(X, 30, 30), y, X_val=chunked(huge, 30, 30), y_val=y)
    with pytest.raises(ValueError, match=r"^chunk 1: X has values up to 1e\+100, too large for float32, scaled"):
        copy.copy(before).set_params(warm_start=True).fit(chunked(huge, 30, 30), y)
    huge[40] = 1e39
    with pytest.raises(ValueError, match=r"chunk 1: X has values up to 1e\+39, too large for the network's dtype"):
        clone(before).set_params(scale=None).fit(chunked(huge, 30, 30), y)
    with pytest.raises(ValueError, match="chunk 1: X has values up to"):
        clone(before).set_params(scale=None).fit(chunked(huge, 30, 30), y, (np.arange(60) < 30) * 1.0)
    weight = np.where(np.arange(60) == 40, 1e300, 1.0)
    with pytest.raises(ValueError, match=r"sample_weight has values up to 1e\+300, too large for float32"):
        before.fit(chunked(X, 30, 30), y, weight)
    with pytest.raises(ValueError, match=r"class_weight times sample_weight has .* 1e-45, too small for float32"):
        clone(before).set_params(class_weight={k: 1e-45 for k in range(10)}).fit(chunked(X, 30, 30), y)
    with pytest.raises(ValueError, match=r"chunk 0: y has missing labels \(NaT\)"):
        before.fit(chunked(X, 30, 30), np.where(y, np.datetime64("2026-01-01"), np.datetime64("NaT")))
    dates = np.datetime64("2026-01-01", "D") + y
    dated = da.concatenate([da.from_array(y[:30]), da.from_delayed(dask.delayed(dates[30:]), (30,), y.dtype)])
    with pytest.raises(ValueError, match="y has numbers in chunk 1 and dates in chunk 2"):
        before.fit(chunked(X, 0, 30, 30), da.concatenate([da.from_array(y[:0]), dated]))
    with pytest.raises(ValueError, match="X has no images"):
        before.fit(chunked(X[:0]), y[:0])
    for weights, message in [({k: -1.0 for k in range(10)}, "not negative"), ({0: np.nan}, "class_weight must be")]:
        with pytest.raises(ValueError, match=message):
            clone(before).set_params(class_weight=weights).fit(chunked(X), y)
    with pytest.raises(ValueError, match="class_weight times sample_weight is zero for every image"):
        clone(before).set_params(class_weight={0: 0.0}).fit(chunked(X, 30, 30), y, (y == 0) * 1.0)
    with pytest.raises(ValueError, match="sync_every"):
        before.set_params(sync_every=0).fit(chunked(X), y)
    for name, value in params.items():
        np.testing.assert_array_equal(before.network_.params[name], value)


def test_what_is_missing_is_said(digits, monkeypatch):
    X, y = digits[0][:20], digits[1][:20]
    with pytest.raises(ValueError, match="there is no Dask client"):
        new().fit(chunked(X), y)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install 'dask\[array,distributed\]'"):
        new().fit(X, y)


def test_only_dask_arrays(client, digits):
    with pytest.raises(TypeError, match="X must be a dask array, got ndarray"):
        new().fit(*digits)
    with pytest.raises(ValueError, match="5 dimensions"):
        new().fit(da.zeros((4, 2, 2, 2, 2)), np.zeros(4))


def test_nobody_works(start, digits, monkeypatch):
    monkeypatch.setattr(cluster, "POLL", 0.2)
    monkeypatch.setattr(cluster, "PATIENCE", 1.0)
    with start(0, processes=False) as (_, client), pytest.raises(ConnectionError, match="no worker for 1 s"):
        new(client=client).fit(chunked(digits[0]), digits[1])


def test_divergence_is_seen(client, digits):
    from sklearn.exceptions import ConvergenceWarning

    X, y = digits[0][:100], digits[1][:100]
    with pytest.warns(ConvergenceWarning, match="diverged"):
        clf = new(solver="sgd", learning_rate_init=1e30, sync_every=1).fit(chunked(X, 50, 50), y)
    assert all(np.isfinite(value).all() for value in clf.network_.params.values())


@pytest.mark.small
def test_dask_is_imported_when_it_is_used():
    code = (
        "import sys, numpy as np; from fastcnn.distributed import DaskCNNClassifier; import fastcnn.classifier;"
        "fastcnn.CNNClassifier(max_iter=1, conv_channels=(2,)).fit(np.zeros((4, 4, 4)), [0, 1, 0, 1]);"
        "assert not {'dask', 'distributed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

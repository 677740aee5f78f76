"""Optimisers against their papers' formulas, written again in plain NumPy."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastcnn.kernels.host import empty
from fastcnn.training.optimizers import SGD, Adam, AdamW, Matrix, Muon

pytestmark = pytest.mark.small

N, N_DECAY = 7, 4
WEIGHTS = np.arange(N) < N_DECAY


def adam_update(params, grads, m, v, s):
    decays = np.arange(params.size) < s.n_decay
    g = s.grad_scale * grads + s.l2 * params * decays
    m[:] = s.beta_1 * m + (1 - s.beta_1) * g
    v[:] = s.beta_2 * v + (1 - s.beta_2) * g**2
    step = m / s.correction_1 / (np.sqrt(v / s.correction_2) + s.epsilon)
    params -= s.learning_rate * (step + s.decay * params * decays)


def sgd_update(params, grads, velocity, s):
    decays = np.arange(params.size) < s.n_decay
    g = s.grad_scale * grads + s.l2 * params * decays
    velocity[:] = s.momentum * velocity - s.learning_rate * g
    params += s.momentum * velocity - s.learning_rate * g if s.nesterov else velocity


def muon_scratch(matrices):
    return 0


def muon_update(params, grads, m, matrices, s, scratch):
    """With the exact polar factor in place of the iteration."""
    for start, rows, columns in matrices:
        part = slice(start, start + rows * columns)
        g = s.grad_scale * grads[part]
        m[part] = s.momentum * m[part] + (1 - s.momentum) * g
        mean = s.momentum * m[part] + (1 - s.momentum) * g if s.nesterov else m[part]
        u, _, v = np.linalg.svd(np.nan_to_num(mean.reshape(rows, columns)), full_matrices=False)
        step = (u @ v).ravel() + 0 * mean
        params[part] -= s.learning_rate * (0.2 * max(rows, columns) ** 0.5 * step + s.decay * params[part])


def sum_squares(x, out):
    out[0] = np.sum(x.astype(np.float64) ** 2)


KERNELS = SimpleNamespace(
    adam_update=adam_update, empty=empty, muon_scratch=muon_scratch, muon_update=muon_update, sgd_update=sgd_update,
    sum_squares=sum_squares,
)  # fmt: skip


def bound(optimizer, n=N, n_decay=N_DECAY, dtype="float64", matrices=()):
    optimizer.bind(n, n_decay, dtype, matrices)
    return optimizer


def run(optimizer, params, gradients):
    params = params.copy()
    for gradient in gradients:
        optimizer.update(KERNELS, params, gradient)
    return params


@pytest.fixture
def start():
    return np.random.default_rng(0).normal(size=N)


@pytest.fixture
def gradients():
    return np.random.default_rng(1).normal(size=(5, N))


def adam_by_the_paper(theta, gradients, rate, beta_1, beta_2, epsilon, l2, decay):
    m = v = np.zeros(N)
    for t, g in enumerate(gradients, start=1):
        g = g + l2 * np.where(WEIGHTS, theta, 0)
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g * g
        m_hat, v_hat = m / (1 - beta_1**t), v / (1 - beta_2**t)
        theta = theta - rate * m_hat / (v_hat**0.5 + epsilon) - rate * decay * np.where(WEIGHTS, theta, 0)
    return theta


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_adam(start, gradients, l2):
    optimizer = bound(Adam(0.01, 0.8, 0.95, 1e-6, l2=l2))
    expected = adam_by_the_paper(start, gradients, 0.01, 0.8, 0.95, 1e-6, l2, 0.0)
    assert_allclose(run(optimizer, start, gradients), expected, rtol=1e-12)
    assert optimizer.t == 5


def test_adamw(start, gradients):
    expected = adam_by_the_paper(start, gradients, 0.01, 0.9, 0.999, 1e-8, 0.0, 0.3)
    assert_allclose(run(bound(AdamW(0.01, weight_decay=0.3)), start, gradients), expected, rtol=1e-12)


def test_adamw_shrinks_weights_alone_without_a_gradient(start):
    after = run(bound(AdamW(0.1, weight_decay=0.5)), start, [np.zeros(N)])
    assert_allclose(after, np.where(WEIGHTS, 0.95 * start, start))


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_orthogonalizes_matrices_and_leaves_the_rest_to_adamw(start, gradients, nesterov):
    matrix, rest = slice(1, 3), np.r_[0, 3:N]
    settings = {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-6, "weight_decay": 0.3}
    optimizer = bound(Muon(0.01, 0.9, nesterov, **settings, clip_norm=2.0), matrices=[Matrix(1, 1, 2)])
    after = run(optimizer, start, gradients)
    adamw = run(bound(AdamW(0.01, **settings, clip_norm=2.0)), start, gradients)
    assert_allclose(after[rest], adamw[rest], rtol=1e-12)
    weights, mean = start[matrix], np.zeros(2)
    for g in gradients:
        g = g[matrix] * min(1, 2 / np.linalg.norm(g))
        mean = 0.9 * mean + 0.1 * g
        ahead = 0.9 * mean + 0.1 * g if nesterov else mean
        weights = weights * (1 - 0.01 * 0.3) - 0.01 * 0.2 * 2**0.5 * ahead / np.linalg.norm(ahead)
    assert_allclose(after[matrix], weights, rtol=1e-12)


def test_a_step_for_which_there_is_no_memory_is_not_done_by_half(start, gradients):
    def full(n_bytes):
        raise MemoryError("the GPU is full")

    optimizer, params = bound(Muon(0.1)), start.copy()
    with pytest.raises(MemoryError):
        optimizer.update(SimpleNamespace(**vars(KERNELS) | {"empty": full}), params, gradients[0])
    assert optimizer.t == 0 and not optimizer.state_dict()["m"].any()
    np.testing.assert_array_equal(params, start)


def test_muon_without_matrices_is_adamw(start, gradients):
    assert_array_equal(run(bound(Muon(0.1)), start, gradients), run(bound(AdamW(0.1)), start, gradients))


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_sgd_with_classical_momentum(start, gradients, l2):
    theta, velocity = start, np.zeros(N)
    for g in gradients:
        velocity = 0.9 * velocity - 0.05 * (g + l2 * np.where(WEIGHTS, theta, 0))
        theta = theta + velocity
    optimizer = bound(SGD(0.05, nesterov=False, l2=l2))
    assert_allclose(run(optimizer, start, gradients), theta, rtol=1e-12)


def test_nesterov_is_sutskevers_look_ahead():
    """The kernel moves the look-ahead point theta + mu v; Sutskever's formula moves theta (eqs. 3 and 4)."""
    curvature = np.array([1.0, 0.3, 2.0])
    theta, velocity, mu, rate = np.array([1.0, -2.0, 0.5]), np.zeros(3), 0.8, 0.1
    optimizer = bound(SGD(rate, momentum=mu), 3, 3)
    ahead = theta.copy()
    for _ in range(6):
        optimizer.update(KERNELS, ahead, curvature * ahead)
        velocity = mu * velocity - rate * curvature * (theta + mu * velocity)
        theta = theta + velocity
        assert_allclose(ahead, theta + mu * velocity, rtol=1e-12)


@pytest.mark.parametrize(
    "optimizer", [Adam(0.1), AdamW(0.1, weight_decay=0.0), SGD(0.1), SGD(0.1, nesterov=False), SGD(0.1, 0.0)]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_convergence_on_a_quadratic(optimizer, dtype):
    optimizer = bound(copy.deepcopy(optimizer), 3, 3, dtype)
    centre, curvature = np.array([1, -2, 3], dtype), np.array([1, 0.5, 2], dtype)
    params = np.zeros(3, dtype)
    for _ in range(600):
        optimizer.update(KERNELS, params, curvature * (params - centre))
    assert params.dtype == dtype
    assert_allclose(params, centre, atol=1e-3)


def test_clipping_scales_the_whole_gradient(start):
    gradient = np.full(N, 10.0)
    clipped = gradient * 0.5 / np.linalg.norm(gradient)
    after = run(bound(SGD(1.0, 0.0, clip_norm=0.5)), start, [gradient])
    assert_allclose(start - after, clipped)


def test_a_short_gradient_is_not_clipped(start, gradients):
    free = run(bound(Adam(0.1)), start, gradients)
    assert_array_equal(run(bound(Adam(0.1, clip_norm=100.0)), start, gradients), free)


def test_a_gradient_that_is_not_finite_is_seen_in_the_parameters(start):
    assert np.isnan(run(bound(SGD(clip_norm=1.0)), start, [np.full(N, np.nan)])).all()


def test_a_learning_rate_set_between_steps_counts(start):
    optimizer = bound(SGD(1.0, 0.0))
    optimizer.learning_rate = np.float32(0.25)
    assert_array_equal(run(optimizer, start, [np.ones(N)]), start - 0.25)


@pytest.mark.parametrize("make", [Adam, AdamW, Muon, SGD])
class TestState:
    @staticmethod
    def bound(make):
        return bound(make(), matrices=[Matrix(0, 2, 2)])

    def test_going_on_from_a_saved_state(self, make, start, gradients):
        whole = run(self.bound(make), start, gradients)
        first, second = self.bound(make), self.bound(make)
        half = run(first, start, gradients[:3])
        second.load_state_dict(first.state_dict())
        assert_array_equal(run(second, half, gradients[3:]), whole)

    def test_a_saved_state_is_a_copy(self, make, start, gradients):
        optimizer = self.bound(make)
        run(optimizer, start, gradients[:1])
        saved = optimizer.state_dict()
        before = copy.deepcopy(saved)
        run(optimizer, start, gradients)
        assert all(np.array_equal(saved[name], before[name]) for name in saved)

    def test_pickling_keeps_the_state(self, make, start, gradients):
        optimizer = self.bound(make)
        run(optimizer, start, gradients)
        twin = pickle.loads(pickle.dumps(optimizer))
        assert_array_equal(run(twin, start, gradients), run(optimizer, start, gradients))

    def test_reset_forgets(self, make, start, gradients):
        optimizer = self.bound(make)
        first = run(optimizer, start, gradients)
        optimizer.reset()
        assert optimizer.t == 0
        assert_array_equal(run(optimizer, start, gradients), first)

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"t": -1}, "t must be an int >= 0, got -1"),
            ({"t": 1.5}, "t must be an int"),
            ({"extra": np.zeros(N)}, r"the state has .*'extra'.*, expected \['"),
            ({"FIRST": np.zeros(N + 1)}, r"has shape \(8,\) and dtype float64, expected \(7,\)"),
            ({"FIRST": np.zeros(N, int)}, "dtype int64, expected"),
        ],
    )
    def test_a_wrong_state_changes_nothing(self, make, change, message, start, gradients):
        optimizer = self.bound(make)
        run(optimizer, start, gradients)
        before = optimizer.state_dict()
        first = next(name for name in before if name != "t")
        wrong = self.bound(make).state_dict() | {name.replace("FIRST", first): v for name, v in change.items()}
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(wrong)
        after = optimizer.state_dict()
        assert all(np.array_equal(after[name], before[name]) for name in before)

    def test_a_missing_name(self, make):
        with pytest.raises(ValueError, match="the state has"):
            self.bound(make).load_state_dict({"t": 1})

    def test_one_optimizer_for_one_network(self, make):
        with pytest.raises(ValueError, match="belongs to another network"):
            self.bound(lambda: self.bound(make))

    def test_vectors_of_another_size_or_dtype(self, make, start):
        optimizer = self.bound(make)
        for params, grads in [(start[:3], start), (start, start[:3]), (start.astype("f"), start)]:
            with pytest.raises(ValueError, match="but the optimiser is bound to shape"):
                optimizer.update(KERNELS, params, grads)
        assert optimizer.t == 0

    def test_update_before_bind(self, make, start):
        with pytest.raises(ValueError, match="bound to shape None"):
            make().update(KERNELS, start, start)

    def test_more_decaying_parameters_than_there_are(self, make):
        with pytest.raises(ValueError, match="n_decay must be between 0 and n_params=7, got 8"):
            make().bind(7, 8, "float32")

    def test_no_parameters(self, make):
        bound(make(), 0, 0).update(KERNELS, np.empty(0), np.empty(0))


@pytest.mark.parametrize(
    "make, arguments, message",
    [
        (Adam, {"learning_rate": 0}, "learning_rate must be a finite number > 0, got 0"),
        (Adam, {"learning_rate": np.nan}, "learning_rate must be a finite number > 0, got nan"),
        (Adam, {"beta_1": 1.0}, r"beta_1 must be in \[0, 1\), got 1.0"),
        (Adam, {"beta_2": -0.1}, r"beta_2 must be in \[0, 1\), got -0.1"),
        (Adam, {"epsilon": 0.0}, "epsilon must be a finite number > 0"),
        (Adam, {"l2": -1}, "l2 must be a finite number >= 0, got -1"),
        (AdamW, {"weight_decay": np.inf}, "weight_decay must be a finite number >= 0, got inf"),
        (AdamW, {"clip_norm": 0.0}, "clip_norm must be a finite number > 0"),
        (Muon, {"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
        (Muon, {"learning_rate": -1}, "learning_rate must be a finite number > 0"),
        (SGD, {"momentum": 1}, r"momentum must be in \[0, 1\), got 1"),
        (SGD, {"l2": -0.5}, "l2 must be a finite number >= 0"),
    ],
)
def test_values_out_of_range(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.parametrize("settings", [{"beta_1": 1 - 1e-9}, {"beta_2": 1 - 1e-9}, {"epsilon": 1e-50}])
def test_what_the_dtype_cannot_tell_is_refused(settings):
    for make in (Adam, AdamW, Muon):
        with pytest.raises(ValueError, match=r"cannot be told from [01] in float32"):
            bound(make(**settings), dtype="float32")
        bound(make(**settings), dtype="float64")

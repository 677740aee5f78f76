"""PyTorch, where it is installed, as a second opinion on what the kernels compute."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fastcnn.engine.ops import IDENTITY
from tests.cases import CONV_CASES, POOL_CASES
from tests.kernels import harness

torch = pytest.importorskip("torch")

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def tensor(array, requires_grad=True):
    """(N,H,W,C) -> a tensor (N,C,H,W)."""
    return torch.tensor(np.ascontiguousarray(array.transpose(0, 3, 1, 2)), requires_grad=requires_grad)


def images(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CONV_CASES if c.n])
def test_conv2d(backend, case):
    g = case.geometry
    x, weight, bias, dy = harness.conv_arrays(g, case.n, np.float64, np.random.default_rng(0))
    image, b = tensor(x), torch.tensor(bias, requires_grad=True)
    w = torch.tensor(np.ascontiguousarray(weight.transpose(3, 2, 0, 1)), requires_grad=True)
    padded = torch.nn.functional.pad(image, (g.pad_left, g.pad_right, g.pad_top, g.pad_bottom))
    steps, dilation = (g.stride_h, g.stride_w), (g.dilation_h, g.dilation_w)
    z = torch.nn.functional.conv2d(padded, w, b, stride=steps, dilation=dilation, groups=g.groups)
    z.backward(tensor(dy, requires_grad=False))
    assert_allclose(harness.conv2d_forward(backend, x, weight, bias, g), images(z), **TOLERANCE)
    assert_allclose(harness.conv2d_backward_input(backend, dy, weight, g), images(image.grad), **TOLERANCE)
    dw, db = harness.conv2d_backward_weight(backend, x, dy, g)
    assert_allclose(dw, w.grad.numpy().transpose(2, 3, 1, 0), **TOLERANCE)
    assert_allclose(db, b.grad.numpy(), **TOLERANCE)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in POOL_CASES if c.n])
def test_pooling(backend, case):
    g, rng = case.geometry, np.random.default_rng(0)
    x, dy = rng.standard_normal((case.n, g.h, g.w, g.c)), rng.standard_normal((case.n, g.p, g.q, g.c))
    window, steps = (g.r, g.s), (g.stride_h, g.stride_w)
    pads = (g.pad_left, g.pad_right, g.pad_top, g.pad_bottom)
    for kind in ("max", "avg"):
        image = tensor(x)
        if kind == "max":
            padded = torch.nn.functional.pad(image, pads, value=-np.inf)
            pooled = torch.nn.functional.max_pool2d(padded, window, steps)
            y, argmax = harness.maxpool2d_forward(backend, x, g)
            dx = harness.maxpool2d_backward(backend, dy, argmax, g)
        else:
            padded = torch.nn.functional.pad(image, pads)
            pooled = torch.nn.functional.avg_pool2d(padded, window, steps)
            y = harness.avgpool2d_forward(backend, x, case.geometry_with_pad)
            dx = harness.avgpool2d_backward(backend, dy, case.geometry_with_pad)
        pooled = pooled[:, :, : g.p, : g.q]
        pooled.backward(tensor(dy, requires_grad=False))
        assert_allclose(y, images(pooled), **TOLERANCE)
        assert_allclose(dx, images(image.grad), **TOLERANCE)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dense_and_cross_entropy(backend, smoothing):
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((9, 20)), rng.standard_normal((20, 6)), rng.standard_normal(6)
    labels, weights = rng.integers(0, 6, 9), rng.uniform(0.1, 2, 9)
    xt, wt, bt = (torch.tensor(a, requires_grad=True) for a in (x, weight, bias))
    losses = torch.nn.functional.cross_entropy(
        xt @ wt + bt, torch.tensor(labels), reduction="none", label_smoothing=smoothing
    )
    ((losses * torch.tensor(weights)).sum() / weights.sum()).backward()
    logits = harness.dense_forward(backend, x, weight, bias)
    mine, dlogits = harness.softmax_cross_entropy(backend, logits, labels, weights, smoothing)
    assert_allclose(mine, losses.detach().numpy() * weights, **TOLERANCE)
    gradients = harness.dense_backward(backend, x, weight, logits, dlogits, IDENTITY)
    for actual, expected in zip(gradients, (xt, wt, bt), strict=True):
        assert_allclose(actual, expected.grad.numpy(), **TOLERANCE)


def test_batchnorm(backend):
    rng = np.random.default_rng(0)
    x, dy, gamma = rng.standard_normal((30, 4)) + 2, rng.standard_normal((30, 4)), rng.uniform(0.5, 2, 4)
    beta, running_mean, running_var = rng.standard_normal(4), rng.standard_normal(4), rng.uniform(0.5, 2, 4)
    xt, gt, bt = (torch.tensor(a, requires_grad=True) for a in (x, gamma, beta))
    means, variances = torch.tensor(running_mean), torch.tensor(running_var)
    # PyTorch's momentum is the share of the new batch.
    out = torch.nn.functional.batch_norm(xt, means, variances, gt, bt, training=True, momentum=0.1, eps=1e-3)
    out.backward(torch.tensor(dy))
    y, mean, inv_std, *moved = harness.batchnorm_forward(backend, x, gamma, beta, running_mean, running_var, 0.9, 1e-3)
    assert_allclose(y, out.detach().numpy(), **TOLERANCE)
    for actual, expected in zip(moved, (means, variances), strict=True):
        assert_allclose(actual, expected.numpy(), **TOLERANCE)
    gradients = harness.batchnorm_backward(backend, x, gamma, mean, inv_std, dy)
    for actual, expected in zip(gradients, (xt, gt, bt), strict=True):
        assert_allclose(actual, expected.grad.numpy(), **TOLERANCE)

"""The kernels in NumPy, made to be read: the definition of correct that other backends are tested against.

Each forward stands beside its backward. Signatures, shapes and promises are those of `contract`, except that
these functions allocate. A convolution is a sum over the taps (r, s) of its window: at each tap, a strided
view of the padded image times a matrix of weights. The gradients are the same loop, the operands exchanged.
"""

# mypy: disable-error-code="no-untyped-def"

from contextlib import contextmanager

import numpy as np

from fastcnn.kernels.contract import NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS
from fastcnn.kernels.host import empty as empty
from fastcnn.kernels.host import place as place

# ------------------------------------------------------------------------------------------------ convolution


def conv2d_algorithm(geometry, n, dtype, training):
    """0, the direct sum: the definition of correct."""
    return 0


def conv2d_forward_scratch(geometry, pool, n, dtype, lanes):
    """No scratch: this backend allocates."""
    return 0


def conv2d_backward_scratch(geometry, pool, n, dtype, lanes):
    """No scratch: this backend allocates."""
    return 0


def conv2d_forward(x, weight, bias, geometry, y, scratch):
    """y (N,P,Q,K) = x (N,H,W,C) convolved with weight (R,S,C/groups,K), plus bias (K,)."""
    padded = _pad(x, geometry)
    total = np.zeros(y.shape, y.dtype)
    for r, s, pixels in _taps(geometry):
        product = _by_group(padded[pixels], geometry.groups) @ _group_matrices(weight[r, s], geometry.groups)
        total += _from_groups(product, y.shape)
    y[...] = total + bias if bias.size else total


def conv2d_backward_input(dy, weight, geometry, dx, scratch):
    """dx (N,H,W,C) from dy (N,P,Q,K)."""
    if not dx.size:
        return
    padded = np.zeros(_padded_shape(len(dy), geometry), dx.dtype)
    for r, s, pixels in _taps(geometry):
        matrices = _group_matrices(weight[r, s], geometry.groups).swapaxes(1, 2)
        padded[pixels] += _from_groups(_by_group(dy, geometry.groups) @ matrices, padded[pixels].shape)
    dx[...] = _unpad(padded, geometry)


def conv2d_backward_weight(x, dy, geometry, dw, db, scratch):
    """dw (R,S,C/groups,K) and db (K,), summed over the batch."""
    if dw.size:
        padded = _pad(x, geometry)
        for r, s, pixels in _taps(geometry):
            columns = _by_group(padded[pixels], geometry.groups).swapaxes(1, 2)
            dw[r, s] = _from_groups(columns @ _by_group(dy, geometry.groups), dw.shape[2:])
    if db.size:
        db[...] = dy.sum(axis=(0, 1, 2))


def conv2d_block_forward(x, weight, bias, geometry, activation, pool, y, argmax, scratch):
    """y = maxpool(activation(conv(x) + bias)); argmax as y's shape."""
    z = np.empty((len(x), geometry.p, geometry.q, geometry.k), y.dtype)
    conv2d_forward(x, weight, bias, geometry, z, scratch)
    activation_forward(z, activation, z)
    if _is_identity(pool):
        y[...] = z
        argmax[...] = 0
    else:
        maxpool2d_forward(z, pool, y, argmax)


def conv2d_block_backward(x, weight, y, argmax, dy, geometry, activation, pool, dx, dw, db, scratch):
    """dx, dw, db of the block from the gradient dy of its output y.

    Only a window's winner has a gradient, and y is the winner's activation: so y is all that the activation's
    derivative needs, and it may be applied before the gradient is sent back through the pooling.
    """
    dpooled = np.empty_like(dy)
    activation_backward(y, dy, activation, dpooled)
    if _is_identity(pool):
        dz = dpooled
    else:
        dz = np.empty((len(dy), geometry.p, geometry.q, geometry.k), dy.dtype)
        maxpool2d_backward(dpooled, argmax, pool, dz)
    conv2d_backward_weight(x, dz, geometry, dw, db, scratch)
    conv2d_backward_input(dz, weight, geometry, dx, scratch)


def conv2d_norm_forward(
    x, weight, gamma, beta, running_mean, running_var, momentum, epsilon, geometry, activation, pool, y, argmax, mean,
    inv_std, patches, new_weight, new_bias, scratch,
):  # fmt: skip
    """y = maxpool(activation(batch normalisation of conv(x))), one after the other."""
    z, moved = _conv2d(x, weight, geometry), (running_mean, running_var, momentum, epsilon)
    rows = z.reshape(-1, geometry.k)
    batchnorm_forward(rows, gamma, beta, *moved, activation, rows, mean, inv_std)
    if _is_identity(pool):
        y[...] = z
    else:
        maxpool2d_forward(z, pool, y, argmax)


def conv2d_norm_backward(
    x, weight, gamma, mean, inv_std, patches, y, argmax, dy, geometry, activation, pool, dw, dgamma, dbeta, scratch
):
    """Gradients of `conv2d_norm_forward`: back through the activation, the pool, the normalisation, the convolution."""
    z = _conv2d(x, weight, geometry)
    dz, rows, plain = np.empty_like(dy), z.reshape(-1, geometry.k), activation._replace(code=0)
    activation_backward(y, dy, activation, dz)
    if not _is_identity(pool):
        dpooled, dz = dz, np.empty_like(z)
        maxpool2d_backward(dpooled, argmax, pool, dz)
    flat = dz.reshape(rows.shape)
    batchnorm_backward(rows, gamma, gamma, mean, inv_std, flat, flat.copy(), plain, flat, dgamma, dbeta)
    conv2d_backward_weight(x, dz, geometry, dw, np.empty(0, dw.dtype), scratch)


def conv2d_batchnorm_forward(
    x, weight, gamma, beta, running_mean, running_var, momentum, epsilon, geometry, activation, other, z, y, mean,
    inv_std, scratch,
):  # fmt: skip
    """z = conv(x), y = relu(batch normalisation of z) + other, one after the other."""
    conv2d_forward(x, weight, np.empty(0, x.dtype), geometry, z, scratch)
    moved, flat = (running_mean, running_var, momentum, epsilon), (-1, geometry.k)
    batchnorm_forward(z.reshape(flat), gamma, beta, *moved, activation, y.reshape(flat), mean, inv_std)
    if other.size:
        y += other


def conv2d_batchnorm_backward(
    x, weight, z, gamma, beta, mean, inv_std, dy, geometry, activation, beside, dx, dw, dgamma, dbeta, dz, scratch
):
    """The gradients of `conv2d_batchnorm_forward`: back through the ReLU, the normalisation, the convolution."""
    rows, dz = z.reshape(-1, geometry.k), np.empty_like(z)
    y = (rows - mean) * (inv_std * gamma) + beta
    flat = dz.reshape(rows.shape)
    batchnorm_backward(rows, gamma, beta, mean, inv_std, y, dy.reshape(rows.shape), activation, flat, dgamma, dbeta)
    conv2d_backward_weight(x, dz, geometry, dw, np.empty(0, dw.dtype), scratch)
    conv2d_backward_input(dz, weight, geometry, dx, scratch)
    if dx.size and beside.size:
        dx += beside


def _conv2d(x, weight, geometry):
    z = np.empty((len(x), geometry.p, geometry.q, geometry.k), x.dtype)
    conv2d_forward(x, weight, np.empty(0, x.dtype), geometry, z, None)
    return z


def _pad(x, geometry, value=0.0):
    """x (N,H,W,C) inside a border of `value`."""
    padded = np.full(_padded_shape(len(x), geometry), value, x.dtype)
    _unpad(padded, geometry)[...] = x
    return padded


def _padded_shape(n, geometry):
    height = geometry.pad_top + geometry.h + geometry.pad_bottom
    width = geometry.pad_left + geometry.w + geometry.pad_right
    return n, height, width, geometry.c


def _unpad(padded, geometry):
    """The view (N,H,W,C) of a padded image without its border."""
    top, left = geometry.pad_top, geometry.pad_left
    return padded[:, top : top + geometry.h, left : left + geometry.w]


def _taps(geometry):
    """For each tap (r, s) of the window: r, s and the slices of a padded image that it meets, (N,P,Q,C)."""
    dilation_h, dilation_w = getattr(geometry, "dilation_h", 1), getattr(geometry, "dilation_w", 1)
    for r in range(geometry.r):
        rows = _every(r * dilation_h, geometry.stride_h, geometry.p)
        for s in range(geometry.s):
            columns = _every(s * dilation_w, geometry.stride_w, geometry.q)
            yield r, s, (slice(None), rows, columns)


def _every(first, step, count):
    return slice(first, first + (count - 1) * step + 1, step)


def _by_group(pixels, groups):
    """(N,P,Q,groups*C) -> (groups, N*P*Q, C)."""
    return pixels.reshape(-1, groups, pixels.shape[-1] // groups).swapaxes(0, 1)


def _group_matrices(weight, groups):
    """(C/groups, K) -> (groups, C/groups, K/groups)."""
    return weight.reshape(len(weight), groups, -1).swapaxes(0, 1)


def _from_groups(product, shape):
    """(groups, rows, columns) -> rows by groups * columns, as `shape`."""
    return product.swapaxes(0, 1).reshape(shape)


def _is_identity(pool):
    return pool.r == pool.s == pool.stride_h == pool.stride_w == 1


# ------------------------------------------------------------------------------------------------------ dense


def dense_forward_scratch(n, n_in, n_out, dtype, lanes):
    """No scratch: this backend allocates."""
    return 0


def dense_backward_scratch(n, n_in, n_out, dtype, lanes):
    """No scratch: this backend allocates."""
    return 0


def dense_forward(x, weight, bias, activation, y, scratch):
    """y (N,n_out) = activation(x (N,n_in) @ weight (n_in,n_out) + bias)."""
    z = x @ weight
    activation_forward(z + bias if bias.size else z, activation, y)


def dense_backward(x, weight, y, dy, activation, dx, dw, db, scratch):
    """dx, dw, db from the gradient dy of the dense block's output y."""
    dz = np.empty_like(dy)
    activation_backward(y, dy, activation, dz)
    if dx.size:
        dx[...] = dz @ weight.T
    if dw.size:
        dw[...] = x.T @ dz
    if db.size:
        db[...] = dz.sum(axis=0)


# ---------------------------------------------------------------------------------------------------- pooling


def maxpool2d_forward(x, geometry, y, argmax):
    """y (N,P,Q,C), argmax: r * S + s of the first largest pixel; NaN is larger than everything."""
    padded = _pad(x, geometry, -np.inf)
    inside = _pad(np.ones(x.shape, bool), geometry, False)
    best = np.full(y.shape, -np.inf, y.dtype)
    place = np.full(y.shape, -1)
    for r, s, pixels in _taps(geometry):
        v = padded[pixels]
        wins = (v > best) | (np.isnan(v) & ~np.isnan(best))
        wins |= inside[pixels] & (place < 0)  # where all is -inf the winner is still a pixel, not padding
        best = np.where(wins, v, best)
        place = np.where(wins, r * geometry.s + s, place)
    y[...] = best
    if argmax.size:
        argmax[...] = place


def maxpool2d_backward(dy, argmax, geometry, dx):
    """dx (N,H,W,C): each dy goes to its winner; overlapping windows add up."""
    padded = np.zeros(_padded_shape(len(dy), geometry), dx.dtype)
    for r, s, pixels in _taps(geometry):
        padded[pixels] += np.where(argmax == r * geometry.s + s, dy, 0)
    dx[...] = _unpad(padded, geometry)


def avgpool2d_forward(x, geometry, y):
    """y: mean over each window, of its pixels inside the image (or of all R*S with count_include_pad)."""
    padded = _pad(x, geometry)
    total = np.zeros(y.shape, y.dtype)
    for _, _, pixels in _taps(geometry):
        total += padded[pixels]
    y[...] = total / _window_counts(geometry, y.dtype)


def avgpool2d_backward(dy, geometry, dx):
    """dx: each dy spread evenly over what its window averaged."""
    share = dy / _window_counts(geometry, dy.dtype)
    padded = np.zeros(_padded_shape(len(dy), geometry), dx.dtype)
    for _, _, pixels in _taps(geometry):
        padded[pixels] += share
    dx[...] = _unpad(padded, geometry)


def _window_counts(geometry, dtype):
    """How many pixels each window averages, (1,P,Q,1)."""
    if geometry.count_include_pad:
        return np.full((1, 1, 1, 1), geometry.r * geometry.s, dtype)
    inside = _pad(np.ones((1, geometry.h, geometry.w, geometry.c), dtype), geometry)
    return sum(inside[pixels] for _, _, pixels in _taps(geometry))[..., :1]


# --------------------------------------------------------------------------------------- bias and activations


def bias_forward(x, bias, y):
    """y (rows,C) = x (rows,C) + bias (C,)."""
    y[...] = x + bias


def bias_backward(dy, db):
    """db (C,) = sum of dy (rows,C) over the rows."""
    if db.size:
        db[...] = dy.sum(axis=0)


def activation_forward(x, activation, y):
    """y = activation(x), any one shape."""
    if activation.code == 1:
        y[...] = np.maximum(x, 0)
    elif activation.code == 2:
        y[...] = np.where(x > 0, x, activation.alpha * np.expm1(np.minimum(x, 0)))
    elif activation.code == 3:
        y[...] = np.tanh(x)
    elif activation.code == 4:
        y[...] = np.where(x > 0, x, activation.alpha * x)
    elif activation.code == 5:
        finite = np.maximum(x, -3e38)  # minus infinity times 0 would be NaN
        y[...] = finite * _sigmoid(finite)
    else:
        y[...] = x


def activation_backward(y, dy, activation, dx):
    """dx = dy * activation'(.), from the output y (silu: from the input, in its place)."""
    if activation.code == 1:
        dx[...] = np.where(y > 0, dy, 0)
    elif activation.code == 2:
        dx[...] = np.where(y > 0, dy, dy * (y + activation.alpha))
    elif activation.code == 3:
        dx[...] = dy * (1 - y * y)
    elif activation.code == 4:
        dx[...] = np.where(y > 0, dy, activation.alpha * dy)
    elif activation.code == 5:
        s = _sigmoid(y)
        dx[...] = dy * (s + y * s * (1 - s))
    else:
        dx[...] = dy


# ---------------------------------------------------------------------------------------------------- dropout


def _sigmoid(x):
    """1 / (1 + exp(-x)), by the hyperbolic tangent, which does not overflow."""
    return (1 + np.tanh(x / 2)) / 2


def add_forward(a, b, activation, y):
    """y = activation(a + b), any one shape."""
    activation_forward(a + b, activation, y)


def dropout_forward(x, rate, state, y, mask):
    """y = x / (1 - rate) where kept, else 0; mask (N,F) from the counter-based generator of the contract."""
    mask[...] = _random_bits(state, x.size).reshape(x.shape) >= np.uint64(np.floor(rate * 2**32))
    y[...] = np.where(mask, x, 0) / (1 - rate)


def dropout_backward(dy, mask, rate, dx):
    """dx = dy / (1 - rate) where kept, else 0."""
    dx[...] = np.where(mask, dy, 0) / (1 - rate)


def spatial_dropout_forward(x, rate, state, y, mask):
    """y = x / (1 - rate) where the channel is kept, else 0; x (N,P,C), mask (N,C)."""
    kept = np.empty(mask.shape, x.dtype)
    dropout_forward(np.ones(mask.shape, x.dtype), rate, state, kept, mask)
    y[...] = np.where(mask[:, np.newaxis], x, 0) / (1 - rate)


def spatial_dropout_backward(dy, mask, rate, dx):
    """dx = dy / (1 - rate) where the channel was kept, else 0."""
    dx[...] = np.where(mask[:, np.newaxis], dy, 0) / (1 - rate)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _random_bits(state, size):
    """`size` integers of 32 random bits; the arithmetic of uint64 arrays is modulo 2^64."""
    seed, step = state[:1], state[1:]
    counter = np.arange(1, size + 1, dtype=np.uint64)
    return _mix64(_mix64(seed + step * _GOLDEN) + counter * _GOLDEN) >> np.uint64(32)


def _mix64(z):
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


# ---------------------------------------------------------------------------------------------- normalisation


def batchnorm_forward(x, gamma, beta, running_mean, running_var, momentum, epsilon, activation, y, mean, inv_std):
    """y (rows,C) by the batch's statistics, which are saved and move the running ones (below two rows: not)."""
    rows = len(x)
    mean[...] = x.sum(axis=0) / max(rows, 1)
    var = np.square(x - mean).sum(axis=0) / max(rows, 1)
    inv_std[...] = 1 / np.sqrt(var + epsilon)
    activation_forward((x - mean) * inv_std * gamma + beta, activation, y)
    if rows > 1:
        unbiased = var * (rows / (rows - 1))
        running_mean[...] = momentum * running_mean + (1 - momentum) * mean
        running_var[...] = momentum * running_var + (1 - momentum) * unbiased


def batchnorm_inference(x, gamma, beta, running_mean, running_var, epsilon, activation, y):
    """y = activation(gamma * (x - running_mean) / sqrt(running_var + epsilon) + beta)."""
    activation_forward((x - running_mean) / np.sqrt(running_var + epsilon) * gamma + beta, activation, y)


def batchnorm_fold(weight, bias, gamma, beta, running_mean, running_var, epsilon, new_weight, new_bias):
    """Weights and bias that do the inference-mode batch normalisation after them too."""
    scale = gamma / np.sqrt(running_var + epsilon)
    new_weight[...] = weight * scale
    new_bias[...] = beta + ((bias if bias.size else 0) - running_mean) * scale


def batchnorm_backward(x, gamma, beta, mean, inv_std, y, dy, activation, dx, dgamma, dbeta):
    """Gradients of the training-mode batch normalisation (Ioffe and Szegedy 2015, section 3)."""
    before = np.empty_like(dy)
    activation_backward(y, dy, activation, before)
    dy, normalised = before, (x - mean) * inv_std
    sum_dy, sum_dy_normalised = dy.sum(axis=0), (dy * normalised).sum(axis=0)
    if dx.size:
        dx[...] = gamma * inv_std * (dy - (sum_dy + normalised * sum_dy_normalised) / len(x))
    if dgamma.size:
        dgamma[...] = sum_dy_normalised
    if dbeta.size:
        dbeta[...] = sum_dy


def batchnorm_pool_forward(
    x, gamma, beta, running_mean, running_var, momentum, epsilon, activation, geometry, y, argmax, mean, inv_std
):
    """y = maxpool(activation(normalised x)); the activation is monotonic, so the pool comes first."""
    normalised, plain = np.empty_like(x), activation._replace(code=0)
    rows = normalised.reshape(-1, x.shape[-1])
    moved = running_mean, running_var, momentum, epsilon
    batchnorm_forward(x.reshape(rows.shape), gamma, beta, *moved, plain, rows, mean, inv_std)
    maxpool2d_forward(normalised, geometry, y, argmax)
    activation_forward(y, activation, y)


def batchnorm_pool_backward(x, gamma, mean, inv_std, y, argmax, dy, activation, geometry, dx, dgamma, dbeta):
    """Gradients of `batchnorm_pool_forward`: back through the activation, the pool, the normalisation."""
    dpooled, dz, plain = np.empty_like(dy), np.empty_like(x), activation._replace(code=0)
    activation_backward(y, dy, activation, dpooled)
    maxpool2d_backward(dpooled, argmax, geometry, dz)
    rows, no_beta = dz.reshape(-1, x.shape[-1]), gamma  # without an activation it is not looked at
    out = dx.reshape(rows.shape) if dx.size else dx
    batchnorm_backward(x.reshape(rows.shape), gamma, no_beta, mean, inv_std, rows, rows, plain, out, dgamma, dbeta)


# ----------------------------------------------------------------------------------------------------- losses


def softmax(logits, proba):
    """proba (N,n_classes): softmax of each row."""
    proba[...] = np.exp(_log_softmax(logits))


def softmax_cross_entropy(logits, labels, weights, smoothing, losses, dlogits):
    """losses (N,) = weight * cross-entropy; dlogits = gradient of sum(losses) / sum(weights)."""
    n, n_classes = logits.shape
    log_proba = _log_softmax(logits)
    targets = np.full(logits.shape, smoothing / n_classes, logits.dtype)
    targets[np.arange(n), labels] += 1 - smoothing
    if losses.size:
        losses[...] = -weights * (targets * log_proba).sum(axis=1)
    if dlogits.size:
        total = weights.sum()
        shares = weights / total if total else np.zeros_like(weights)
        dlogits[...] = shares[:, None] * (np.exp(log_proba) - targets)


def _log_softmax(logits):
    """Logarithm of the softmax of each row; the largest logit is taken off first: no exp overflows."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


# ------------------------------------------------------------------------------------------------- optimisers


def adam_update(params, grads, m, v, settings):
    """One step of Adam (Kingma and Ba 2015) or AdamW (Loshchilov and Hutter 2019), in place."""
    n = settings.n_decay
    g = settings.grad_scale * grads
    g[:n] += settings.l2 * params[:n]
    m[...] = settings.beta_1 * m + (1 - settings.beta_1) * g
    v[...] = settings.beta_2 * v + (1 - settings.beta_2) * g * g
    step = m / settings.correction_1 / (np.sqrt(v / settings.correction_2) + settings.epsilon)
    step[:n] += settings.decay * params[:n]
    params -= settings.learning_rate * step


def sgd_update(params, grads, velocity, settings):
    """One step of SGD with (Nesterov) momentum over flat vectors, in place."""
    n, rate = settings.n_decay, settings.learning_rate
    g = settings.grad_scale * grads
    g[:n] += settings.l2 * params[:n]
    velocity[...] = settings.momentum * velocity - rate * g
    params += settings.momentum * velocity - rate * g if settings.nesterov else velocity


def muon_scratch(matrices):
    return 0


def muon_update(params, grads, m, matrices, settings, scratch):
    """One step of Muon (Jordan et al. 2024), scaled as AdamW's (Liu et al. 2025, equation 4), in place."""
    s = settings
    for start, rows, columns in matrices:
        part = slice(start, start + rows * columns)
        g = s.grad_scale * grads[part]
        m[part] = s.momentum * m[part] + (1 - s.momentum) * g
        u = s.momentum * m[part] + (1 - s.momentum) * g if s.nesterov else m[part]
        step = 0.2 * np.sqrt(max(rows, columns)) * _newton_schulz(u.reshape(rows, columns)).ravel()
        params[part] -= s.learning_rate * (step + s.decay * params[part])


def _newton_schulz(u):
    """Close to the nearest matrix with orthogonal rows or columns."""
    if u.shape[0] > u.shape[1]:
        return _newton_schulz(u.T).T
    a, b, c = NEWTON_SCHULZ
    x = u / (np.sqrt(np.square(u).sum()) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def sum_squares(x, out):
    """out[0] (float64, (1,)) = sum of squares of the flat vector x."""
    out[0] = np.square(x, dtype=np.float64).sum()


# ------------------------------------------------------------------------------------------- programs and threads


def record(calls, later=()):
    """A function that does all `calls`, (function, arguments), in order."""

    def run_all():
        for function, args in calls:
            function(*args)

    return run_all


def max_threads(asked=None):
    """One: this backend runs on the caller's thread."""
    if asked is not None and asked != -1 and asked < 1:
        raise ValueError(f"n_jobs must be a positive int, -1 or None, got {asked}")
    return 1


@contextmanager
def threads(asked):
    """Nothing to set up; there is one lane."""
    yield 1

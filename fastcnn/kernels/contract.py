"""The signatures every backend implements, and what each kernel promises.

A backend is a module with all the functions below. Inputs come first, then geometry (a NamedTuple of ints),
then outputs. A kernel returns nothing and never allocates; `scratch` is a 1-D array of at least the number of
elements that the matching `*_scratch` function says, its content undefined before and after. Arrays are
C-contiguous, of one float dtype (float32 or float64) unless stated, images channels last. **An output of size
zero is not wanted and not computed** (the input gradient of the first layer, the bias gradient of a layer
without bias); a `bias` of size zero is no bias.

Besides these functions a backend has `threads(n)`, a context that says how many threads the calls within may use,
`max_threads(n)`, that number as it will be, and `record(calls, later)`, which makes one function of a list of (kernel,
arguments): a plan's steps, over arrays that stay where they are; `later` is a list that is recorded next. Batch
normalisation takes a few vectors of C sums for itself.

A backend says where its arrays lie: `empty(n_bytes)` is memory for it (a vector of uint8), and `place(values)` is
`values` where kernels can read them (itself, if it is there). On the CPU these are NumPy's arrays. On a GPU they are
arrays with what the engine needs of NumPy's: shape and dtype, slices of a vector, `view`, `reshape`, ``a[...] =
values``, and ``np.asarray(a)``, which is a copy on the host.

A device that has the outputs has `tally`, so that two numbers come back from a training step, and `passed()`, which
gives a function that waits for what was asked for so far, such as the copy of an input. Where tensor cores multiply,
`precise(precision)` is a context in which they are launched or recorded with that precision, one of `PRECISIONS`.

Where images lie on a device, `gather_images`, `relight_images` and `blend_images` build mini-batches of them there
(`kernels/cuda/batches.py`), and `has_room(n_bytes)` says whether a set of images should be there. An array there with
a twin on the host, for batches that the host builds, is `staged(shape, dtype)`. Other backends have none of these.

Alphabet: N batch, H W input, C channels in, K channels out, R S window, P Q output; gradients are dx dw db
dy. `activation` is an `Activation` (code: 0 identity, 1 relu, 2 elu, 3 tanh, 4 leaky relu; alpha), and its gradient
is taken from its *output* y: relu y > 0; elu y > 0 ? 1 : y + alpha; tanh 1 - y^2; leaky relu y > 0 ? 1 : alpha.
`activation_forward` and `activation_backward` know 5, silu, too, whose gradient is taken from its input x: s + x s (1 -
s) with s = 1 / (1 + exp(-x)). `pool` is a `PoolGeometry`
over the convolution's output; a 1x1 window with stride 1 is no pooling (then `argmax` may have size zero).
`argmax` holds the winner's place in its window, r * S + s (uint8, or int32 where R * S > 256); the first of
equals wins; NaN wins over everything. Max-pooling pads with minus infinity.
"""

# ruff: noqa: E704
# mypy: disable-error-code="no-untyped-def"

# Of Muon's iteration: singular values below 1 grow as fast as they can, and end between about 0.7 and 1.2.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5

OPTIONAL = (  # not every backend has them
    "conv2d_norm_forward", "conv2d_norm_backward", "conv2d_batchnorm_forward", "conv2d_batchnorm_backward",
)  # fmt: skip

COUNTED = (1 << 31) - 1  # values, of a layer or a mini-batch, for all images, that one launch on a GPU counts

# What tensor cores may round the factors of products of float32 to; the first is to nothing less.
PRECISIONS = ("float32", "tf32", "bf16", "fp16")


def conv2d_algorithm(geometry, n, dtype, training):
    """The value for `geometry.winograd` that is fastest in this backend for n images, decided by shapes alone."""


def conv2d_forward_scratch(geometry, pool, n, dtype, lanes):
    """Elements of `scratch` that the forward kernels need for `n` images on `lanes` threads."""


def conv2d_backward_scratch(geometry, pool, n, dtype, lanes):
    """Elements of `scratch` that the backward kernels need for `n` images on `lanes` threads."""


def conv2d_forward(x, weight, bias, geometry, y, scratch):
    """y (N,P,Q,K) = x (N,H,W,C) convolved with weight (R,S,C/groups,K), plus bias (K,)."""


def conv2d_backward_input(dy, weight, geometry, dx, scratch):
    """dx (N,H,W,C) from dy (N,P,Q,K)."""


def conv2d_backward_weight(x, dy, geometry, dw, db, scratch):
    """dw (R,S,C/groups,K) and db (K,), summed over the batch."""


def conv2d_block_forward(x, weight, bias, geometry, activation, pool, y, argmax, scratch):
    """y = maxpool(activation(conv(x) + bias)), the pre-pool values never stored; argmax as y's shape."""


def conv2d_block_backward(x, weight, y, argmax, dy, geometry, activation, pool, dx, dw, db, scratch):
    """dx, dw, db of the block from the gradient dy of its output y. dy is not changed."""


def conv2d_norm_forward(
    x, weight, gamma, beta, running_mean, running_var, momentum, epsilon, geometry, activation, pool, y, argmax, mean,
    inv_std, patches, new_weight, new_bias, scratch,
):  # fmt: skip
    """Training: y = maxpool(activation(batch normalisation of conv(x))), argmax as y's shape; the batch's statistics
    (K,) as `batchnorm_forward`; patches (T + T*T,) float64 for the gradient: mean and covariance of the T = R*S*C
    numbers under a window. new_weight and new_bias, as weight and beta, are memory to use. For stride and dilation 1,
    one group and a small T. A backend may do without, and then has neither this nor its gradient.
    """


def conv2d_norm_backward(
    x, weight, gamma, mean, inv_std, patches, y, argmax, dy, geometry, activation, pool, dw, dgamma, dbeta, scratch
):
    """dw, dgamma and dbeta of `conv2d_norm_forward`, all of them wanted, for images that need no gradient themselves;
    scratch as `conv2d_block_backward`.
    """


def conv2d_batchnorm_forward(
    x, weight, gamma, beta, running_mean, running_var, momentum, epsilon, geometry, activation, other, z, y, mean,
    inv_std, scratch,
):  # fmt: skip
    """Training: z = conv(x), y (N,P,Q,K) = activation(batch normalisation of z), plus `other` if its size is not zero;
    the batch's statistics (K,) as `batchnorm_forward`. z is kept for the gradient. The activation is ReLU.
    """


def conv2d_batchnorm_backward(
    x, weight, z, gamma, beta, mean, inv_std, dy, geometry, activation, beside, dx, dw, dgamma, dbeta, dz, scratch
):
    """The gradients of `conv2d_batchnorm_forward`, from the gradient dy of y, which is `other`'s too; dx plus `beside`
    if its size is not zero. dz is memory of z's shape to use; it may have size zero where `geometry.winograd` is not 0.
    """


def dense_forward_scratch(n, n_in, n_out, dtype, lanes):
    """Elements of `scratch` that `dense_forward` needs."""


def dense_backward_scratch(n, n_in, n_out, dtype, lanes):
    """Elements of `scratch` that `dense_backward` needs."""


def dense_forward(x, weight, bias, activation, y, scratch):
    """y (N,n_out) = activation(x (N,n_in) @ weight (n_in,n_out) + bias)."""


def dense_backward(x, weight, y, dy, activation, dx, dw, db, scratch):
    """dx, dw, db from the gradient dy of the dense block's output y. dy is not changed."""


def maxpool2d_forward(x, geometry, y, argmax):
    """y (N,P,Q,C), argmax of y's shape."""


def maxpool2d_backward(dy, argmax, geometry, dx):
    """dx (N,H,W,C): each dy goes to its winner; overlapping windows add up."""


def avgpool2d_forward(x, geometry, y):
    """y: mean over each window, of its pixels inside the image (or of all R*S with count_include_pad)."""


def avgpool2d_backward(dy, geometry, dx):
    """dx: each dy spread evenly over what its window averaged."""


def bias_forward(x, bias, y):
    """y (rows,C) = x (rows,C) + bias (C,)."""


def bias_backward(dy, db):
    """db (C,) = sum of dy (rows,C) over the rows, in an order that does not depend on the thread count."""


def activation_forward(x, activation, y):
    """y = activation(x), any one shape."""


def activation_backward(y, dy, activation, dx):
    """dx = dy * activation'(.), from the output y (silu: from the input, in its place)."""


def add_forward(a, b, activation, y):
    """y = activation(a + b), any one shape."""


def dropout_forward(x, rate, state, y, mask):
    """y = x / (1 - rate) where kept, else 0. x (N,F). mask (N,F) uint8: 1 where kept. state uint64 (2,):
    (seed, step); the mask is a function of (seed, step, i) alone, i = n * F + f: with splitmix64's finaliser
    mix64 and G = 0x9E3779B97F4A7C15 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
    generators"), all modulo 2^64, bits = mix64(mix64(seed + step * G) + (i + 1) * G) >> 32, and i is kept iff
    bits >= floor(rate * 2^32). Every backend draws the same mask.
    """


def dropout_backward(dy, mask, rate, dx):
    """dx = dy / (1 - rate) where kept, else 0."""


def spatial_dropout_forward(x, rate, state, y, mask):
    """y = x / (1 - rate) where the channel is kept, else 0. x (N,P,C). mask (N,C) uint8, drawn as `dropout_forward`
    draws it for N * C values.
    """


def spatial_dropout_backward(dy, mask, rate, dx):
    """dx = dy / (1 - rate) where the channel was kept, else 0."""


def batchnorm_forward(x, gamma, beta, running_mean, running_var, momentum, epsilon, activation, y, mean, inv_std):
    """Training: x, y (rows,C), the activation applied; batch mean and 1/sqrt(var + epsilon) (C,) saved; running
    statistics moved in place: running = momentum * running + (1 - momentum) * batch, the variance unbiased
    (rows / (rows - 1)) as in PyTorch.
    """


def batchnorm_inference(x, gamma, beta, running_mean, running_var, epsilon, activation, y):
    """y = activation(gamma * (x - running_mean) / sqrt(running_var + epsilon) + beta)."""


def batchnorm_fold(weight, bias, gamma, beta, running_mean, running_var, epsilon, new_weight, new_bias):
    """new_weight (rows,K) and new_bias (K,) such that x @ new_weight + new_bias is the inference-mode batch
    normalisation of x @ weight + bias: new_weight = weight * scale, new_bias = beta + (bias - running_mean) *
    scale, with scale = gamma / sqrt(running_var + epsilon).
    """


def batchnorm_backward(x, gamma, beta, mean, inv_std, y, dy, activation, dx, dgamma, dbeta):
    """Gradients of the training-mode batch normalisation and the activation after it, from its output y; or, where the
    sign of y is enough, from x and beta, which tell it without another array of that size.
    """


def batchnorm_pool_forward(
    x, gamma, beta, running_mean, running_var, momentum, epsilon, activation, geometry, y, argmax, mean, inv_std
):
    """Training: y (N,P,Q,C) = maxpool(activation(batch normalisation of x (N,H,W,C))), argmax as y's shape; the rest as
    `batchnorm_forward`. Windows lie side by side (steps are their sizes, no padding) and have up to 256 pixels; the
    activation is identity or relu.
    """


def batchnorm_pool_backward(x, gamma, mean, inv_std, y, argmax, dy, activation, geometry, dx, dgamma, dbeta):
    """Gradients of `batchnorm_pool_forward`, from its output y."""


def softmax(logits, proba):
    """proba (N,n_classes): softmax of each row."""


def softmax_cross_entropy(logits, labels, weights, smoothing, losses, dlogits):
    """losses (N,) = weight * cross-entropy of each row against labels (N,) int64 (smoothed: 1 - smoothing +
    smoothing/n_classes for the label, smoothing/n_classes for the others); dlogits (N,n_classes) = gradient
    of sum(losses) / sum(weights), 0 where the weights sum to 0.
    """


def adam_update(params, grads, m, v, settings):
    """One Adam / AdamW step over the flat vectors, in place. `settings` is an `AdamSettings` NamedTuple:
    learning_rate, beta_1, beta_2, epsilon, l2, decay, n_decay, grad_scale, correction_1, correction_2. For i
    < n_decay the l2 and decay terms count: g = grad_scale * grads + l2 * p; m = beta_1 m + (1 - beta_1) g; v
    = beta_2 v + (1 - beta_2) g^2; p -= learning_rate * (m / correction_1 / (sqrt(v / correction_2) + epsilon)
    + decay * p).
    """


def sgd_update(params, grads, velocity, settings):
    """One SGD step over the flat vectors, in place. `settings` is an `SGDSettings` NamedTuple: learning_rate,
    momentum, nesterov, l2, n_decay, grad_scale. g = grad_scale * grads + l2 * p, the latter for i < n_decay;
    velocity = momentum * velocity - learning_rate * g; p += velocity, or with nesterov p += momentum * velocity -
    learning_rate * g.
    """


def muon_scratch(matrices):
    """Elements of `scratch` that `muon_update` needs."""


def muon_update(params, grads, m, matrices, settings, scratch):
    """One Muon step for parts of the flat vectors, in place: each of `matrices` is a `Matrix` NamedTuple, (start, rows,
    columns). `settings` is a `MuonSettings` NamedTuple: learning_rate, momentum, nesterov, decay, grad_scale. For each
    matrix g = grad_scale * grads; m = momentum m + (1 - momentum) g; u = m, or with nesterov u = momentum m + (1 -
    momentum) g; x = u / (|u| + 1e-7), transposed where it has more rows than columns; five times x = a x + (b A + c A
    A) x with A = x x' and (a, b, c) = `NEWTON_SCHULZ`, then transposed back; p -= learning_rate * (0.2
    sqrt(max(rows, columns)) x + decay * p).
    """


def sum_squares(x, out):
    """out[0] (float64, (1,)) = sum of squares of the flat vector x, in an order that does not depend on the
    thread count.
    """

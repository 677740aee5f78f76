"""Plans: what is fused, what is not computed, and that no buffer is read before it is written."""

import numpy as np
import pytest

from fastcnn import Network
from fastcnn.layers import AvgPool2D, BatchNorm, Conv2D, Dense, Dropout, Flatten, MaxPool2D, ReLU, Residual

pytestmark = pytest.mark.small

LAYERS = [
    Conv2D(4), ReLU(), MaxPool2D(), BatchNorm(), Dropout(0.2), Conv2D(3, 3, 2), AvgPool2D(3, 1, 1), Flatten(),
    Dense(6, activation="elu"), Dense(3),
]  # fmt: skip


def network(**options):
    return Network(LAYERS, (8, 8, 2), random_state=0, dtype="float64", **options)


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("fuse", [True, False])
def test_nothing_is_read_before_it_is_written(device, fuse):
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 2))
    runs = []
    for garbage in (0.0, np.nan):
        net = network(device=device, fuse=fuse)
        plan = net._plan_for(3, "training_dx")
        for view in plan.buffers.values():
            view[...] = garbage if view.dtype.kind == "f" else 255
        y = net.forward(x, training=True)
        dx = net.backward(np.ones((3, 3)))
        runs.append([y, dx, *(g.copy() for g in net.grads.values())])
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_gradient_before_the_first_parameters():
    net = Network([MaxPool2D(), Conv2D(2), Dense(3)], (4, 4, 1), random_state=0)
    training = net._plan_for(2, "training")
    assert training.input_grad is None
    assert [step.name for step in training.backward_steps] == ["dense_backward", "conv2d_block_backward"]
    with_input = net._plan_for(2, "training_dx")
    assert [step.name for step in with_input.backward_steps][-1] == "maxpool2d_backward"
    assert not net._plan_for(2, "inference").backward_steps


def test_branches_add_up_in_the_gradient_of_a_normalised_convolution():
    normed = [Conv2D(3, use_bias=False), BatchNorm(), ReLU()]
    chain = [Residual([*normed, *normed]), Residual(normed, [Conv2D(3, 1)]), Residual([Conv2D(3), ReLU()]), Dense(3)]
    names = [step.name for step in Network(chain, (4, 4, 3))._plan_for(2, "training_dx").backward_steps]
    assert names == [
        "dense_backward", "conv2d_block_backward", "add_forward", "conv2d_block_backward",
        *["conv2d_batchnorm_backward"] * 3,
    ]  # fmt: skip


def test_describe_says_what_happens():
    net = network()
    net.train_step(np.zeros((2, 8, 8, 2)), [0, 1])
    text = net.plan.describe()
    for words in ("plan: training, batch 2", "conv2d+bias+relu+maxpool2d", "conv2d_block_forward", "dense+bias+elu",
                  "workspace", "2x4x4x4", "arena"):  # fmt: skip
        assert words in text
    unfused = network(fuse=False)
    unfused.forward(np.zeros((2, 8, 8, 2)))
    assert "+" not in unfused.plan.describe() and "dropout" not in unfused.plan.describe()


def test_buffers_share_memory():
    plan = network()._plan_for(16, "inference")
    assert plan.arena_bytes < sum(buffer.size for buffer in plan.buffers)
    assert all(view.ctypes.data % 64 == 0 for view in plan.buffers.values())

"""All kernels of the GPU, under the names of `fastcnn.kernels.contract`."""

from fastcnn.kernels.cuda.arrays import empty, place, staged
from fastcnn.kernels.cuda.batches import blend_images, gather_images, relight_images
from fastcnn.kernels.cuda.conv import (
    conv2d_algorithm,
    conv2d_backward_input,
    conv2d_backward_scratch,
    conv2d_backward_weight,
    conv2d_block_backward,
    conv2d_block_forward,
    conv2d_forward,
    conv2d_forward_scratch,
)
from fastcnn.kernels.cuda.dense import (
    dense_backward,
    dense_backward_scratch,
    dense_forward,
    dense_forward_scratch,
)
from fastcnn.kernels.cuda.driver import has_room, max_threads, passed, require_device, threads
from fastcnn.kernels.cuda.elementwise import (
    activation_backward,
    activation_forward,
    add_forward,
    bias_backward,
    bias_forward,
    dropout_backward,
    dropout_forward,
    spatial_dropout_backward,
    spatial_dropout_forward,
)
from fastcnn.kernels.cuda.losses import softmax, softmax_cross_entropy, tally
from fastcnn.kernels.cuda.norm import (
    batchnorm_backward,
    batchnorm_fold,
    batchnorm_forward,
    batchnorm_inference,
)
from fastcnn.kernels.cuda.norm_pool import batchnorm_pool_backward, batchnorm_pool_forward
from fastcnn.kernels.cuda.optimizers import adam_update, muon_scratch, muon_update, sgd_update, sum_squares
from fastcnn.kernels.cuda.pool import (
    avgpool2d_backward,
    avgpool2d_forward,
    maxpool2d_backward,
    maxpool2d_forward,
)
from fastcnn.kernels.cuda.program import record
from fastcnn.kernels.cuda.tiles import precise

__all__ = [
    "activation_backward",
    "activation_forward",
    "adam_update",
    "add_forward",
    "avgpool2d_backward",
    "avgpool2d_forward",
    "batchnorm_backward",
    "batchnorm_fold",
    "batchnorm_forward",
    "batchnorm_inference",
    "batchnorm_pool_backward",
    "batchnorm_pool_forward",
    "bias_backward",
    "bias_forward",
    "blend_images",
    "conv2d_algorithm",
    "conv2d_backward_input",
    "conv2d_backward_scratch",
    "conv2d_backward_weight",
    "conv2d_block_backward",
    "conv2d_block_forward",
    "conv2d_forward",
    "conv2d_forward_scratch",
    "dense_backward",
    "dense_backward_scratch",
    "dense_forward",
    "dense_forward_scratch",
    "dropout_backward",
    "dropout_forward",
    "empty",
    "gather_images",
    "has_room",
    "max_threads",
    "maxpool2d_backward",
    "maxpool2d_forward",
    "muon_scratch",
    "muon_update",
    "passed",
    "place",
    "precise",
    "record",
    "relight_images",
    "require_device",
    "sgd_update",
    "softmax",
    "softmax_cross_entropy",
    "spatial_dropout_backward",
    "spatial_dropout_forward",
    "staged",
    "sum_squares",
    "tally",
    "threads",
]

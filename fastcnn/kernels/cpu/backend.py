"""All kernels of the CPU, under the names of `fastcnn.kernels.contract`."""

from fastcnn.kernels.cpu.conv import (
    conv2d_algorithm,
    conv2d_backward_input,
    conv2d_backward_scratch,
    conv2d_backward_weight,
    conv2d_block_backward,
    conv2d_block_forward,
    conv2d_forward,
    conv2d_forward_scratch,
)
from fastcnn.kernels.cpu.conv_batchnorm import conv2d_batchnorm_backward, conv2d_batchnorm_forward
from fastcnn.kernels.cpu.conv_norm import conv2d_norm_backward, conv2d_norm_forward
from fastcnn.kernels.cpu.dense import (
    dense_backward,
    dense_backward_scratch,
    dense_forward,
    dense_forward_scratch,
)
from fastcnn.kernels.cpu.elementwise import (
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
from fastcnn.kernels.cpu.launch import record
from fastcnn.kernels.cpu.losses import softmax, softmax_cross_entropy
from fastcnn.kernels.cpu.norm import batchnorm_backward, batchnorm_fold, batchnorm_forward, batchnorm_inference
from fastcnn.kernels.cpu.norm_pool import batchnorm_pool_backward, batchnorm_pool_forward
from fastcnn.kernels.cpu.optimizers import adam_update, muon_scratch, muon_update, sgd_update, sum_squares
from fastcnn.kernels.cpu.pool import (
    avgpool2d_backward,
    avgpool2d_forward,
    maxpool2d_backward,
    maxpool2d_forward,
)
from fastcnn.kernels.cpu.runtime import max_threads, threads
from fastcnn.kernels.host import empty, place

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
    "conv2d_algorithm",
    "conv2d_backward_input",
    "conv2d_backward_scratch",
    "conv2d_backward_weight",
    "conv2d_batchnorm_backward",
    "conv2d_batchnorm_forward",
    "conv2d_block_backward",
    "conv2d_block_forward",
    "conv2d_forward",
    "conv2d_forward_scratch",
    "conv2d_norm_backward",
    "conv2d_norm_forward",
    "dense_backward",
    "dense_backward_scratch",
    "dense_forward",
    "dense_forward_scratch",
    "dropout_backward",
    "dropout_forward",
    "empty",
    "max_threads",
    "maxpool2d_backward",
    "maxpool2d_forward",
    "muon_scratch",
    "muon_update",
    "place",
    "record",
    "sgd_update",
    "softmax",
    "softmax_cross_entropy",
    "spatial_dropout_backward",
    "spatial_dropout_forward",
    "sum_squares",
    "threads",
]

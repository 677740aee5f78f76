"""The table of shapes that tests and bench share: named problems for each kind of kernel.

`small` marks what pure Python gets through quickly: naive loops, and compiled kernels without Numba's JIT.
"""

from typing import NamedTuple

from fastcnn.engine.ops import ConvGeometry, PoolGeometry, conv_geometry, identity_pool, pool_geometry


class ConvCase(NamedTuple):
    """A convolution of n images of `in_shape` (H, W, C) and the max-pooling after it."""

    name: str
    n: int
    in_shape: tuple[int, int, int]
    filters: int
    kernel_size: int | tuple[int, int]
    stride: int | tuple[int, int] = 1
    padding: object = "valid"
    dilation: int | tuple[int, int] = 1
    groups: int = 1
    small: bool = False
    pool_size: int | None = None
    pool_stride: int | None = None

    @property
    def geometry(self) -> ConvGeometry:
        return conv_geometry(
            self.in_shape,
            self.filters,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    @property
    def pool(self) -> PoolGeometry:
        g = self.geometry
        if self.pool_size is None:
            return identity_pool(g.p, g.q, g.k)
        return pool_geometry((g.p, g.q, g.k), self.pool_size, self.pool_stride)

    @property
    def multiplications(self) -> int:
        """Of one forward pass."""
        g = self.geometry
        return self.n * g.p * g.q * g.k * g.r * g.s * (g.c // g.groups)


class PoolCase(NamedTuple):
    """A pooling of n images of `in_shape` (H, W, C)."""

    name: str
    n: int
    in_shape: tuple[int, int, int]
    pool_size: int | tuple[int, int]
    stride: int | tuple[int, int] | None = None
    padding: object = "valid"
    small: bool = False

    @property
    def geometry(self) -> PoolGeometry:
        return pool_geometry(self.in_shape, self.pool_size, self.stride, self.padding)

    @property
    def geometry_with_pad(self) -> PoolGeometry:
        """The same, where the average counts the padding."""
        return self.geometry._replace(count_include_pad=True)


class DenseCase(NamedTuple):
    """x (n, n_in) times a weight (n_in, n_out)."""

    name: str
    n: int
    n_in: int
    n_out: int
    small: bool = False


CONV_CASES = (
    ConvCase("textbook 3x3", 2, (5, 5, 1), 1, 3, small=True),
    ConvCase("one pixel", 1, (1, 1, 1), 1, 1, small=True),
    ConvCase("no images", 0, (5, 4, 2), 3, 3, padding="same", small=True),
    ConvCase("no images, strided groups", 0, (7, 6, 4), 6, 3, stride=2, padding=1, groups=2, small=True),
    ConvCase("one image, odd sizes", 1, (5, 3, 2), 3, 3, padding="same", small=True),
    ConvCase("1x1", 2, (3, 4, 3), 5, 1, small=True),
    ConvCase("1x1 strided", 2, (5, 4, 3), 6, 1, stride=2, small=True),
    ConvCase("1x1 padded", 1, (3, 3, 2), 4, 1, padding=1, small=True),
    ConvCase("2x2 same: one odd pixel", 2, (4, 5, 2), 3, 2, padding="same", small=True),
    ConvCase("3x5 asymmetric", 2, (5, 6, 2), 3, (3, 5), padding=((0, 2), (1, 0)), small=True),
    ConvCase("5x3 asymmetric, strided", 2, (6, 5, 2), 3, (5, 3), stride=2, padding=((3, 0), (0, 2)), small=True),
    ConvCase("1x4 row", 2, (3, 6, 2), 2, (1, 4), padding="same", small=True),
    ConvCase("4x1 column", 2, (6, 3, 2), 2, (4, 1), padding="same", small=True),
    ConvCase("window larger than the image", 2, (2, 3, 2), 3, 5, padding=2, small=True),
    ConvCase("window as large as the image", 2, (4, 3, 2), 6, (4, 3), small=True),
    ConvCase("padding wider than the window", 1, (2, 2, 1), 2, 2, padding=3, small=True),
    ConvCase("stride 2", 2, (6, 5, 2), 3, 3, stride=2, padding=1, small=True),
    ConvCase("stride 2 same", 2, (6, 5, 2), 3, 3, stride=2, padding="same", small=True),
    ConvCase("stride 3", 2, (8, 7, 1), 2, 3, stride=3, small=True),
    ConvCase("stride wider than the window", 2, (7, 7, 2), 3, 2, stride=3, small=True),
    ConvCase("stride (2, 1)", 2, (5, 5, 2), 3, 3, stride=(2, 1), padding=1, small=True),
    ConvCase("stride (1, 3)", 2, (4, 8, 2), 3, 3, stride=(1, 3), padding="same", small=True),
    ConvCase("dilation 2", 2, (6, 7, 2), 3, 3, padding=2, dilation=2, small=True),
    ConvCase("dilation (1, 3)", 2, (4, 8, 2), 3, (2, 3), padding=((1, 0), (2, 1)), dilation=(1, 3), small=True),
    ConvCase("dilation 2, stride 2", 2, (8, 7, 2), 3, 3, stride=2, padding=1, dilation=2, small=True),
    ConvCase("dilation 2, stride (3, 2)", 1, (9, 8, 2), 2, 3, stride=(3, 2), padding=2, dilation=2, small=True),
    ConvCase("groups 2", 2, (4, 5, 4), 6, 3, padding="same", groups=2, small=True),
    ConvCase("groups 3, strided, dilated", 2, (7, 6, 6), 9, 3, 2, 2, 2, groups=3, small=True),
    ConvCase("depthwise", 2, (5, 4, 5), 5, 3, padding=1, groups=5, small=True),
    ConvCase("depthwise, multiplier 2", 2, (4, 5, 3), 6, 3, stride=2, padding=1, groups=3, small=True),
    ConvCase("C=3, K=17", 1, (4, 4, 3), 17, 3, padding=1, small=True),
    ConvCase("C=1, K=33", 3, (9, 11, 1), 33, 3, padding="same"),
    ConvCase("C=3, K=10", 5, (13, 17, 3), 10, 3, padding="same"),
    ConvCase("C=17, K=6", 3, (10, 9, 17), 6, 3, padding="same"),
    ConvCase("C=33, K=48", 2, (7, 9, 33), 48, 3, padding=1),
    ConvCase("C=10, K=40 strided", 17, (11, 8, 10), 40, 3, stride=2, padding=1),
    ConvCase("more images than chunks", 37, (6, 6, 3), 9, 3, padding="same"),
    ConvCase("wide rows", 2, (3, 131, 4), 16, 3, padding="same"),
    ConvCase("7x7 stride 2 stem", 2, (33, 31, 3), 20, 7, stride=2, padding=3),
    ConvCase("11x11 stride 4 stem", 1, (51, 47, 3), 24, 11, stride=4),
    ConvCase("5x5 dilation 2, groups 2", 2, (17, 15, 8), 20, 5, padding=4, dilation=2, groups=2),
    ConvCase("groups 4 of 8", 3, (9, 8, 32), 64, 3, padding=1, groups=4),
    ConvCase("depthwise 32", 3, (15, 14, 32), 32, 3, padding=1, groups=32),
    ConvCase("depthwise 12", 2, (4, 4, 12), 12, 3, padding=1, groups=12),
    ConvCase("depthwise 24, stride 2, multiplier 2", 2, (14, 15, 24), 48, 3, stride=2, padding="same", groups=24),
    ConvCase("LeNet C1", 2, (28, 28, 1), 6, 5, padding=2, pool_size=2),
    ConvCase("LeNet C3", 2, (14, 14, 6), 16, 5, pool_size=2),
    ConvCase("seed net 1", 2, (28, 28, 1), 32, 3, padding="same", pool_size=2),
    ConvCase("seed net 2", 2, (14, 14, 32), 64, 3, padding="same", pool_size=2),
    ConvCase("1x1 bottleneck", 2, (14, 14, 64), 33, 1),
)

# 3x3 windows whose channels fill panels of any host, so that Winograd's algorithm can take them.
WINOGRAD_CASES = (
    ConvCase("one tile", 1, (4, 4, 32), 32, 3, padding="same", small=True),
    ConvCase("no images", 0, (5, 4, 32), 32, 3, padding="same", small=True),
    ConvCase("one pixel", 2, (1, 1, 32), 32, 3, padding="same"),
    ConvCase("valid, odd sizes", 3, (7, 5, 32), 64, 3, small=True),
    ConvCase("asymmetric padding", 2, (6, 9, 64), 32, 3, padding=((2, 0), (0, 3))),
    ConvCase("wide padding", 2, (3, 4, 32), 32, 3, padding=4),
    ConvCase("seed net 2", 5, (14, 14, 32), 64, 3, padding="same"),
    ConvCase("more images than a block", 37, (12, 12, 64), 64, 3, padding="same"),
    ConvCase("more channels than a pass", 2, (6, 6, 416), 32, 3, padding="same"),
    ConvCase("more filters than a pass", 2, (6, 6, 32), 416, 3, padding="same"),
    ConvCase("wide rows", 2, (5, 131, 32), 32, 3, padding="same"),
    ConvCase("one large image", 1, (75, 61, 32), 32, 3, padding="same"),
    # Mosaics, the last one not full; and with windows that reach further over one edge.
    ConvCase("four images a mosaic", 6, (7, 7, 32), 64, 3, padding="same"),
    ConvCase("mosaics without padding", 5, (8, 9, 32), 32, 3),
    ConvCase("mosaics, asymmetric padding", 9, (6, 6, 32), 32, 3, padding=((2, 0), (0, 2))),
    ConvCase("more mosaics than a block", 150, (7, 7, 48), 64, 3, padding="same"),
    # 48 = 32 + 16: one panel of three vectors, where two are 32; 80 = 2 * 32 + 16: half a panel more.
    ConvCase("half panels", 3, (7, 5, 48), 48, 3, padding="same", small=True),
    ConvCase("half panels, more images than a block", 37, (12, 12, 48), 80, 3, padding="same"),
    ConvCase("half panels, more channels than a pass", 2, (6, 6, 432), 48, 3, padding="same"),
    ConvCase("half panels, more filters than a pass", 2, (6, 6, 48), 432, 3, padding="same"),
)

POOL_CASES = (
    PoolCase("2x2", 2, (4, 6, 3), 2, small=True),
    PoolCase("2x2 of odd sizes", 2, (5, 7, 3), 2, small=True),
    PoolCase("no images", 0, (4, 4, 3), 2, small=True),
    PoolCase("one pixel", 1, (1, 1, 1), 1, small=True),
    PoolCase("2x2 stride 1", 2, (4, 4, 2), 2, stride=1, small=True),
    PoolCase("overlapping 3x3 stride 2", 2, (7, 7, 3), 3, stride=2, small=True),
    PoolCase("overlapping 3x3 stride 2, padded", 2, (6, 5, 3), 3, stride=2, padding=1, small=True),
    PoolCase("same", 2, (5, 6, 2), 3, stride=2, padding="same", small=True),
    PoolCase("asymmetric padding", 2, (5, 6, 2), (3, 2), stride=1, padding=((2, 0), (0, 1)), small=True),
    PoolCase("stride wider than the window", 2, (8, 7, 2), 2, stride=3, small=True),
    PoolCase("1x1 stride 2", 2, (5, 4, 2), 1, stride=2, small=True),
    PoolCase("2x3 stride (1, 2)", 2, (5, 7, 2), (2, 3), stride=(1, 2), small=True),
    PoolCase("1x3 rows", 2, (3, 7, 2), (1, 3), small=True),
    PoolCase("whole image", 2, (4, 3, 5), (4, 3), small=True),
    PoolCase("window of 16", 2, (16, 17, 4), 16, stride=1),
    PoolCase("more places than a byte", 2, (17, 18, 3), 17, stride=1),
    PoolCase("window of 9, padded", 3, (20, 19, 5), 9, stride=4, padding=4),
    PoolCase("global 14x14", 2, (14, 14, 64), 14),
    PoolCase("global 64x64 of one channel", 9, (64, 64, 1), 64),
    PoolCase("seed net", 3, (28, 28, 32), 2),
    PoolCase("AlexNet 3x3 stride 2", 2, (27, 27, 33), 3, stride=2),
)

DENSE_CASES = (
    DenseCase("no rows", 0, 5, 3, small=True),
    DenseCase("one by one", 1, 1, 1, small=True),
    DenseCase("one row", 1, 7, 10, small=True),
    DenseCase("narrow", 7, 3, 1, small=True),
    DenseCase("one input", 7, 1, 17, small=True),
    DenseCase("odd", 7, 19, 10, small=True),
    DenseCase("deep", 7, 400, 17),
    DenseCase("wide", 64, 33, 128),
    DenseCase("square", 64, 128, 128),
    DenseCase("logits", 64, 128, 10),
    DenseCase("LeNet F5", 64, 400, 120),
    DenseCase("one output", 64, 400, 1),
)

# Layers of real networks, for benchmarks, at the batch sizes people train with.
LAYERS = (
    ConvCase("digits 8x8 conv1", 128, (8, 8, 1), 32, 3, padding="same"),
    ConvCase("digits 8x8 conv2", 128, (8, 8, 32), 64, 3, padding="same", pool_size=2),
    ConvCase("LeNet-5 C1", 128, (28, 28, 1), 6, 5, padding=2, pool_size=2),
    ConvCase("LeNet-5 C3", 128, (14, 14, 6), 16, 5, pool_size=2),
    ConvCase("seed net conv1", 128, (28, 28, 1), 32, 3, padding="same", pool_size=2),
    ConvCase("seed net conv2", 128, (14, 14, 32), 64, 3, padding="same", pool_size=2),
    ConvCase("CIFAR VGG conv1_1", 64, (32, 32, 3), 64, 3, padding="same"),
    ConvCase("CIFAR VGG conv1_2", 32, (32, 32, 64), 64, 3, padding="same", pool_size=2),
    ConvCase("CIFAR VGG conv3_2", 32, (8, 8, 256), 256, 3, padding="same"),
    ConvCase("ResNet-20 stage 1", 64, (32, 32, 16), 16, 3, padding=1),
    ConvCase("ResNet-20 stage 2, down", 64, (32, 32, 16), 32, 3, stride=2, padding=1),
    ConvCase("ResNet-20 shortcut 1x1", 64, (32, 32, 16), 32, 1, stride=2),
    ConvCase("ResNet-50 stem 7x7", 4, (224, 224, 3), 64, 7, stride=2, padding=3, pool_size=3, pool_stride=2),
    ConvCase("ResNet-50 bottleneck 1x1", 8, (56, 56, 64), 256, 1),
    ConvCase("AlexNet conv1", 8, (227, 227, 3), 96, 11, stride=4, pool_size=3, pool_stride=2),
    ConvCase("AlexNet conv2", 8, (27, 27, 96), 256, 5, padding=2, groups=2, pool_size=3, pool_stride=2),
    ConvCase("AlexNet conv3", 8, (13, 13, 256), 384, 3, padding=1),
    ConvCase("MobileNet depthwise", 8, (56, 56, 128), 128, 3, padding=1, groups=128),
    ConvCase("MobileNet depthwise, down", 8, (112, 112, 64), 64, 3, stride=2, padding=1, groups=64),
    ConvCase("MobileNet pointwise", 8, (56, 56, 128), 128, 1),
)

DENSE_LAYERS = (
    DenseCase("seed net dense", 128, 3136, 128),
    DenseCase("seed net logits", 128, 128, 10),
    DenseCase("LeNet-5 F5", 128, 400, 120),
    DenseCase("AlexNet F7", 16, 4096, 4096),
)

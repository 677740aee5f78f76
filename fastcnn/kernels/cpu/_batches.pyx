"""Mini-batches out of a set of images: gather, augment, scale and convert in one pass over the chosen rows.

The set stays as it was given (uint8, float32 or float64; read-only and memory-mapped arrays too); only the
rows asked for are read. Arithmetic is in double and rounded to the batch's dtype at the end.
"""

from libc.math cimport floor, sqrt
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

ctypedef fused source:
    uint8_t
    float
    double

ctypedef fused real:
    float
    double


cdef int check_rows(Py_ssize_t n_values, Py_ssize_t stride, Py_ssize_t itemsize, Py_ssize_t channels) except -1:
    if channels < 1 or n_values % channels:
        raise ValueError(f"rows of {n_values} values are not whole pixels of {channels} channels")
    if n_values > 1 and stride != itemsize:
        raise ValueError("the values of one image must lie side by side in memory; rows may be apart")
    return 0


cdef int check_index(const int64_t[::1] index, Py_ssize_t n_images) except -1:
    cdef Py_ssize_t i
    cdef Py_ssize_t bad = -1
    with nogil:
        for i in range(index.shape[0]):
            if index[i] < 0 or index[i] >= n_images:
                bad = i
                break
    if bad >= 0:
        raise IndexError(f"index {index[bad]} at place {bad} is not one of {n_images} images")
    return 0


cdef int check_sizes(str name, Py_ssize_t got, Py_ssize_t expected) except -1:
    if got != expected:
        raise ValueError(f"{name}: {expected} expected, got {got}")
    return 0


cdef Py_ssize_t chunk_size(Py_ssize_t channels) noexcept nogil:
    """Values in a chunk: whole pixels, and enough of them that the loop over a chunk becomes vector code."""
    return channels * ((63 + channels) // channels)


cdef double* repeat_scale(const double[::1] mean, const double[::1] inv_std, Py_ssize_t size) noexcept nogil:
    """``size`` means, then ``size`` inverse deviations, repeated for each pixel of a chunk; NULL: no memory."""
    cdef double* scale = <double*> malloc(2 * size * sizeof(double))
    cdef Py_ssize_t j
    if scale != NULL:
        for j in range(size):
            scale[j] = mean[j % mean.shape[0]]
            scale[size + j] = inv_std[j % mean.shape[0]]
    return scale


cdef void scale_chunk(const source* values, const double* mean, const double* inv_std, Py_ssize_t size,
                      real* out) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(size):
        out[j] = <real> ((values[j] - mean[j]) * inv_std[j])


cdef void scale_values(const source* values, const double* scale, Py_ssize_t size, Py_ssize_t n_values,
                       real* out) noexcept nogil:
    """Scale a run of pixels; ``scale`` and ``size`` are ``repeat_scale``'s."""
    cdef Py_ssize_t start = 0
    while start + size <= n_values:
        scale_chunk(values + start, scale, scale + size, size, out + start)
        start += size
    scale_chunk(values + start, scale, scale + size, n_values - start, out + start)


def build_batch(const source[:, :] images, const int64_t[::1] index, const double[::1] mean,
                const double[::1] inv_std, real[:, ::1] out):
    """Write ``(images[index] - mean) * inv_std`` into ``out``, the channel being the place modulo C.

    Parameters
    ----------
    images : array (n, H*W*C), uint8, float32 or float64
        The values of one image lie side by side; the rows may be any distance apart.
    index : int64 array (m,)
    mean, inv_std : float64 arrays (C,)
    out : C-contiguous array (m, H*W*C), float32 or float64

    Raises
    ------
    IndexError
        An index outside ``[0, n)``; ``out`` is untouched.
    ValueError
        Sizes that do not fit.
    """
    cdef Py_ssize_t m = index.shape[0]
    cdef Py_ssize_t n_values = images.shape[1]
    cdef Py_ssize_t channels = mean.shape[0]
    cdef Py_ssize_t size
    cdef Py_ssize_t i
    cdef double* scale

    check_rows(n_values, images.strides[1], sizeof(source), channels)
    check_sizes("inv_std, one value per channel", inv_std.shape[0], channels)
    check_sizes("rows of out, one per index", out.shape[0], m)
    check_sizes("columns of out, the values of one image", out.shape[1], n_values)
    check_index(index, images.shape[0])
    size = chunk_size(channels)
    if m == 0 or n_values == 0:
        return
    with nogil:
        scale = repeat_scale(mean, inv_std, size)
        if scale != NULL:
            for i in range(m):
                scale_values(&images[index[i], 0], scale, size, n_values, &out[i, 0])
            free(scale)
    if scale == NULL:
        raise MemoryError


cdef Py_ssize_t clamp(int64_t value, Py_ssize_t low, Py_ssize_t high) noexcept nogil:
    return low if value < low else high if value > high else <Py_ssize_t> value


cdef void cut(int64_t start, int64_t size, Py_ssize_t limit, Py_ssize_t* first, Py_ssize_t* last) noexcept nogil:
    """The part of [start, start + size) in [0, limit), without a sum that could overflow."""
    if size < 0:
        size = 0
    if start < 0:
        size += start
        start = 0
    first[0] = clamp(start, 0, limit)
    last[0] = first[0] + clamp(size, 0, limit - first[0])


cdef void fill_pixels(real* out, Py_ssize_t n_pixels, const real* pixel, Py_ssize_t channels) noexcept nogil:
    cdef Py_ssize_t x, c
    for x in range(n_pixels):
        for c in range(channels):
            out[x * channels + c] = pixel[c]


cdef void augment_image(const source* image, Py_ssize_t height, Py_ssize_t width, Py_ssize_t channels,
                        const double* scale, Py_ssize_t size, bint flip, Py_ssize_t dy, Py_ssize_t dx,
                        Py_ssize_t top, Py_ssize_t left, Py_ssize_t bottom, Py_ssize_t right,
                        const real* zero, real* out) noexcept nogil:
    """One image; ``|dy| <= height``, ``|dx| <= width`` and the rectangle lies inside the image."""
    cdef Py_ssize_t first = dx if dx > 0 else 0  # the columns [first, last) come from the source
    cdef Py_ssize_t last = width + dx if dx < 0 else width
    cdef Py_ssize_t y, x, c
    cdef const source* row
    cdef const source* pixel
    cdef real* target
    for y in range(height):
        target = out + y * width * channels
        if y < dy or y >= height + dy or first >= last:
            fill_pixels(target, width, zero, channels)
            continue
        row = image + (y - dy) * width * channels
        fill_pixels(target, first, zero, channels)
        fill_pixels(target + last * channels, width - last, zero, channels)
        if flip:
            for x in range(first, last):
                pixel = row + (width - 1 - (x - dx)) * channels
                for c in range(channels):
                    target[x * channels + c] = <real> ((pixel[c] - scale[c]) * scale[size + c])
        else:
            scale_values(row + (first - dx) * channels, scale, size, (last - first) * channels,
                         target + first * channels)
        if top <= y < bottom:
            fill_pixels(target + left * channels, right - left, zero, channels)


def augment_batch(const source[:, :] images, Py_ssize_t height, Py_ssize_t width, const int64_t[::1] index,
                  const double[::1] mean, const double[::1] inv_std, const uint8_t[::1] flip,
                  const int64_t[:, ::1] shift, const int64_t[:, ::1] erase, real[:, ::1] out):
    """``build_batch`` of images that are mirrored, then shifted, then partly erased, before they are scaled.

    What a shift uncovers and what is erased has the source's value 0, scaled like every other pixel.

    Parameters
    ----------
    images, index, mean, inv_std, out : as for ``build_batch``, ``H = height`` and ``W = width``
    flip : uint8 array (m,)
        Mirrored left to right where it is not 0.
    shift : int64 array (m, 2)
        Pixels down and to the right (``dy``, ``dx``); any value, negative too.
    erase : int64 array (m, 4)
        The rectangle ``top, left, height, width`` in the image as it leaves; what is outside the image is cut off.

    Raises
    ------
    IndexError
        An index outside ``[0, n)``; ``out`` is untouched.
    ValueError
        Sizes that do not fit.
    """
    cdef Py_ssize_t m = index.shape[0]
    cdef Py_ssize_t n_values = images.shape[1]
    cdef Py_ssize_t channels = mean.shape[0]
    cdef Py_ssize_t size
    cdef Py_ssize_t i, c, top, left, bottom, right
    cdef double* scale
    cdef real* zero

    check_rows(n_values, images.strides[1], sizeof(source), channels)
    if height < 0 or width < 0 or height * width * channels != n_values:
        raise ValueError(f"rows of {n_values} values are not images of {(height, width, channels)}")
    check_sizes("inv_std, one value per channel", inv_std.shape[0], channels)
    check_sizes("rows of out, one per index", out.shape[0], m)
    check_sizes("columns of out, the values of one image", out.shape[1], n_values)
    check_sizes("flip, one per index", flip.shape[0], m)
    check_sizes("shift, one (dy, dx) per index", shift.shape[0], m)
    check_sizes("columns of shift (dy, dx)", shift.shape[1], 2)
    check_sizes("erase, one rectangle per index", erase.shape[0], m)
    check_sizes("columns of erase (top, left, height, width)", erase.shape[1], 4)
    check_index(index, images.shape[0])
    size = chunk_size(channels)
    if m == 0 or n_values == 0:
        return
    with nogil:
        scale = repeat_scale(mean, inv_std, size)
        zero = <real*> malloc(channels * sizeof(real))
        if scale != NULL and zero != NULL:
            for c in range(channels):
                zero[c] = <real> ((0.0 - mean[c]) * inv_std[c])
            for i in range(m):
                cut(erase[i, 0], erase[i, 2], height, &top, &bottom)
                cut(erase[i, 1], erase[i, 3], width, &left, &right)
                augment_image(&images[index[i], 0], height, width, channels, scale, size, flip[i] != 0,
                              clamp(shift[i, 0], -height, height), clamp(shift[i, 1], -width, width),
                              top, left, bottom, right, zero, &out[i, 0])
    free(zero)
    free(scale)
    if scale == NULL or zero == NULL:
        raise MemoryError


cdef double value_at(const source* image, Py_ssize_t height, Py_ssize_t width, Py_ssize_t channels,
                     Py_ssize_t y, Py_ssize_t x, Py_ssize_t c) noexcept nogil:
    """A pixel's value; outside the image 0."""
    if y < 0 or y >= height or x < 0 or x >= width:
        return 0.0
    return image[(y * width + x) * channels + c]


cdef void warp_image(const source* image, Py_ssize_t height, Py_ssize_t width, Py_ssize_t channels,
                     const double* matrix, const double[::1] mean, const double[::1] inv_std,
                     real* out) noexcept nogil:
    cdef Py_ssize_t y, x, c, top, left
    cdef double sy, sx, down, right, upper, lower
    cdef const source* corner
    for y in range(height):
        for x in range(width):
            sy = matrix[0] * y + matrix[1] * x + matrix[2]
            sx = matrix[3] * y + matrix[4] * x + matrix[5]
            # Far outside everything is 0, and the conversion to an integer stays defined. NaN is far outside.
            if not (-1 < sy < height and -1 < sx < width):
                for c in range(channels):
                    out[(y * width + x) * channels + c] = <real> ((0.0 - mean[c]) * inv_std[c])
                continue
            top, left = <Py_ssize_t> floor(sy), <Py_ssize_t> floor(sx)
            down, right = sy - top, sx - left
            if top >= 0 and left >= 0 and top + 1 < height and left + 1 < width:
                corner = image + (top * width + left) * channels
                for c in range(channels):
                    upper = (1 - right) * corner[c] + right * corner[channels + c]
                    lower = (1 - right) * corner[width * channels + c] + right * corner[(width + 1) * channels + c]
                    out[(y * width + x) * channels + c] = <real> (
                        ((1 - down) * upper + down * lower - mean[c]) * inv_std[c])
                continue
            for c in range(channels):
                upper = ((1 - right) * value_at(image, height, width, channels, top, left, c)
                         + right * value_at(image, height, width, channels, top, left + 1, c))
                lower = ((1 - right) * value_at(image, height, width, channels, top + 1, left, c)
                         + right * value_at(image, height, width, channels, top + 1, left + 1, c))
                out[(y * width + x) * channels + c] = <real> (
                    ((1 - down) * upper + down * lower - mean[c]) * inv_std[c])


def warp_batch(const source[:, :] images, Py_ssize_t height, Py_ssize_t width, const int64_t[::1] index,
               const double[::1] mean, const double[::1] inv_std, const double[:, ::1] matrix,
               const int64_t[:, ::1] erase, real[:, ::1] out):
    """``build_batch`` of images that are moved by an affine map, then partly erased, before they are scaled.

    Between pixels values are interpolated bilinearly; outside an image they are 0.

    Parameters
    ----------
    images, index, mean, inv_std, out : as for ``build_batch``, ``H = height`` and ``W = width``
    matrix : float64 array (m, 6)
        Row and column in the source of the pixel in row y, column x that leaves: ``matrix[0] * y + matrix[1] * x +
        matrix[2]`` and ``matrix[3] * y + matrix[4] * x + matrix[5]``.
    erase : as for ``augment_batch``

    Raises
    ------
    IndexError
        An index outside ``[0, n)``; ``out`` is untouched.
    ValueError
        Sizes that do not fit.
    """
    cdef Py_ssize_t m = index.shape[0]
    cdef Py_ssize_t n_values = images.shape[1]
    cdef Py_ssize_t channels = mean.shape[0]
    cdef Py_ssize_t i, y, x, c, top, left, bottom, right

    check_rows(n_values, images.strides[1], sizeof(source), channels)
    if height < 0 or width < 0 or height * width * channels != n_values:
        raise ValueError(f"rows of {n_values} values are not images of {(height, width, channels)}")
    check_sizes("inv_std, one value per channel", inv_std.shape[0], channels)
    check_sizes("rows of out, one per index", out.shape[0], m)
    check_sizes("columns of out, the values of one image", out.shape[1], n_values)
    check_sizes("matrix, one per index", matrix.shape[0], m)
    check_sizes("columns of matrix", matrix.shape[1], 6)
    check_sizes("erase, one rectangle per index", erase.shape[0], m)
    check_sizes("columns of erase (top, left, height, width)", erase.shape[1], 4)
    check_index(index, images.shape[0])
    if m == 0 or n_values == 0:
        return
    with nogil:
        for i in range(m):
            warp_image(&images[index[i], 0], height, width, channels, &matrix[i, 0], mean, inv_std, &out[i, 0])
            cut(erase[i, 0], erase[i, 2], height, &top, &bottom)
            cut(erase[i, 1], erase[i, 3], width, &left, &right)
            for y in range(top, bottom):
                for x in range(left, right):
                    for c in range(channels):
                        out[i, (y * width + x) * channels + c] = <real> ((0.0 - mean[c]) * inv_std[c])


cdef void add_bytes(const uint8_t* values, Py_ssize_t size, uint32_t* total, uint32_t* squares) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(size):
        total[j] += values[j]
        squares[j] += <uint32_t> values[j] * values[j]


cdef int sum_bytes(const uint8_t[:, :] images, const int64_t* index, Py_ssize_t n_rows, Py_ssize_t channels,
                   uint64_t* total, uint64_t* squares) noexcept nogil:
    """Exact sums per channel of the values and of their squares; -1: no memory."""
    cdef Py_ssize_t size = chunk_size(channels)
    cdef Py_ssize_t n_values = images.shape[1]
    cdef Py_ssize_t i, j, start
    cdef Py_ssize_t n_added = 0
    cdef const uint8_t* row
    cdef uint32_t* block = <uint32_t*> calloc(2 * size, sizeof(uint32_t))
    if block == NULL:
        return -1
    for i in range(n_rows):
        row = &images[i if index == NULL else index[i], 0]
        start = 0
        while start < n_values:
            add_bytes(row + start, min(size, n_values - start), block, block + size)
            start += size
            n_added += 1
            if n_added == 66051:  # 66051 * 255**2 is the last such product below 2**32
                n_added = 0
                for j in range(size):
                    total[j % channels] += block[j]
                    squares[j % channels] += block[size + j]
                    block[j] = 0
                    block[size + j] = 0
    for j in range(size):
        total[j % channels] += block[j]
        squares[j % channels] += block[size + j]
    free(block)
    return 0


cdef void add_deviations(const real* values, Py_ssize_t size, const double* center, double* total) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(size):
        total[j] += values[j] - center[j]


cdef void add_squared_deviations(const real* values, Py_ssize_t size, const double* center,
                                 double* total) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(size):
        total[j] += (values[j] - center[j]) * (values[j] - center[j])


cdef int merge_rows(const real[:, :] images, const int64_t* index, Py_ssize_t n_rows, Py_ssize_t channels,
                    double* mean, double* spread) noexcept nogil:
    """Mean per channel and sum of squared deviations, one row at a time; -1: no memory.

    A row's own two passes run in cache; joining two sets is the pairwise update of Chan, Golub & LeVeque (1979),
    which does not cancel whatever the offset of the values. The first pass adds up deviations from the row's first
    pixel, so that where all values are alike their mean is that value, not rounded.
    """
    cdef Py_ssize_t size = chunk_size(channels)
    cdef Py_ssize_t n_values = images.shape[1]
    cdef Py_ssize_t n_pixels = n_values // channels
    cdef Py_ssize_t i, j, c, start
    cdef const real* row
    cdef double share, delta
    cdef double* total = <double*> malloc(3 * size * sizeof(double))  # per place in a chunk
    cdef double* center = total + size
    cdef double* deviation = total + 2 * size
    if total == NULL:
        return -1
    for i in range(n_rows):
        row = &images[i if index == NULL else index[i], 0]
        for j in range(size):
            center[j] = row[j % channels]
            total[j] = 0.0
            deviation[j] = 0.0
        start = 0
        while start < n_values:
            add_deviations(row + start, min(size, n_values - start), center, total)
            start += size
        for j in range(channels, size):
            total[j % channels] += total[j]
        for j in range(size):
            center[j] += total[j % channels] / n_pixels
        start = 0
        while start < n_values:
            add_squared_deviations(row + start, min(size, n_values - start), center, deviation)
            start += size
        for j in range(channels, size):
            deviation[j % channels] += deviation[j]
        share = 1.0 / (i + 1)
        for c in range(channels):
            delta = center[c] - mean[c]
            mean[c] += delta * share
            spread[c] += deviation[c] + delta * delta * n_pixels * i * share
    free(total)
    return 0


def channel_mean_std(const source[:, :] images, Py_ssize_t channels, const int64_t[::1] index=None):
    """Mean and standard deviation (``ddof=0``) of each channel over all images, or over those of ``index``.

    One pass, no copy. Of uint8 the sums are exact integers; of floats the result is in double, without
    cancellation.

    Parameters
    ----------
    images : array (n, H*W*C), uint8, float32 or float64
        The values of one image lie side by side; the rows may be any distance apart.
    channels : int
    index : int64 array (m,), optional

    Returns
    -------
    mean, std : lists of C floats

    Raises
    ------
    IndexError
        An index outside ``[0, n)``.
    ValueError
        No image, or rows that are not whole pixels.
    """
    cdef Py_ssize_t n_rows = images.shape[0] if index is None else index.shape[0]
    cdef Py_ssize_t n_values = images.shape[1]
    cdef const int64_t* rows = NULL
    cdef Py_ssize_t c
    cdef int status
    cdef uint64_t* sums
    cdef double* moments

    check_rows(n_values, images.strides[1], sizeof(source), channels)
    if n_rows == 0 or n_values == 0:
        raise ValueError(f"the mean of {n_rows} images of {n_values} values is not defined")
    if index is not None:
        check_index(index, images.shape[0])
        rows = &index[0]

    if source is uint8_t:
        sums = <uint64_t*> calloc(2 * channels, sizeof(uint64_t))
        if sums == NULL:
            raise MemoryError
        try:
            with nogil:
                status = sum_bytes(images, rows, n_rows, channels, sums, sums + channels)
            if status:
                raise MemoryError
            count = int(n_rows) * (n_values // channels)
            totals = [int(sums[c]) for c in range(channels)]
            squares = [int(sums[channels + c]) for c in range(channels)]
        finally:
            free(sums)
        return (
            [total / count for total in totals],
            # n * sum(x**2) - sum(x)**2 in Python's integers: exact, so nothing cancels.
            [sqrt((count * square - total * total) / (count * count))
             for total, square in zip(totals, squares, strict=True)],
        )
    else:
        moments = <double*> calloc(2 * channels, sizeof(double))
        if moments == NULL:
            raise MemoryError
        try:
            with nogil:
                status = merge_rows(images, rows, n_rows, channels, moments, moments + channels)
            if status:
                raise MemoryError
            return (
                [moments[c] for c in range(channels)],
                [sqrt(moments[channels + c] / n_rows / (n_values // channels)) for c in range(channels)],
            )
        finally:
            free(moments)

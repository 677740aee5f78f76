"""General matrix multiplication of row-major arrays into the caller's buffer, by the BLAS that SciPy carries."""

from libc.limits cimport INT_MAX
from scipy.linalg.cython_blas cimport dgemm, sgemm

ctypedef fused real:
    float
    double


# BLAS is column-major. A row-major matrix is its transpose to BLAS, so C = A B is asked for as C' = B' A':
# the operands swap places and nothing is copied. `lda`, `ldb`, `ldc` are the lengths of the stored rows.

cdef void sgemm_rowmajor(bint trans_a, bint trans_b, int m, int n, int k, const float* a, int lda, const float* b,
                         int ldb, float* c, int ldc) noexcept nogil:
    cdef char op_a = b"T" if trans_a else b"N"
    cdef char op_b = b"T" if trans_b else b"N"
    cdef float alpha = 1.0, beta = 0.0
    sgemm(&op_b, &op_a, &n, &m, &k, &alpha, <float*> b, &ldb, <float*> a, &lda, &beta, c, &ldc)


cdef void dgemm_rowmajor(bint trans_a, bint trans_b, int m, int n, int k, const double* a, int lda, const double* b,
                         int ldb, double* c, int ldc) noexcept nogil:
    cdef char op_a = b"T" if trans_a else b"N"
    cdef char op_b = b"T" if trans_b else b"N"
    cdef double alpha = 1.0, beta = 0.0
    dgemm(&op_b, &op_a, &n, &m, &k, &alpha, <double*> b, &ldb, <double*> a, &lda, &beta, c, &ldc)


cdef bint overlap(const void* p, size_t p_bytes, const void* q, size_t q_bytes) noexcept nogil:
    return p_bytes and q_bytes and <size_t> p < <size_t> q + q_bytes and <size_t> q < <size_t> p + p_bytes


def gemm(const real[:, ::1] a, const real[:, ::1] b, real[:, ::1] out, bint trans_a=False, bint trans_b=False):
    """Write ``op(a) @ op(b)`` into ``out``; what was in ``out`` is not read.

    Parameters
    ----------
    a, b : C-contiguous arrays of one dtype, float32 or float64, may be read-only
        ``op`` transposes where ``trans_a`` or ``trans_b`` is set: ``op(a)`` is (M, K), ``op(b)`` is (K, N).
    out : C-contiguous array (M, N) of the same dtype, sharing no memory with ``a`` or ``b``

    Raises
    ------
    ValueError
        Shapes that do not fit, a size beyond what BLAS counts (2**31 - 1), or ``out`` overlapping an operand.
    """
    cdef Py_ssize_t m = a.shape[1] if trans_a else a.shape[0]
    cdef Py_ssize_t k = a.shape[0] if trans_a else a.shape[1]
    cdef Py_ssize_t k_b = b.shape[1] if trans_b else b.shape[0]
    cdef Py_ssize_t n = b.shape[0] if trans_b else b.shape[1]
    cdef Py_ssize_t i, j
    cdef real* c

    if k != k_b or out.shape[0] != m or out.shape[1] != n:
        raise ValueError(
            f"gemm: op(a) is {(m, k)} and op(b) is {(k_b, n)}, so out would be {(m, n)} with the inner sizes "
            f"equal; out is {(out.shape[0], out.shape[1])}"
        )
    if m > INT_MAX or n > INT_MAX or k > INT_MAX:
        raise ValueError(f"gemm: a size of {(m, n, k)} is beyond what BLAS counts, {INT_MAX}")
    if m == 0 or n == 0:
        return
    c = &out[0, 0]
    if k == 0:
        with nogil:
            for i in range(m * n):
                c[i] = 0
        return
    if (overlap(c, m * n * sizeof(real), &a[0, 0], m * k * sizeof(real))
            or overlap(c, m * n * sizeof(real), &b[0, 0], k * n * sizeof(real))):
        raise ValueError("gemm: out shares memory with an operand")
    with nogil:
        if real is float:
            sgemm_rowmajor(trans_a, trans_b, <int> m, <int> n, <int> k, &a[0, 0], <int> a.shape[1], &b[0, 0],
                           <int> b.shape[1], c, <int> n)
        else:
            dgemm_rowmajor(trans_a, trans_b, <int> m, <int> n, <int> k, &a[0, 0], <int> a.shape[1], &b[0, 0],
                           <int> b.shape[1], c, <int> n)

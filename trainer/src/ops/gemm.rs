//! Products of matrices that lie in slices.

use gemm::Parallelism;

/// A matrix in a slice: element (i, j) lies at `i * row + j * column`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a [f32],
    row: usize,
    column: usize,
}

/// The row-major matrix of `columns` columns.
pub fn rows(values: &[f32], columns: usize) -> Matrix<'_> {
    Matrix { values, row: columns, column: 1 }
}

/// The transpose of the row-major matrix of `columns` columns.
pub fn transposed(values: &[f32], columns: usize) -> Matrix<'_> {
    Matrix { values, row: 1, column: columns }
}

/// Puts `left` times `right` into the row-major `out` of `m` rows and `n` columns, or adds it; `k` is the common side.
/// Uses one thread, or all of them if `parallel`; the result is the same.
///
/// # Panics
/// If a slice is shorter than its matrix.
pub fn multiply(out: &mut [f32], [m, n, k]: [usize; 3], left: Matrix, right: Matrix, add: bool, parallel: bool) {
    if m == 0 || n == 0 {
        return;
    }
    let spans = |a: Matrix, rows: usize, columns: usize| {
        k == 0 || (rows - 1) * a.row + (columns - 1) * a.column < a.values.len()
    };
    assert!(out.len() >= m * n && spans(left, m, k) && spans(right, k, n), "a matrix is larger than its slice");
    let parallelism = if parallel { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: the assertion shows that every element of the three matrices lies in its slice; `out` is borrowed mutably,
    // so it overlaps neither of the others.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            left.values.as_ptr(),
            left.column as isize,
            left.row as isize,
            right.values.as_ptr(),
            right.column as isize,
            right.row as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}

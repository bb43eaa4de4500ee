//! The device's computations on the CPU, to compare with.
//!
//! Simple rather than fast. Each function knows only its own numbers.

/// `C = A * B` for square row-major matrices, a block of rows and columns at a time.
pub(crate) fn gemm(n: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
    /// A block of B of this many rows and columns stays in a first-level cache.
    const BLOCK: usize = 64;
    c.fill(0.0);
    for depth in (0..n).step_by(BLOCK) {
        let depths = depth..(depth + BLOCK).min(n);
        for column in (0..n).step_by(BLOCK) {
            let columns = column..(column + BLOCK).min(n);
            for row in 0..n {
                let into = &mut c[row * n..][columns.clone()];
                for k in depths.clone() {
                    let factor = a[row * n + k];
                    let from = &b[k * n..][columns.clone()];
                    for (c, b) in into.iter_mut().zip(from) {
                        *c += factor * b;
                    }
                }
            }
        }
    }
}

/// How far two single-precision products of the same matrices may lie apart, for each
/// row of A and each column of B as `norm(row) * norm(column) * bound`.
///
/// A sum of `k` products that is rounded after every step errs by at most
/// `k * u / (1 - k * u)` times the sum of the products' magnitudes (Higham, Accuracy and
/// Stability of Numerical Algorithms, §3.1), in whatever order, with or without fused
/// steps; that sum is at most the product of the two norms (Cauchy and Schwarz). Both
/// results err, hence twice.
pub(crate) fn gemm_bound(k: usize) -> f64 {
    let steps = f64::from(u32::try_from(k).unwrap_or(u32::MAX)) * f64::from(f32::EPSILON) / 2.0;
    2.0 * steps / (1.0 - steps)
}

/// The first element of two square products that lie further apart than rounding explains.
pub(crate) fn gemm_difference(
    n: usize,
    (a, b): (&[f32], &[f32]),
    left: &[f32],
    right: &[f32],
) -> Option<(usize, usize)> {
    let norm = |squares: f64| squares.sqrt();
    let square = |x: f32| f64::from(x) * f64::from(x);
    let rows: Vec<f64> = a
        .chunks(n)
        .map(|row| norm(row.iter().map(|&x| square(x)).sum()))
        .collect();
    let mut columns = vec![0.0; n];
    for row in b.chunks(n) {
        columns
            .iter_mut()
            .zip(row)
            .for_each(|(sum, &x)| *sum += square(x));
    }
    let columns: Vec<f64> = columns.into_iter().map(norm).collect();
    let bound = gemm_bound(n);
    let near = |index: usize| {
        let distance = (f64::from(left[index]) - f64::from(right[index])).abs();
        // Written so that NaN always counts as a difference.
        distance <= rows[index / n] * columns[index % n] * bound
    };
    (0..n * n)
        .find(|&index| !near(index))
        .map(|index| (index / n, index % n))
}

/// `y += alpha * x`, rounded after the product and after the sum.
pub(crate) fn axpy(alpha: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += alpha * x;
    }
}

/// The dot product in double precision, and how far another order of additions may be from it.
pub(crate) fn dot(x: &[f32], y: &[f32]) -> (f64, f64) {
    let mut sum = 0.0;
    let mut magnitudes = 0.0;
    for (x, y) in x.iter().zip(y) {
        // Exact: two factors of 24 bits have a product of 48.
        let product = f64::from(*x) * f64::from(*y);
        sum += product;
        magnitudes += product.abs();
    }
    // As for gemm: each of the two sums errs by at most n * u times the magnitudes, and
    // the magnitudes by no more than that again.
    let n = f64::from(u32::try_from(x.len()).unwrap_or(u32::MAX));
    (sum, n * f64::EPSILON * magnitudes * 1.01)
}

/// How often each byte value occurs.
pub(crate) fn histogram(bytes: &[u8]) -> [u64; 256] {
    let mut counters = [0; 256];
    for &byte in bytes {
        counters[usize::from(byte)] += 1;
    }
    counters
}

/// Breadth-first levels of a graph in compressed sparse rows, `u32::MAX` where there is
/// no path.
pub(crate) fn bfs(offsets: &[u64], edges: &[u32], start: u32) -> Vec<u32> {
    let index = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let mut levels = vec![u32::MAX; offsets.len() - 1];
    let mut frontier = vec![start];
    levels[start as usize] = 0;
    let mut level = 0;
    while !frontier.is_empty() {
        level += 1;
        let mut next = Vec::new();
        for vertex in frontier {
            let vertex = vertex as usize;
            for &to in &edges[index(offsets[vertex])..index(offsets[vertex + 1])] {
                if levels[to as usize] == u32::MAX {
                    levels[to as usize] = level;
                    next.push(to);
                }
            }
        }
        frontier = next;
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..n).map(|_| random.f32() * 2.0 - 1.0).collect()
    }

    /// The textbook's three loops, in another order and another precision.
    fn plain(n: usize, a: &[f32], b: &[f32]) -> Vec<f32> {
        let element = |index: usize| {
            let (row, column) = (index / n, index % n);
            let products = (0..n).map(|k| f64::from(a[row * n + k]) * f64::from(b[k * n + column]));
            #[allow(clippy::cast_possible_truncation)] // The rounding is intended.
            let sum = products.sum::<f64>() as f32;
            sum
        };
        (0..n * n).map(element).collect()
    }

    #[test]
    fn the_blocked_product_equals_the_plain_one_within_the_bound() {
        // Not a multiple of the block, so that incomplete blocks are tested.
        let n = 150;
        let (a, b) = (random(n * n, 1), random(n * n, 2));
        let mut c = vec![9.0; n * n];
        gemm(n, &a, &b, &mut c);
        assert_eq!(gemm_difference(n, (&a, &b), &c, &plain(n, &a, &b)), None);
    }

    #[test]
    fn one_product_left_out_of_a_sum_is_noticed() {
        let n = 128;
        let (a, b) = (random(n * n, 1), random(n * n, 2));
        let mut c = vec![0.0; n * n];
        gemm(n, &a, &b, &mut c);
        let mut wrong = c.clone();
        wrong[3 * n + 5] -= a[3 * n + 7] * b[7 * n + 5];
        assert_eq!(gemm_difference(n, (&a, &b), &c, &wrong), Some((3, 5)));
        wrong[3 * n + 5] = f32::NAN;
        assert_eq!(gemm_difference(n, (&a, &b), &c, &wrong), Some((3, 5)));
    }

    #[test]
    fn another_order_of_additions_stays_within_the_tolerance_of_the_dot_product() {
        let (x, y) = (random(10_000, 3), random(10_000, 4));
        let (forward, tolerance) = dot(&x, &y);
        let reversed = |v: &[f32]| v.iter().rev().copied().collect::<Vec<_>>();
        let (backward, _) = dot(&reversed(&x), &reversed(&y));
        assert!((forward - backward).abs() <= tolerance);
        // Leaving out one product is far outside the tolerance.
        assert!(tolerance < f64::from(x[0] * y[0]).abs() / 1000.0);
    }

    #[test]
    fn levels_are_the_fewest_edges_and_the_unreachable_have_none() {
        // 0 → 1 → 2, 0 → 2, 3 → 0.
        let levels = bfs(&[0, 2, 3, 3, 4], &[1, 2, 2, 0], 0);
        assert_eq!(levels, [0, 1, 1, u32::MAX]);
    }

    #[test]
    fn a_histogram_counts_every_byte_once() {
        let counters = histogram(b"abracadabra");
        assert_eq!((counters[b'a' as usize], counters[b'r' as usize]), (5, 2));
        assert_eq!(counters.iter().sum::<u64>(), 11);
    }
}

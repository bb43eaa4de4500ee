//! The inner loops over blocks of numbers, compiled for the processor's vector unit.
//!
//! Loops over floating point numbers keep [`LANES`] independent results. They neither wait for the
//! previous addition nor keep an order that vectors cannot: the order in which floating point
//! numbers are added is unspecified. The compiler does the same for integers by itself.

use multiversion::multiversion;

/// Independent results: enough to fill the vector registers and to hide the latency of an addition.
const LANES: usize = 32;

/// Adds up `values` with `add`, and the lanes with `join`.
#[inline(always)]
fn fold<T: Copy, S: Copy>(
    values: &[T],
    start: S,
    add: impl Fn(S, T) -> S,
    join: impl Fn(S, S) -> S,
) -> S {
    let mut lanes = [start; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = add(*lane, *value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = add(*lane, *value);
    }
    lanes.into_iter().fold(start, join)
}

/// As [`fold`], over the products of pairs.
#[inline(always)]
fn fold_products<T: Copy>(x: &[T], y: &[T], multiply: impl Fn(T, T) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let (x_chunks, y_chunks) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest = x_chunks.remainder().iter().zip(y_chunks.remainder());
    for (x, y) in x_chunks.zip(y_chunks) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += multiply(*x, *y);
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(rest) {
        *lane += multiply(*x, *y);
    }
    lanes.into_iter().sum()
}

/// Declares loops that are compiled for several vector units.
macro_rules! kernels {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($argument:ident: $type:ty),+) $(-> $result:ty)? $body:block
    )+) => { $(
        $(#[$meta])*
        #[multiversion(targets(
            "x86_64+avx512f+avx512bw+avx512dq+avx512vl",
            "x86_64+avx2",
        ))]
        pub(super) fn $name($($argument: $type),+) $(-> $result)? $body
    )+ };
}

kernels! {
    /// The sum, in 64 bits.
    fn sum_u32(values: &[u32]) -> u64 {
        values.iter().map(|value| u64::from(*value)).sum()
    }

    /// The sum; it wraps.
    fn sum_u64(values: &[u64]) -> u64 {
        values.iter().fold(0, |sum, value| sum.wrapping_add(*value))
    }

    /// The sum; it wraps.
    fn sum_i64(values: &[i64]) -> i64 {
        values.iter().fold(0, |sum, value| sum.wrapping_add(*value))
    }

    /// The sum in double precision.
    fn sum_f32(values: &[f32]) -> f64 {
        fold(values, 0.0, |sum, value| sum + f64::from(value), |left, right| left + right)
    }

    /// The sum.
    fn sum_f64(values: &[f64]) -> f64 {
        fold(values, 0.0, |sum, value| sum + value, |left, right| left + right)
    }

    /// The dot product in double precision.
    fn dot_f32(x: &[f32], y: &[f32]) -> f64 {
        fold_products(x, y, |x, y| f64::from(x) * f64::from(y))
    }

    /// The dot product.
    fn dot_f64(x: &[f64], y: &[f64]) -> f64 {
        fold_products(x, y, |x, y| x * y)
    }

    /// `y = alpha * x + y`, rounded twice.
    fn axpy_f32(alpha: f32, x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += alpha * x;
        }
    }

    /// `y = alpha * x + y`, rounded twice.
    fn axpy_f64(alpha: f64, x: &[f64], y: &mut [f64]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += alpha * x;
        }
    }

    /// Multiplies all values.
    fn scale_f32(factor: f32, values: &mut [f32]) {
        for value in values {
            *value *= factor;
        }
    }
}

/// Declares the search for the smallest and the largest integer.
macro_rules! integer_extremes {
    ($( $type:ty, $min:ident, $max:ident; )+) => {
        kernels! { $(
            /// The smallest value, or the highest possible one if there is none.
            fn $min(values: &[$type]) -> $type {
                values.iter().fold(<$type>::MAX, |best, value| best.min(*value))
            }

            /// The largest value, or the lowest possible one if there is none.
            fn $max(values: &[$type]) -> $type {
                values.iter().fold(<$type>::MIN, |best, value| best.max(*value))
            }
        )+ }
    };
}

integer_extremes! {
    u32, min_u32, max_u32;
    u64, min_u64, max_u64;
    i64, min_i64, max_i64;
}

/// Declares the search for the smallest and the largest floating point number. NaN is never smaller
/// or larger.
macro_rules! float_extremes {
    ($( $type:ty, $min:ident, $max:ident; )+) => {
        kernels! { $(
            /// The smallest number, or infinity if there is none.
            fn $min(values: &[$type]) -> $type {
                let smaller = |best: $type, value: $type| if value < best { value } else { best };
                fold(values, <$type>::INFINITY, smaller, smaller)
            }

            /// The largest number, or negative infinity if there is none.
            fn $max(values: &[$type]) -> $type {
                let larger = |best: $type, value: $type| if value > best { value } else { best };
                fold(values, <$type>::NEG_INFINITY, larger, larger)
            }
        )+ }
    };
}

float_extremes! {
    f32, min_f32, max_f32;
    f64, min_f64, max_f64;
}

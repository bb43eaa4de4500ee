//! Sum, min, max and dot.

use super::layout::Layout;
use proptest::prelude::*;
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::{Dot, Element, Max, Min, Sum};

/// Floats with few different values, some of them special.
fn special() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => (-3_i8..3).prop_map(f64::from),
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
        1 => Just(f64::NEG_INFINITY),
        1 => Just(-0.0),
    ]
}

/// The first of the best elements, one after the other.
fn first_best<T: Copy + PartialOrd>(
    values: &[T],
    better: impl Fn(&T, &T) -> bool,
) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (i, value) in values.iter().enumerate() {
        let number = value.partial_cmp(value).is_some();
        if number && best.is_none_or(|best| better(value, &values[best])) {
            best = Some(i);
        }
    }
    best
}

/// Checks both extremes of values.
fn check_extremes<T>(values: &[T], element: Element, bits: impl Fn(T) -> u64, seed: u64)
where
    T: Copy + PartialOrd + zerocopy::IntoBytes + zerocopy::Immutable,
{
    let mut layout = Layout::default();
    let source = layout.put(values);
    let count = values.len() as u64;
    let result = |best: Option<usize>| best.map_or([0, count], |i| [bits(values[i]), i as u64]);
    let least = result(first_best(values, T::lt));
    layout.expect(
        Min {
            source,
            count,
            element,
        },
        seed,
        Status::Ok,
        &least,
        &layout,
    );
    let most = result(first_best(values, T::gt));
    layout.expect(
        Max {
            source,
            count,
            element,
        },
        seed,
        Status::Ok,
        &most,
        &layout,
    );
}

/// Checks the sum of values.
fn check_sum<T>(values: &[T], element: Element, sum: u64, seed: u64)
where
    T: zerocopy::IntoBytes + zerocopy::Immutable,
{
    let mut layout = Layout::default();
    let source = layout.put(values);
    let count = values.len() as u64;
    layout.expect(
        Sum {
            source,
            count,
            element,
        },
        seed,
        Status::Ok,
        &[sum],
        &layout,
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn sum_adds_integers_and_wraps(values in prop::collection::vec(any::<u64>(), 0..3000), seed: u64) {
        let sum = values.iter().fold(0, |sum: u64, value| sum.wrapping_add(*value));
        check_sum(&values, Element::U64, sum, seed);
        check_sum(&values, Element::I64, sum, seed);
    }

    #[test]
    fn sum_adds_small_integers_in_64_bits(values in prop::collection::vec(any::<u32>(), 0..5000), seed: u64) {
        let sum = values.iter().map(|value| u64::from(*value)).sum();
        check_sum(&values, Element::U32, sum, seed);
    }

    // Small whole numbers add up exactly in any order.
    #[test]
    fn sum_adds_floats_in_double_precision(
        values in prop::collection::vec(-(1_i32 << 24)..1 << 24, 0..4000), seed: u64,
    ) {
        let sum = values.iter().map(|value| f64::from(*value)).sum::<f64>() + 0.0;
        let doubles: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
        check_sum(&doubles, Element::F64, sum.to_bits(), seed);
        #[expect(clippy::cast_possible_truncation, reason = "24 bits fit")]
        let singles: Vec<f32> = doubles.iter().map(|value| *value as f32).collect();
        check_sum(&singles, Element::F32, sum.to_bits(), seed);
    }

    #[test]
    fn extremes_of_integers_are_the_first_ones(
        values in prop::collection::vec(any::<u64>(), 0..2000), few: bool, seed: u64,
    ) {
        let values: Vec<u64> = values.iter().map(|v| if few { v % 5 } else { *v }).collect();
        check_extremes(&values, Element::U64, |value| value, seed);
        let signed: Vec<i64> = values.iter().map(|v| i64::from_ne_bytes(v.to_ne_bytes())).collect();
        check_extremes(&signed, Element::I64, |value| u64::from_ne_bytes(value.to_ne_bytes()), seed);
        let halves: Vec<u32> = values.iter().map(|v| u32::try_from(v >> 32).unwrap()).collect();
        check_extremes(&halves, Element::U32, u64::from, seed);
    }

    #[test]
    fn extremes_of_floats_pass_over_what_is_no_number(
        values in prop::collection::vec(special(), 0..40), repeat in 1_usize..60, seed: u64,
    ) {
        let values = values.repeat(repeat);
        check_extremes(&values, Element::F64, f64::to_bits, seed);
        #[expect(clippy::cast_possible_truncation, reason = "as good as any")]
        let singles: Vec<f32> = values.iter().map(|value| *value as f32).collect();
        check_extremes(&singles, Element::F32, |value| value.to_bits().into(), seed);
    }

    #[test]
    fn dot_adds_products_in_double_precision(
        pairs in prop::collection::vec((-4096_i16..4096, -4096_i16..4096), 0..3000), seed: u64,
    ) {
        let sum = pairs.iter().map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>() + 0.0;
        let count = pairs.len() as u64;
        let mut layout = Layout::default();
        let (x, y): (Vec<f64>, Vec<f64>) =
            pairs.iter().map(|(x, y)| (f64::from(*x), f64::from(*y))).unzip();
        let operation = Dot { x: layout.put(&x), y: layout.put(&y), count, element: Element::F64 };
        layout.expect(operation, seed, Status::Ok, &[sum.to_bits()], &layout);
        let mut layout = Layout::default();
        let (x, y): (Vec<f32>, Vec<f32>) =
            pairs.iter().map(|(x, y)| (f32::from(*x), f32::from(*y))).unzip();
        let operation = Dot { x: layout.put(&x), y: layout.put(&y), count, element: Element::F32 };
        layout.expect(operation, seed, Status::Ok, &[sum.to_bits()], &layout);
    }
}

#[test]
fn extremes_of_nothing_but_nan_are_none() {
    check_extremes(
        &[f32::NAN; 3000],
        Element::F32,
        |value| value.to_bits().into(),
        3,
    );
}

#[test]
fn dot_refuses_integers() {
    for element in [Element::U32, Element::U64, Element::I64] {
        let operation = Dot {
            x: 0,
            y: 0,
            count: 0,
            element,
        };
        let layout = Layout::default();
        layout.expect(operation, 1, Status::BadArgument, &[], &layout);
    }
}

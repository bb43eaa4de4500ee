//! Axpy, histogram, gather, scatter, sort and gemm.

use super::layout::Layout;
use super::memory::Temper;
use proptest::prelude::*;
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::{Axpy, Element, Gather, Gemm, Histogram, Scatter, Sort};

/// A matrix with a stride, whose elements are small whole numbers, so that their
/// products add up exactly in any order; none is zero, so that no zero has a sign.
fn matrix(seed: u64, rows: usize, columns: usize, stride: usize) -> Vec<f32> {
    let count = if rows == 0 || columns == 0 {
        0
    } else {
        (rows - 1) * stride + columns
    };
    (0..count as u64)
        .map(|i| ((i ^ seed).wrapping_mul(0x9e37_79b9) >> 7) % 6)
        .map(|i| [-3.0, -2.0, -1.0, 1.0, 2.0, 3.0][usize::try_from(i).unwrap()])
        .collect()
}

/// Checks a product against three loops.
fn check_gemm([m, n, k]: [usize; 3], gaps: [usize; 3], alpha: f32, beta: f32, seed: u64) {
    let strides = [k + gaps[0], n + gaps[1], n + gaps[2]];
    let a = matrix(seed, m, k, strides[0]);
    let b = matrix(!seed, k, n, strides[1]);
    let mut c = matrix(seed >> 3, m, n, strides[2]);
    let mut layout = Layout::default();
    let operation = Gemm {
        a: layout.put(&a),
        b: layout.put(&b),
        c: layout.put(&c),
        m: m as u64,
        n: n as u64,
        k: k as u64,
        a_stride: strides[0] as u64,
        b_stride: strides[1] as u64,
        c_stride: strides[2] as u64,
        alpha,
        beta,
    };
    layout.put(&[1_u8]);
    for row in 0..m {
        for column in 0..n {
            let c = &mut c[row * strides[2] + column];
            *c = if beta == 0.0 { 0.0 } else { beta * *c };
            for i in 0..k {
                *c += alpha * a[row * strides[0] + i] * b[i * strides[1] + column];
            }
        }
    }
    let mut expected = layout.clone();
    expected.set(operation.c, &c);
    layout.expect(operation, seed, Status::Ok, &[], &expected);
}

/// Checks that the elements are sorted.
fn check_sort(values: &[u64], seed: u64) {
    let mut layout = Layout::default();
    let data = layout.put(values);
    let temporary = layout.put(&vec![0_u64; values.len()]);
    layout.put(&[1_u8]);
    let operation = Sort {
        data,
        count: values.len() as u64,
        temporary,
    };
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let mut expected = layout.clone();
    expected.set(data, &sorted);
    let room = temporary..temporary + 8 * values.len() as u64;
    layout.expect_but(operation, seed, Status::Ok, &[], &expected, room);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn axpy_changes_each_element_once(
        pairs in prop::collection::vec((-1e6_f32..1e6, -1e6_f32..1e6), 0..4000),
        alpha in -1e3_f64..1e3, seed: u64,
    ) {
        let count = pairs.len() as u64;
        let (x, mut y): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
        let mut layout = Layout::default();
        let operation =
            Axpy { x: layout.put(&x), y: layout.put(&y), count, element: Element::F32, alpha };
        layout.put(&[1_u8]);
        #[expect(clippy::cast_possible_truncation, reason = "as specified")]
        let single = alpha as f32;
        for (y, x) in y.iter_mut().zip(&x) {
            *y += single * x;
        }
        let mut expected = layout.clone();
        expected.set(operation.y, &y);
        layout.expect(operation, seed, Status::Ok, &[], &expected);

        let (x, mut y): (Vec<f64>, Vec<f64>) =
            pairs.iter().map(|(x, y)| (f64::from(*x), f64::from(*y))).unzip();
        let mut layout = Layout::default();
        let operation =
            Axpy { x: layout.put(&x), y: layout.put(&y), count, element: Element::F64, alpha };
        layout.put(&[1_u8]);
        for (y, x) in y.iter_mut().zip(&x) {
            *y += alpha * x;
        }
        let mut expected = layout.clone();
        expected.set(operation.y, &y);
        layout.expect(operation, seed, Status::Ok, &[], &expected);
    }

    #[test]
    fn histogram_adds_each_byte_once(
        bytes in prop::collection::vec(any::<u8>(), 0..30_000), seed: u64,
    ) {
        let mut layout = Layout::default();
        let source = layout.put(&bytes);
        let mut counts: Vec<u64> = (0..256).map(|i| seed.wrapping_mul(i)).collect();
        let counters = layout.put(&counts);
        layout.put(&[1_u8]);
        for byte in &bytes {
            let count = &mut counts[usize::from(*byte)];
            *count = count.wrapping_add(1);
        }
        let mut expected = layout.clone();
        expected.set(counters, &counts);
        let operation = Histogram { source, bytes: bytes.len() as u64, counters };
        layout.expect(operation, seed, Status::Ok, &[], &expected);
    }

    #[test]
    fn gather_and_scatter_move_elements_by_index(
        table in prop::collection::vec(any::<u64>(), 1..3000),
        indices in prop::collection::vec(any::<prop::sample::Index>(), 0..4000),
        narrow: bool, bad in prop::option::of(any::<prop::sample::Index>()), seed: u64,
    ) {
        let element = if narrow { Element::F32 } else { Element::I64 };
        let width = if narrow { 4 } else { 8 };
        let cut = |values: &[u64]| -> Vec<u8> {
            values.iter().flat_map(|value| value.to_le_bytes()[..width].to_vec()).collect()
        };
        let mut places: Vec<usize> = indices.iter().map(|i| i.index(table.len())).collect();
        if let Some(bad) = bad.filter(|_| !places.is_empty()) {
            let bad = bad.index(places.len());
            places[bad] += table.len();
        }
        let (count, table_count) = (places.len() as u64, table.len() as u64);
        let good = places.iter().position(|i| *i >= table.len()).unwrap_or(places.len());
        let (status, results) = if good == places.len() {
            (Status::Ok, 0)
        } else {
            (Status::BadArgument, good as u64)
        };
        let values: Vec<u64> = (0..count).map(|i| i.wrapping_mul(seed | 1)).collect();

        let mut layout = Layout::default();
        let table_address = layout.put(&cut(&table));
        let index = layout.put(&places.iter().map(|i| *i as u64).collect::<Vec<_>>());
        let run = layout.put(&cut(&values));
        layout.put(&[1_u8]);

        let gathered: Vec<u64> = places[..good].iter().map(|i| table[*i]).collect();
        let mut expected = layout.clone();
        expected.set(run, &cut(&gathered));
        let operation =
            Gather { table: table_address, table_count, index, destination: run, count, element };
        layout.expect(operation, seed, status, &[results], &expected);

        let mut scattered = table.clone();
        for (i, value) in places[..good].iter().zip(&values) {
            scattered[*i] = *value;
        }
        let mut expected = layout.clone();
        expected.set(table_address, &cut(&scattered));
        let operation =
            Scatter { source: run, index, table: table_address, table_count, count, element };
        layout.expect(operation, seed, status, &[results], &expected);
    }

    #[test]
    fn sort_puts_elements_in_order(
        values in prop::collection::vec(any::<u64>(), 0..6000), shift in 0_u32..64, seed: u64,
    ) {
        let values: Vec<u64> = values.iter().map(|value| value >> shift).collect();
        check_sort(&values, seed);
    }

    #[test]
    fn gemm_multiplies_small_matrices(
        shape in prop::array::uniform3(0_usize..40), gaps in prop::array::uniform3(0_usize..9),
        alpha in -2_i8..3, beta in -2_i8..3, seed: u64,
    ) {
        check_gemm(shape, gaps, alpha.into(), beta.into(), seed);
    }
}

#[test]
fn gemm_multiplies_matrices_of_several_blocks() {
    check_gemm([300, 270, 130], [0, 0, 0], 1.0, 0.0, 1);
    check_gemm([257, 20, 65], [3, 0, 1], 2.0, 1.0, 2);
    check_gemm([1, 600, 200], [0, 2000, 5], 1.0, -1.0, 3);
}

#[test]
fn gemm_with_beta_zero_does_not_read_c() {
    let mut layout = Layout::default();
    let (a, b) = (layout.put(&[2.0_f32]), layout.put(&[3.0_f32]));
    let c = layout.put(&[f32::NAN]);
    let [m, n, k] = [1; 3];
    let (a_stride, b_stride, c_stride) = (1, 1, 1);
    let operation = Gemm {
        a,
        b,
        c,
        m,
        n,
        k,
        a_stride,
        b_stride,
        c_stride,
        alpha: 1.0,
        beta: 0.0,
    };
    let mut expected = layout.clone();
    expected.set(c, &[6.0_f32]);
    layout.expect(operation, 1, Status::Ok, &[], &expected);
}

#[test]
fn gemm_refuses_rows_that_overlap() {
    let [a, b, c] = [0; 3];
    let [m, n, k] = [4, 5, 6];
    let good = Gemm {
        a,
        b,
        c,
        m,
        n,
        k,
        a_stride: 6,
        b_stride: 5,
        c_stride: 5,
        alpha: 1.0,
        beta: 0.0,
    };
    let layout = Layout::default();
    for bad in [
        Gemm {
            a_stride: 5,
            ..good
        },
        Gemm {
            b_stride: 4,
            ..good
        },
        Gemm {
            c_stride: 4,
            ..good
        },
    ] {
        layout.expect(bad, 1, Status::BadArgument, &[], &layout);
    }
}

#[test]
fn sort_leaves_sorted_and_equal_elements_alone() {
    check_sort(&(0..5000).collect::<Vec<_>>(), 1);
    check_sort(&(0..5000).rev().collect::<Vec<_>>(), 2);
    check_sort(&[0x0123_4567_89ab_cdef; 5000], 3);
    check_sort(&(0..5000).map(|i| (i % 3) << 40).collect::<Vec<_>>(), 4);
}

#[test]
fn sort_takes_lower_bytes_where_the_high_ones_leave_many_equal() {
    // The high bytes differ for a few elements only. These lie first before the many equal ones,
    // then behind them.
    for side in [0, !0] {
        let few = |i: u64| if i % 500 == 7 { i << 40 } else { 0 };
        let values = (0..9000).map(|i| side ^ few(i) ^ (i * 7919 % 9001));
        check_sort(&values.collect::<Vec<_>>(), 5);
    }
}

#[test]
fn sort_refuses_ranges_that_overlap() {
    let mut layout = Layout::default();
    let data = layout.put(&[3_u64, 2, 1, 0]);
    let operation = Sort {
        data,
        count: 3,
        temporary: data + 23,
    };
    layout.expect(operation, 1, Status::BadArgument, &[], &layout);
}

#[test]
fn sort_ends_when_its_elements_are_changed_under_it() {
    use super::memory::{Arena, BASE};
    use crate::device::operations::{Step, Work};
    let count = 5000;
    let values: Vec<u64> = (0..count).rev().map(|i| i * 0x0101_0101).collect();
    let mut bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    bytes.resize(2 * bytes.len() + 64, 0xa5);
    let half = 8 * usize::try_from(count).unwrap();
    let mut arena = Arena::new(bytes, Temper::Kind);
    let operation = Sort {
        data: BASE,
        count,
        temporary: BASE + half as u64,
    };
    let mut work = Work::new(operation.into()).unwrap();
    assert_eq!(work.step(&mut arena), Ok(Step::More));
    assert_eq!(work.step(&mut arena), Ok(Step::More));
    arena.bytes[..half].fill(0xff);
    let (status, _) = arena.finish(&mut work).unwrap();
    assert_eq!(status, Status::BadArgument);
    assert!(arena.bytes[2 * half..].iter().all(|byte| *byte == 0xa5));
}

#[test]
fn axpy_refuses_integers() {
    let layout = Layout::default();
    for element in [Element::U32, Element::U64, Element::I64] {
        let operation = Axpy {
            x: 0,
            y: 0,
            count: 0,
            element,
            alpha: 1.0,
        };
        layout.expect(operation, 1, Status::BadArgument, &[], &layout);
    }
}

#[test]
fn histogram_refuses_counters_within_the_source() {
    let mut layout = Layout::default();
    let source = layout.put(&[0_u8; 4096]);
    for counters in [source - 2047, source, source + 4095] {
        let operation = Histogram {
            source,
            bytes: 4096,
            counters,
        };
        layout.expect(operation, 1, Status::BadArgument, &[], &layout);
    }
}

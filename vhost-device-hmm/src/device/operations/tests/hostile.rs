//! Arguments that make no sense: each job must end, whatever they are.

use super::layout::Layout;
use super::memory::{Arena, Temper, BASE};
use crate::device::operations::{Step, Work};
use proptest::prelude::*;
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::job::{JobDescriptor, MAX_ARGUMENTS};
use virtio_hmm_spec::wire::operation::{
    Axpy, Checksum, Compare, Copy, Dot, Element, Fill, Gather, Gemm, Histogram, ListWalk, Min,
    Operation, Scatter, Sort, Sum, TreeSearch, TreeSum,
};
use zerocopy::little_endian::{U32, U64};

/// Steps after which a job that has neither ended nor faulted is cancelled: a valid count may take
/// longer than a test can wait.
const PATIENCE: usize = 200;

/// Bytes that are mapped.
const MAPPED: usize = 20_000;

/// An argument: absurd, an address, a small number, an element, or bits of a float.
fn argument() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0_u64..40).prop_map(|less| u64::MAX - less),
        (0_u32..64).prop_map(|shift| 1 << shift),
        (0..MAPPED as u64).prop_map(|offset| BASE + offset),
        (0..MAPPED as u64).prop_map(|offset| (BASE + offset) & !7),
        0_u64..6,
        0_u64..3000,
        Just(0x3f80_0000),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    // {dev-job-ends}
    #[test]
    fn absurd_arguments_end_a_job_and_nothing_else(
        code in 1_u32..22, arguments in prop::array::uniform14(argument()), seed: u64,
    ) {
        // Arguments that the operation does not have must be zero to be decoded.
        let description = Operation::DESCRIPTIONS.iter().find(|d| d.code == code).unwrap();
        let mut raw = [U64::ZERO; MAX_ARGUMENTS];
        for ((raw, argument), (_, kind)) in
            raw.iter_mut().zip(arguments).zip(description.arguments)
        {
            *raw = U64::new(match *kind {
                "Element" => 1 + argument % 5,
                "f32" => argument >> 32,
                _ => argument,
            });
        }
        let descriptor =
            JobDescriptor { operation: U32::new(code), reserved: U32::ZERO, arguments: raw };
        let operation = Operation::decode(&descriptor).unwrap();
        let content: Vec<u8> = (0..MAPPED as u64).map(|i| (i ^ seed).to_le_bytes()[0]).collect();
        let mut arena = Arena::new(content, Temper::Lazy);
        if let Ok(mut work) = Work::new(operation) {
            let mut patience = PATIENCE;
            while patience > 0 {
                match work.step(&mut arena) {
                    Ok(Step::More) => {}
                    Ok(Step::Done(status, _)) => {
                        prop_assert_ne!(status, Status::Fault);
                        break;
                    }
                    Err(fault) if !arena.resolve(fault) => break,
                    Err(_) => continue,
                }
                patience -= 1;
            }
        }
        prop_assert_eq!(arena.bytes.len(), MAPPED);
    }
}

/// Operations of no elements, at unmapped addresses.
fn empty() -> Vec<Operation> {
    let (nowhere, element) = (u64::MAX, Element::F64);
    let [source, destination, left, right, x, y, data, temporary] = [nowhere; 8];
    let (bytes, count, alpha) = (0, 0, 1.0);
    let [a, b, c] = [nowhere; 3];
    let product = Gemm {
        a,
        b,
        c,
        m: 3,
        n: 3,
        k: 3,
        a_stride: 3,
        b_stride: 3,
        c_stride: 3,
        alpha: 1.0,
        beta: 1.0,
    };
    vec![
        Fill {
            destination,
            bytes,
            pattern: 1,
        }
        .into(),
        Copy {
            source,
            destination,
            bytes,
        }
        .into(),
        Compare { left, right, bytes }.into(),
        Checksum { source, bytes }.into(),
        Sum {
            source,
            count,
            element,
        }
        .into(),
        Dot {
            x,
            y,
            count,
            element,
        }
        .into(),
        Axpy {
            x,
            y,
            count,
            element,
            alpha,
        }
        .into(),
        Sort {
            data,
            count,
            temporary,
        }
        .into(),
        Histogram {
            source,
            bytes,
            counters: 0,
        }
        .into(),
        Gather {
            table: 0,
            table_count: 0,
            index: nowhere,
            destination,
            count,
            element,
        }
        .into(),
        Scatter {
            source,
            index: nowhere,
            table: 0,
            table_count: 0,
            count,
            element,
        }
        .into(),
        Gemm { m: 0, ..product }.into(),
        Gemm { n: 0, ..product }.into(),
        ListWalk {
            head: 0,
            next_offset: 1,
            value_offset: 1,
            key: 0,
            limit: 0,
        }
        .into(),
        TreeSearch {
            root: 0,
            left_offset: 1,
            right_offset: 1,
            key_offset: 1,
            key: 0,
            limit: 0,
        }
        .into(),
        TreeSum {
            root: 0,
            left_offset: 1,
            right_offset: 1,
            value_offset: 1,
            limit: 0,
        }
        .into(),
    ]
}

#[test]
fn no_elements_are_no_mistake_and_touch_nothing() {
    let mut layout = Layout::default();
    layout.put(&[1_u8; 100]);
    for operation in empty() {
        // An empty product still has an address for its result.
        let operation = match operation {
            Operation::Gemm(product) => Gemm {
                a: 0,
                b: 0,
                c: 0,
                ..product
            }
            .into(),
            other => other,
        };
        layout.expect(operation, 1, Status::Ok, &[], &layout);
    }
    let least = Min {
        source: u64::MAX,
        count: 0,
        element: Element::F32,
    };
    layout.expect(least, 1, Status::Ok, &[0, 0], &layout);
}

#[test]
fn a_range_that_wraps_is_as_bad_an_address_as_one_that_lies_too_high() {
    let layout = Layout::default();
    let refuse =
        |operation: Operation| layout.expect(operation, 1, Status::BadAddress, &[], &layout);
    let (element, count) = (Element::U32, 4);
    refuse(
        Sum {
            source: u64::MAX - 14,
            count,
            element,
        }
        .into(),
    );
    refuse(
        Fill {
            destination: u64::MAX,
            bytes: 2,
            pattern: 0,
        }
        .into(),
    );
    refuse(
        Copy {
            source: 0,
            destination: 2,
            bytes: u64::MAX,
        }
        .into(),
    );
    refuse(
        Gather {
            table: 0,
            table_count: 1,
            index: 0,
            destination: u64::MAX - 3,
            count,
            element,
        }
        .into(),
    );
    let high = |source| Sum {
        source,
        count,
        element,
    };
    for source in [1 << 62, u64::MAX - 15, (1 << 57) - 15, 1 << 57] {
        refuse(high(source).into());
    }
    // The last address is valid.
    assert!(Work::new(high((1 << 57) - 16).into()).is_ok());
}

#[test]
fn a_count_that_no_memory_can_hold_is_a_bad_argument() {
    let layout = Layout::default();
    let refuse =
        |operation: Operation| layout.expect(operation, 1, Status::BadArgument, &[], &layout);
    let count = 1 << 61;
    refuse(
        Sum {
            source: 0,
            count,
            element: Element::U64,
        }
        .into(),
    );
    refuse(
        Sort {
            data: 0,
            count,
            temporary: 0,
        }
        .into(),
    );
    refuse(
        Dot {
            x: 0,
            y: 0,
            count: u64::MAX,
            element: Element::F32,
        }
        .into(),
    );
    let [a, b, c] = [0; 3];
    let [m, n, k] = [1 << 40; 3];
    let stride = 1 << 40;
    let (a_stride, b_stride, c_stride) = (stride, stride, stride);
    refuse(
        Gemm {
            a,
            b,
            c,
            m,
            n,
            k,
            a_stride,
            b_stride,
            c_stride,
            alpha: 0.0,
            beta: 0.0,
        }
        .into(),
    );
}

#[test]
fn an_address_that_is_never_had_ends_in_its_fault() {
    let operation = Sum {
        source: BASE,
        count: 1000,
        element: Element::U64,
    };
    let mut arena = Arena::new(vec![0; 5000], Temper::Lazy);
    let fault = arena.run(operation.into()).unwrap_err();
    assert_eq!(fault.address, BASE + 5000);
}

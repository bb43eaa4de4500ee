//! Atomic add, exchange and compare-exchange.

use super::layout::Layout;
use proptest::prelude::*;
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::{AtomicAdd, AtomicCompareExchange, AtomicExchange, Element};

/// A word among others, the address of an element in it, and what is there.
fn word(value: u64, narrow: bool) -> (Layout, u64, Element, u64) {
    let mut layout = Layout::default();
    let address = layout.put_aligned(&[value, !0]);
    if narrow {
        (layout, address + 4, Element::U32, value >> 32)
    } else {
        (layout, address, Element::U64, value)
    }
}

/// Changes the element to a value.
fn set(layout: &Layout, address: u64, narrow: bool, value: u64) -> Layout {
    let mut expected = layout.clone();
    expected.set(address, &value.to_le_bytes()[..if narrow { 4 } else { 8 }]);
    expected
}

proptest! {
    // {dev-atomic-once}
    #[test]
    fn add_adds_as_often_as_asked(
        value: u64, operand: u64, narrow: bool, repeat in 0_u64..2000, seed: u64,
    ) {
        let (layout, address, element, there) = word(value, narrow);
        let mask = if narrow { u64::from(u32::MAX) } else { u64::MAX };
        let operand = operand & mask;
        let after = |times| operand.wrapping_mul(times).wrapping_add(there) & mask;
        let expected = set(&layout, address, narrow, after(repeat));
        let before = if repeat == 0 { 0 } else { after(repeat - 1) };
        let operation = AtomicAdd { address, element, operand, repeat };
        layout.expect(operation, seed, Status::Ok, &[before], &expected);
    }

    #[test]
    fn exchange_replaces_what_was_there(value: u64, operand: u32, narrow: bool, seed: u64) {
        let (layout, address, element, there) = word(value, narrow);
        let operand = operand.into();
        let expected = set(&layout, address, narrow, operand);
        let operation = AtomicExchange { address, element, operand };
        layout.expect(operation, seed, Status::Ok, &[there], &expected);
    }

    #[test]
    fn compare_exchange_replaces_only_what_is_expected(
        value: u64, operand: u32, narrow: bool, equal: bool, seed: u64,
    ) {
        let (layout, address, element, there) = word(value, narrow);
        let operand = operand.into();
        let expected = if equal { there } else { there ^ 1 };
        let after = if equal { operand } else { there };
        let changed = set(&layout, address, narrow, after);
        let operation = AtomicCompareExchange { address, element, expected, operand };
        layout.expect(operation, seed, Status::Ok, &[there, u64::from(equal)], &changed);
    }
}

#[test]
fn atomics_refuse_what_is_not_aligned_or_does_not_fit() {
    let (layout, address, ..) = word(1, false);
    let end_with = |status, operation| {
        layout.expect::<AtomicAdd>(operation, 1, status, &[], &layout);
    };
    let refuse = |operation| end_with(Status::BadArgument, operation);
    let good = AtomicAdd {
        address,
        element: Element::U64,
        operand: 1,
        repeat: 1,
    };
    let misaligned = [
        AtomicAdd {
            address: address + 4,
            ..good
        },
        AtomicAdd {
            address: address + 2,
            element: Element::U32,
            ..good
        },
    ];
    for operation in misaligned {
        end_with(Status::BadAddress, operation);
    }
    refuse(AtomicAdd {
        element: Element::U32,
        operand: 1 << 32,
        ..good
    });
    for element in [Element::I64, Element::F32, Element::F64] {
        refuse(AtomicAdd { element, ..good });
    }
}

//! The layouts as numbers and bytes, written by hand a second time.
//!
//! `prose` compares the crate with the text. This file compares it with the required bytes, so that
//! text and crate cannot change together unnoticed. It also checks that encoding and decoding are
//! inverse, and that an invalid operation is refused and never causes a panic.

use proptest::prelude::*;
use virtio_hmm_spec::uapi::dmirror::{DmirrorCall, DmirrorCommand};
use virtio_hmm_spec::uapi::{
    Bind, BindProcess, Call, Cancel, Counters, DriverStatistics, Info, Migrate, Residency,
    SpaceCounters, Submit, Wait, WaitAny,
};
use virtio_hmm_spec::wire::command::{
    AnswerEntry, CancelEntry, FetchEntry, InitEntry, MapEntry, QueryResult, RangeEntry,
    ReplyHeader, Request, RequestHeader, Status,
};
use virtio_hmm_spec::wire::config::Config;
use virtio_hmm_spec::wire::dma::{DmaItem, ItemResult};
use virtio_hmm_spec::wire::fault::{Action, FaultHeader, FaultRecord, Reason};
use virtio_hmm_spec::wire::job::{JobDescriptor, JobReply, JobRequest, MAX_ARGUMENTS};
use virtio_hmm_spec::wire::operation::{DecodeError, Element, Gemm, ListWalk, Operation};
use virtio_hmm_spec::wire::statistics::Statistics;
use virtio_hmm_spec::wire::{Layout, Values};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Checks the size and each field's offset against the numbers given here.
fn assert_layout<T: Layout>(size: usize, offsets: &[usize]) {
    let actual: Vec<usize> = T::FIELDS.iter().map(|field| field.offset).collect();
    assert_eq!((T::SIZE, actual.as_slice()), (size, offsets), "{}", T::NAME);
    let ends = T::FIELDS.iter().map(|field| field.offset + field.size);
    assert!(
        ends.eq(offsets.iter().copied().skip(1).chain([size])),
        "{} has a gap",
        T::NAME
    );
}

#[test]
fn every_structure_has_the_layout_that_is_written_down() {
    assert_layout::<Config>(56, &[0, 4, 8, 16, 24, 28, 32, 36, 40, 44, 48, 52]);
    assert_layout::<RequestHeader>(16, &[0, 2, 4, 8, 12]);
    assert_layout::<ReplyHeader>(8, &[0, 4]);
    assert_layout::<InitEntry>(8, &[0, 4]);
    assert_layout::<MapEntry>(24, &[0, 8, 16, 20, 22]);
    assert_layout::<RangeEntry>(16, &[0, 8]);
    assert_layout::<AnswerEntry>(16, &[0, 8, 12]);
    assert_layout::<CancelEntry>(8, &[0]);
    assert_layout::<QueryResult>(16, &[0, 8, 12]);
    assert_layout::<FetchEntry>(32, &[0, 8, 16, 24, 28]);
    assert_layout::<DmaItem>(24, &[0, 4, 8, 16]);
    assert_layout::<ItemResult>(4, &[0]);
    assert_layout::<JobDescriptor>(120, &[0, 4, 8]);
    assert_layout::<JobRequest>(136, &[0, 8, 12, 16]);
    assert_layout::<JobReply>(80, &[0, 4, 8, 16, 20, 24, 56, 64, 72]);
    assert_layout::<FaultHeader>(8, &[0, 4]);
    assert_layout::<FaultRecord>(40, &[0, 8, 16, 24, 28, 32, 36]);
    assert_layout::<Statistics>(288, &eights::<36>());
    assert_layout::<Info>(56, &[0, 4, 8, 16, 24, 32, 36, 40, 44, 48, 52]);
    assert_layout::<Bind>(8, &[0, 4]);
    assert_layout::<Submit>(32, &[0, 8, 12, 16, 24, 28]);
    assert_layout::<Wait>(96, &[0, 8, 16]);
    assert_layout::<Migrate>(56, &[0, 8, 16, 20, 24, 32, 40, 48]);
    assert_layout::<Residency>(32, &[0, 4, 8, 16, 24]);
    assert_layout::<Counters>(520, &[0, 232]);
    assert_layout::<DriverStatistics>(232, &eights::<29>());
    assert_layout::<Cancel>(16, &[0, 8, 12]);
    assert_layout::<WaitAny>(112, &[0, 8, 12, 16, 24, 32]);
    assert_layout::<BindProcess>(16, &[0, 4, 8, 12]);
    assert_layout::<SpaceCounters>(72, &[0, 4, 8, 16, 24, 32, 40, 48, 56, 64]);
    assert_layout::<DmirrorCommand>(40, &eights::<5>());
}

/// The offsets of `COUNT` fields of eight bytes.
fn eights<const COUNT: usize>() -> [usize; COUNT] {
    std::array::from_fn(|index| 8 * index)
}

#[test]
fn request_codes_are_those_that_the_kernel_computes() {
    // _IOC(_IOC_READ | _IOC_WRITE, 0xD6, number, size)
    assert_eq!(Info::CODE, 0xC038_D600);
    assert_eq!(Bind::CODE, 0xC008_D601);
    assert_eq!(Submit::CODE, 0xC020_D602);
    assert_eq!(Wait::CODE, 0xC060_D603);
    assert_eq!(Migrate::CODE, 0xC038_D604);
    assert_eq!(Residency::CODE, 0xC020_D605);
    assert_eq!(Counters::CODE, 0xC208_D606);
    assert_eq!(Cancel::CODE, 0xC010_D607);
    assert_eq!(WaitAny::CODE, 0xC070_D608);
    assert_eq!(BindProcess::CODE, 0xC010_D609);
    assert_eq!(SpaceCounters::CODE, 0xC048_D60A);
    assert_eq!(DmirrorCall::Read.code(), 0xC028_4800);
    assert_eq!(DmirrorCall::ReadUnlocked.code(), 0xC028_4809);
}

#[test]
fn only_the_request_code_of_a_call_is_that_call() {
    assert_eq!(
        DmirrorCall::from_code(0xC028_4804),
        Some(DmirrorCall::Snapshot)
    );
    // A number without a call, another size, another type.
    for code in [0xC028_480A, 0xC030_4804, 0xC028_D604] {
        assert_eq!(DmirrorCall::from_code(code), None, "{code:#x}");
    }
}

/// The bytes 0, 1, 2, … that fill a structure.
fn counting(size: usize) -> Vec<u8> {
    (0..size)
        .map(|byte| u8::try_from(byte % 256).expect("a byte"))
        .collect()
}

/// A structure read from counting bytes: each field is identified by its value.
fn from_counting<T: FromBytes + IntoBytes + Immutable + KnownLayout + Copy>() -> T {
    let bytes = counting(size_of::<T>());
    let value = T::read_from_bytes(&bytes).expect("as many bytes as the structure has");
    assert_eq!(
        value.as_bytes(),
        bytes,
        "what was read is written back as it was"
    );
    value
}

/// Checks fields of one structure against numbers.
macro_rules! assert_fields {
    ($type:ident { $($field:ident: $value:literal),+ $(,)? }) => {
        let value = from_counting::<$type>();
        $( assert_eq!(value.$field, $value, "{}.{}", $type::NAME, stringify!($field)); )+
    };
}

#[test]
fn the_fields_of_the_wire_are_read_at_their_places_and_little_endian() {
    assert_fields!(Config {
        magic: 0x0302_0100,
        version: 0x0706_0504,
        device_memory: 0x0f0e_0d0c_0b0a_0908,
        capabilities: 0x1716_1514_1312_1110,
        max_spaces: 0x1b1a_1918,
        max_jobs: 0x1f1e_1d1c,
        max_entries: 0x2322_2120,
        max_items: 0x2726_2524,
        max_copy_pages: 0x2b2a_2928,
        engines: 0x2f2e_2d2c,
        address_bits: 0x3332_3130,
        reserved: 0x3736_3534,
    });
    assert_fields!(RequestHeader {
        operation: 0x0100,
        flags: 0x0302,
        space: 0x0706_0504,
        count: 0x0b0a_0908,
        reserved: 0x0f0e_0d0c,
    });
    assert_fields!(ReplyHeader {
        status: 0x0302_0100,
        detail: 0x0706_0504
    });
    assert_fields!(InitEntry {
        version: 0x0302_0100,
        reserved: 0x0706_0504
    });
    assert_fields!(MapEntry {
        address: 0x0706_0504_0302_0100,
        frame: 0x0f0e_0d0c_0b0a_0908,
        pages: 0x1312_1110,
        order: 0x1514,
        flags: 0x1716,
    });
    assert_fields!(RangeEntry {
        address: 0x0706_0504_0302_0100,
        pages: 0x0f0e_0d0c_0b0a_0908
    });
    assert_fields!(AnswerEntry {
        fault: 0x0706_0504_0302_0100,
        action: 0x0b0a_0908,
        reason: 0x0f0e_0d0c,
    });
    assert_fields!(CancelEntry {
        job: 0x0706_0504_0302_0100
    });
    assert_fields!(QueryResult {
        frame: 0x0706_0504_0302_0100,
        flags: 0x0b0a_0908,
        order: 0x0f0e_0d0c,
    });
    assert_fields!(FetchEntry {
        address: 0x0706_0504_0302_0100,
        source: 0x0f0e_0d0c_0b0a_0908,
        destination: 0x1716_1514_1312_1110,
        pages: 0x1b1a_1918,
        reserved: 0x1f1e_1d1c,
    });
    assert_fields!(DmaItem {
        kind: 0x0302_0100,
        pages: 0x0706_0504,
        source: 0x0f0e_0d0c_0b0a_0908,
        destination: 0x1716_1514_1312_1110,
    });
    assert_fields!(ItemResult {
        status: 0x0302_0100
    });
    assert_fields!(FaultHeader {
        count: 0x0302_0100,
        reserved: 0x0706_0504
    });
    assert_fields!(FaultRecord {
        fault: 0x0706_0504_0302_0100,
        address: 0x0f0e_0d0c_0b0a_0908,
        job: 0x1716_1514_1312_1110,
        space: 0x1b1a_1918,
        access: 0x1f1e_1d1c,
        pages: 0x2322_2120,
        reserved: 0x2726_2524,
    });
    assert_fields!(JobReply {
        status: 0x0302_0100,
        reason: 0x0706_0504,
        address: 0x0f0e_0d0c_0b0a_0908,
        access: 0x1312_1110,
        faults: 0x1716_1514,
        nanoseconds: 0x3f3e_3d3c_3b3a_3938,
        system_bytes: 0x4746_4544_4342_4140,
        device_bytes: 0x4f4e_4d4c_4b4a_4948,
    });
    let reply = from_counting::<JobReply>();
    assert_eq!(reply.values[0], 0x1f1e_1d1c_1b1a_1918);
    assert_eq!(reply.values[3], 0x3736_3534_3332_3130);

    assert_fields!(JobRequest {
        job: 0x0706_0504_0302_0100,
        space: 0x0b0a_0908,
        reserved: 0x0f0e_0d0c,
    });
    let descriptor = from_counting::<JobRequest>().descriptor;
    assert_eq!(descriptor.operation, 0x1312_1110);
    assert_eq!(descriptor.reserved, 0x1716_1514);
    assert_eq!(descriptor.arguments[0], 0x1f1e_1d1c_1b1a_1918);
    assert_eq!(descriptor.arguments[13], 0x8786_8584_8382_8180);

    let statistics = from_counting::<Statistics>();
    assert_eq!(statistics.spaces, 0x0706_0504_0302_0100);
    assert_eq!(statistics.jobs_ended, 0x3f3e_3d3c_3b3a_3938);
    assert_eq!(statistics.faults, 0x7776_7574_7372_7170);
    assert_eq!(statistics.control_requests, 0x9f9e_9d9c_9b9a_9998);
    assert_eq!(statistics.dma_requests, 0xc7c6_c5c4_c3c2_c1c0);
    assert_eq!(statistics.freed_frame_uses, 0x1f1e_1d1c_1b1a_1918);
}

#[test]
#[cfg(target_endian = "little")]
fn the_fields_of_the_ioctls_are_read_at_their_places() {
    assert_fields!(Info {
        version: 0x0302_0100,
        engines: 0x0706_0504,
        device_memory: 0x0f0e_0d0c_0b0a_0908,
        free_memory: 0x1716_1514_1312_1110,
        capabilities: 0x1f1e_1d1c_1b1a_1918,
        max_jobs: 0x2322_2120,
        max_spaces: 0x2726_2524,
        device_version: 0x2b2a_2928,
        address_bits: 0x2f2e_2d2c,
        state: 0x3332_3130,
        resets: 0x3736_3534,
    });
    assert_fields!(Bind {
        version: 0x0302_0100,
        flags: 0x0706_0504
    });
    assert_fields!(Submit {
        jobs: 0x0706_0504_0302_0100,
        count: 0x0b0a_0908,
        flags: 0x0f0e_0d0c,
        first_fence: 0x1716_1514_1312_1110,
        submitted: 0x1b1a_1918,
        eventfd: 0x1f1e_1d1c,
    });
    assert_fields!(Wait {
        fence: 0x0706_0504_0302_0100,
        deadline: 0x0f0e_0d0c_0b0a_0908
    });
    assert_fields!(Cancel {
        fence: 0x0706_0504_0302_0100,
        flags: 0x0b0a_0908,
        reserved: 0x0f0e_0d0c,
    });
    assert_fields!(WaitAny {
        fences: 0x0706_0504_0302_0100,
        count: 0x0b0a_0908,
        flags: 0x0f0e_0d0c,
        deadline: 0x1716_1514_1312_1110,
        fence: 0x1f1e_1d1c_1b1a_1918,
    });
    assert_eq!(from_counting::<WaitAny>().result.status, 0x2322_2120);
    assert_eq!(from_counting::<Wait>().result.status, 0x1312_1110);
    assert_fields!(Migrate {
        address: 0x0706_0504_0302_0100,
        bytes: 0x0f0e_0d0c_0b0a_0908,
        destination: 0x1312_1110,
        flags: 0x1716_1514,
        moved: 0x1f1e_1d1c_1b1a_1918,
        skipped: 0x2726_2524_2322_2120,
        no_memory: 0x2f2e_2d2c_2b2a_2928,
        reached: 0x3736_3534_3332_3130,
    });
    assert_fields!(Residency {
        pid: 0x0302_0100,
        flags: 0x0706_0504,
        address: 0x0f0e_0d0c_0b0a_0908,
        pages: 0x1716_1514_1312_1110,
        states: 0x1f1e_1d1c_1b1a_1918,
    });
    assert_fields!(BindProcess {
        version: 0x0302_0100,
        flags: 0x0706_0504,
        pidfd: 0x0b0a_0908,
        memory: 0x0f0e_0d0c,
    });
    let counters = from_counting::<SpaceCounters>();
    assert_eq!(counters.jobs, 0x0f0e_0d0c_0b0a_0908);
    assert_eq!(counters.cpu_fault_pages, 0x4746_4544_4342_4140);
    let counters = from_counting::<Counters>();
    assert_eq!(counters.driver.spaces, 0x0706_0504_0302_0100);
    assert_eq!(counters.driver.interrupts, 0xd7d6_d5d4_d3d2_d1d0);
    assert_eq!(counters.driver.changes_hurried, 0xe7e6_e5e4_e3e2_e1e0);
    assert_eq!(counters.device.spaces, 0xefee_edec_ebea_e9e8);
}

#[test]
fn an_operation_travels_as_its_code_and_its_arguments_in_order() {
    let gemm = Gemm {
        a: 0x1000,
        b: 0x2000,
        c: 0x3000,
        m: 2,
        n: 3,
        k: 4,
        a_stride: 5,
        b_stride: 6,
        c_stride: 7,
        alpha: 1.0,
        beta: -2.0,
    };
    let descriptor = Operation::from(gemm).encode();
    let arguments = descriptor.arguments.map(U64::get);
    assert_eq!(descriptor.operation, 10);
    assert_eq!(
        arguments,
        [
            0x1000,
            0x2000,
            0x3000,
            2,
            3,
            4,
            5,
            6,
            7,
            0x3f80_0000,
            0xc000_0000,
            0,
            0,
            0
        ]
    );
    assert_eq!(Operation::decode(&descriptor), Ok(Operation::Gemm(gemm)));
}

/// Any input of a decoder: any code, and arguments that are often small.
fn any_descriptor() -> impl Strategy<Value = JobDescriptor> {
    let number = || {
        prop_oneof![
            Just(0),
            0..8_u64,
            any::<u64>(),
            any::<f64>().prop_map(f64::to_bits)
        ]
    };
    let operation = prop_oneof![0..32_u32, any::<u32>()];
    let reserved = prop_oneof![9 => Just(0_u32), 1 => any::<u32>()];
    let arguments = prop::collection::vec(number(), MAX_ARGUMENTS);
    (operation, reserved, arguments).prop_map(|(operation, reserved, arguments)| JobDescriptor {
        operation: U32::new(operation),
        reserved: U32::new(reserved),
        arguments: std::array::from_fn(|index| U64::new(arguments[index])),
    })
}

/// A descriptor that encodes some operation.
fn descriptor_of_an_operation() -> impl Strategy<Value = JobDescriptor> {
    let index = 0..Operation::DESCRIPTIONS.len();
    let numbers = prop::collection::vec(any::<u64>(), MAX_ARGUMENTS);
    (index, numbers).prop_map(|(index, numbers)| {
        let description = &Operation::DESCRIPTIONS[index];
        let mut arguments = [U64::ZERO; MAX_ARGUMENTS];
        for ((slot, number), &(_, type_name)) in
            arguments.iter_mut().zip(numbers).zip(description.arguments)
        {
            *slot = U64::new(match type_name {
                "u64" | "f64" => number,
                "f32" => number & 0xffff_ffff,
                "Element" => {
                    let elements = Element::VALUES;
                    let choice = usize::try_from(number % elements.len() as u64).expect("small");
                    elements[choice].1.into()
                }
                other => panic!("no values of type {other} are known here"),
            });
        }
        JobDescriptor {
            operation: U32::new(description.code),
            reserved: U32::ZERO,
            arguments,
        }
    })
}

proptest! {
    #[test]
    fn every_operation_survives_the_journey(descriptor in descriptor_of_an_operation()) {
        let operation = Operation::decode(&descriptor);
        prop_assert!(operation.is_ok());
        prop_assert_eq!(operation.map(|operation| operation.encode()), Ok(descriptor));
    }

    #[test]
    fn whatever_decodes_encodes_to_the_same_bytes(descriptor in any_descriptor()) {
        if let Ok(operation) = Operation::decode(&descriptor) {
            prop_assert_eq!(operation.encode(), descriptor);
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in any::<[[u8; 24]; 5]>()) {
        let descriptor = JobDescriptor::read_from_bytes(bytes.as_flattened())
            .expect("as many bytes as a descriptor has");
        let known = Operation::DESCRIPTIONS.iter().any(|d| d.code == descriptor.operation.get());
        prop_assert!(known || Operation::decode(&descriptor) == Err(DecodeError::Unsupported));
    }

    #[test]
    fn an_argument_that_an_operation_lacks_must_be_zero(
        descriptor in descriptor_of_an_operation(),
        slot in 0..MAX_ARGUMENTS,
        value in 1..=u64::MAX,
    ) {
        let mut descriptor = descriptor;
        let code = descriptor.operation.get();
        let description = Operation::DESCRIPTIONS.iter().find(|d| d.code == code);
        let used = description.map_or(0, |description| description.arguments.len());
        prop_assume!(slot >= used);
        descriptor.arguments[slot] = U64::new(value);
        prop_assert_eq!(Operation::decode(&descriptor), Err(DecodeError::Malformed));
    }

    #[test]
    fn the_reserved_field_of_an_operation_must_be_zero(
        descriptor in descriptor_of_an_operation(),
        value in 1..=u32::MAX,
    ) {
        let descriptor = JobDescriptor { reserved: U32::new(value), ..descriptor };
        prop_assert_eq!(Operation::decode(&descriptor), Err(DecodeError::Malformed));
    }
}

#[test]
fn a_value_that_is_none_of_its_type_is_malformed() {
    for description in Operation::DESCRIPTIONS {
        for (slot, (argument, type_name)) in description.arguments.iter().enumerate() {
            let wrong: &[u64] = match *type_name {
                "Element" => &[0, 6, 1 << 32, (1 << 32) + 1, u64::MAX],
                "f32" => &[1 << 32, u64::MAX],
                _ => continue,
            };
            for &value in wrong {
                let mut descriptor = valid(description.code);
                assert!(
                    Operation::decode(&descriptor).is_ok(),
                    "{}",
                    description.name
                );
                descriptor.arguments[slot] = U64::new(value);
                assert_eq!(
                    Operation::decode(&descriptor),
                    Err(DecodeError::Malformed),
                    "{} of {} is {value:#x}",
                    argument,
                    description.name,
                );
            }
        }
    }
}

/// The descriptor of an operation whose arguments are all one, which is valid for every type.
fn valid(code: u32) -> JobDescriptor {
    let description = Operation::DESCRIPTIONS
        .iter()
        .find(|description| description.code == code);
    let used = description.map_or(0, |description| description.arguments.len());
    JobDescriptor {
        operation: U32::new(code),
        reserved: U32::ZERO,
        arguments: std::array::from_fn(|slot| U64::new(u64::from(slot < used))),
    }
}

#[test]
fn operations_have_codes_of_their_own_and_room_for_their_arguments() {
    let mut codes: Vec<u32> = Operation::DESCRIPTIONS.iter().map(|d| d.code).collect();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), Operation::DESCRIPTIONS.len());
    for description in Operation::DESCRIPTIONS {
        assert!(
            description.arguments.len() <= MAX_ARGUMENTS,
            "{}",
            description.name
        );
        let name = Operation::decode(&valid(description.code)).map(|operation| operation.name());
        assert_eq!(name, Ok(description.name));
    }
    assert_eq!(Operation::decode(&valid(0)), Err(DecodeError::Unsupported));
    assert_eq!(Operation::decode(&valid(22)), Err(DecodeError::Unsupported));
}

#[test]
fn a_list_walk_in_bytes() {
    let walk = ListWalk {
        head: 0x7f00_0000_1000,
        next_offset: 8,
        value_offset: 0,
        key: 5,
        limit: 9,
    };
    let mut golden = vec![0; 120];
    golden[..4].copy_from_slice(&[15, 0, 0, 0]);
    golden[8..16].copy_from_slice(&[0x00, 0x10, 0x00, 0x00, 0x00, 0x7f, 0x00, 0x00]);
    golden[16] = 8;
    golden[32] = 5;
    golden[40] = 9;
    assert_eq!(Operation::from(walk).encode().as_bytes(), golden);
}

/// Checks that exactly the listed numbers are values.
macro_rules! assert_values {
    ($type:ident: $raw:ty, [$($number:literal),+ $(,)?]) => {
        let numbers: &[u32] = &[$($number),+];
        for number in 0..=1024 {
            let raw = <$raw>::try_from(number).expect("a small number");
            let value = $type::from_raw(raw);
            assert_eq!(value.is_some(), numbers.contains(&number), "{} of {number}", $type::NAME);
            assert!(value.is_none_or(|value| value.raw() == raw));
        }
        assert!($type::from_raw(<$raw>::MAX).is_none());
        assert!($type::VALUES.iter().map(|&(_, number)| number).eq(numbers.iter().copied()));
    };
}

#[test]
fn only_numbers_that_are_listed_are_values() {
    assert_values!(Request: u16, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16]);
    assert_values!(
        Status: u32,
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 255]
    );
    assert_values!(Action: u32, [1, 2]);
    assert_values!(Reason: u32, [1, 2, 3, 4, 5, 6, 7]);
    assert_values!(Element: u32, [1, 2, 3, 4, 5]);
}

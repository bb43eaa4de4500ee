//! What a job sees through its view, and what it must not see.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::device::memory::SystemMemory;
use crate::device::mmu::{Budget, Leaf, PageRange, Rule, Run};
use crate::device::space::{Epochs, Rest, Space};
use crate::device::statistics::Counters;
use crate::device::tlb;

struct Bench {
    space: Space,
    tlb: Tlb,
    device: Arc<DeviceMemory>,
    counters: Arc<Counters>,
    check: Check,
    tally: Tally,
}

impl Bench {
    fn new() -> Self {
        let device = Arc::new(DeviceMemory::new(2 << 20).unwrap());
        let ranges = [(GuestAddress(0), 1 << 16), (GuestAddress(1 << 16), 4 << 20)];
        let map = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let counters = Arc::new(Counters::default());
        Self {
            space: Space::new(1, &Budget::new(1 << 20), &Epochs::new()).unwrap(),
            tlb: Tlb::new(Arc::clone(&device), Arc::new(SystemMemory::new(map))),
            check: Check::new(Arc::clone(&device), Arc::clone(&counters)),
            device,
            counters,
            tally: Tally::default(),
        }
    }

    fn map(&self, page: u64, frame: u64, pages: u64, large: bool) {
        self.map_to(
            page,
            Leaf::new(Place::System, frame, rights::ALL),
            pages,
            large,
        );
    }

    fn map_to(&self, page: u64, leaf: Leaf, pages: u64, large: bool) {
        let range = PageRange::new(page * PAGE_BYTES, pages).unwrap();
        self.space.map(&[Run { range, leaf, large }], None).unwrap();
    }

    fn look<T>(&mut self, with: impl FnOnce(&mut View<'_>) -> T) -> T {
        let mappings = self.space.read();
        let check = Some(&self.check);
        let (tlb, tally) = (&mut self.tlb, &mut self.tally);
        with(&mut View::new(
            1,
            &mappings,
            tlb,
            &self.device,
            check,
            tally,
        ))
    }
}

#[test]
fn a_stale_translation_that_is_used_is_found() {
    let mut bench = Bench::new();
    bench.map(1, 1, 1, false);
    assert_eq!(bench.look(|view| view.load(PAGE_BYTES)), Ok(0));
    let before = bench.space.read().epoch;
    let all = [PageRange::ALL];
    bench
        .space
        .take_back(&mut Rest::all(&all), Rule::Unmap, None);
    assert!(bench.look(|view| view.load(PAGE_BYTES)).is_err());
    assert_eq!(bench.counters.stale_accesses.get(), 0);
    let now = bench.space.read().epoch;
    bench.tlb.revive(before, now);
    assert_eq!(bench.look(|view| view.load(PAGE_BYTES)), Ok(0));
    assert_eq!(bench.counters.stale_accesses.get(), 1);
    // A translation to another frame is as stale as a translation to none.
    bench.map(1, 2, 1, false);
    assert_eq!(bench.look(|view| view.load(PAGE_BYTES)), Ok(0));
    assert_eq!(bench.counters.stale_accesses.get(), 2);
}

#[test]
fn each_stale_leaf_of_those_that_are_used_at_once_is_found() {
    let mut bench = Bench::new();
    bench.map(1, 1, 4, false);
    let mut bytes = [0; 4 * FRAME_BYTES];
    assert!(bench.look(|view| view.read(PAGE_BYTES, &mut bytes)).is_ok());
    let before = bench.space.read().epoch;
    let all = [PageRange::ALL];
    bench
        .space
        .take_back(&mut Rest::all(&all), Rule::Unmap, None);
    let now = bench.space.read().epoch;
    bench.tlb.revive(before, now);
    bench.map(1, 1, 1, false);
    bench.map(3, 3, 1, false);
    assert!(bench.look(|view| view.read(PAGE_BYTES, &mut bytes)).is_ok());
    assert_eq!(bench.counters.stale_accesses.get(), 2);
}

#[test]
fn leaves_are_counted_one_by_one_and_bytes_where_they_lie() {
    let mut bench = Bench::new();
    bench.map(1, 1, 2, false);
    bench.map_to(3, Leaf::new(Place::Device, 3, rights::ALL), 2, false);
    bench.map(5, 5, 1, false);
    let from = 2 * PAGE_BYTES - 100;
    let numbers = (0..249_u8).cycle();
    let bytes: Vec<u8> = numbers.take(3 * FRAME_BYTES + 200).collect();
    for (hits, misses) in [(0, 5), (5, 0)] {
        bench.tally = Tally::default();
        bench.look(|view| view.write(from, &bytes)).unwrap();
        assert_eq!((bench.tally.hits, bench.tally.misses), (hits, misses));
        assert_eq!(bench.tally.device_bytes, 2 * PAGE_BYTES);
        assert_eq!(bench.tally.system_bytes, PAGE_BYTES + 200);
    }
    let mut read = vec![0; bytes.len()];
    bench.look(|view| view.read(from, &mut read)).unwrap();
    assert_eq!(read, bytes);
}

#[test]
fn a_hole_and_a_page_that_may_not_be_written_fault_where_they_are() {
    let mut bench = Bench::new();
    bench.map(1, 1, 3, false);
    bench.map(5, 5, 2, false);
    bench.map_to(6, Leaf::new(Place::System, 6, rights::READ), 1, false);
    bench.map(7, 7, 1, false);
    let mut bytes = [3; 3 * FRAME_BYTES];
    let fault = |page, access| Fault {
        address: page * PAGE_BYTES,
        access,
    };
    // Twice: entries that are in the TLB already must not hide anything.
    for _ in 0..2 {
        let hole = bench.look(|view| view.read(2 * PAGE_BYTES + 5, &mut bytes));
        assert_eq!(hole, Err(fault(4, rights::READ)));
        assert!(bench
            .look(|view| view.read(5 * PAGE_BYTES, &mut bytes))
            .is_ok());
        let protected = bench.look(|view| view.write(5 * PAGE_BYTES, &[7; 3 * FRAME_BYTES]));
        assert_eq!(protected, Err(fault(6, rights::WRITE)));
        assert_eq!(bench.look(|view| view.load(5 * PAGE_BYTES)), Ok(0));
    }
}

#[test]
fn a_write_from_a_large_leaf_into_a_hole_writes_nothing() {
    let mut bench = Bench::new();
    bench.map(512, 512, 512, true);
    let last = 1023 * PAGE_BYTES;
    let fault = bench.look(|view| view.write(last, &[7; FRAME_BYTES + 1]));
    assert_eq!(fault.unwrap_err().address, 1024 * PAGE_BYTES);
    assert_eq!(bench.look(|view| view.load(last)), Ok(0));
}

#[test]
fn a_write_that_lacks_its_last_page_writes_nothing() {
    let mut bench = Bench::new();
    bench.map(1, 1, 2, false);
    let bytes = [7; 3 * FRAME_BYTES];
    let fault = bench
        .look(|view| view.write(PAGE_BYTES + 5, &bytes))
        .unwrap_err();
    assert_eq!(fault.address, 3 * PAGE_BYTES);
    assert_eq!(bench.look(|view| view.load(PAGE_BYTES + 5)), Ok(0));
    assert!(bench
        .look(|view| view.reserve(PAGE_BYTES, 2 * PAGE_BYTES))
        .is_ok());
    assert!(bench
        .look(|view| view.reserve(PAGE_BYTES, 2 * PAGE_BYTES + 1))
        .is_err());
}

#[test]
fn bytes_are_copied_across_leaves_also_where_two_share_an_entry_of_the_tlb() {
    let mut bench = Bench::new();
    bench.map(1, 1, 3, false);
    bench.map(5, 5, 3, false);
    let same = tlb::page_with_the_entry_of(1);
    bench.map(same, 9, 3, false);
    let bytes: Vec<u8> = (0..9000_u32).map(|i| (i % 251) as u8).collect();
    let source = PAGE_BYTES + 77;
    bench.look(|view| view.write(source, &bytes)).unwrap();
    for destination in [
        5 * PAGE_BYTES + 1,
        same * PAGE_BYTES + 77,
        same * PAGE_BYTES,
    ] {
        bench.tally = Tally::default();
        bench
            .look(|view| view.copy(source, destination, bytes.len()))
            .unwrap();
        assert_eq!(bench.tally.system_bytes, 2 * bytes.len() as u64);
        let mut read = vec![0; bytes.len() + 1];
        bench
            .look(|view| view.read(destination, &mut read))
            .unwrap();
        assert_eq!(read.split_last(), Some((&0, bytes.as_slice())));
        let cleared = vec![0; bytes.len()];
        bench
            .look(|view| view.write(destination, &cleared))
            .unwrap();
    }
}

#[test]
fn a_copy_faults_where_a_page_is_missing_on_either_side() {
    let mut bench = Bench::new();
    bench.map(1, 1, 2, false);
    bench.map(5, 5, 1, false);
    let mut copy = |from: u64, to: u64, bytes| {
        bench.look(|view| view.copy(from * PAGE_BYTES, to * PAGE_BYTES, bytes))
    };
    let fault = |page, access| Fault {
        address: page * PAGE_BYTES,
        access,
    };
    assert_eq!(copy(1, 5, 4097), Err(fault(6, rights::WRITE)));
    assert_eq!(copy(5, 1, 4097), Err(fault(6, rights::READ)));
    assert_eq!(copy(5, 1, 4096), Ok(()));
}

#[test]
fn a_large_leaf_across_regions_of_guest_memory_is_used_page_by_page() {
    let mut bench = Bench::new();
    bench.map(0, 0, 512, true);
    bench.map(512, 512, 512, true);
    let bytes: Vec<u8> = (0..1_u32 << 21).map(|i| (i % 253) as u8).collect();
    for (start, misses) in [(0, 512), (512, 1)] {
        bench.tally = Tally::default();
        bench
            .look(|view| view.write(start * PAGE_BYTES, &bytes))
            .unwrap();
        assert_eq!(bench.tally.misses, misses);
        let mut read = vec![0; bytes.len()];
        bench
            .look(|view| view.read(start * PAGE_BYTES, &mut read))
            .unwrap();
        assert_eq!(read, bytes);
    }
}

#[test]
fn an_address_that_is_not_aligned_is_not_changed_atomically() {
    let mut bench = Bench::new();
    bench.map(1, 1, 1, false);
    let add = |old: u64| Some(old + 1);
    assert_eq!(
        bench.look(|view| view.update(PAGE_BYTES, Width::U64, add)),
        Ok(0)
    );
    assert!(bench
        .look(|view| view.update(PAGE_BYTES + 4, Width::U64, add))
        .is_err());
    assert_eq!(
        bench.look(|view| view.update(PAGE_BYTES + 4, Width::U32, add)),
        Ok(0)
    );
    assert_eq!(bench.look(|view| view.load(PAGE_BYTES)), Ok(1 << 32 | 1));
}

#[test]
fn pages_are_expected_as_far_as_was_announced() {
    let mut bench = Bench::new();
    bench.look(|view| {
        let fault = |address, access| Fault { address, access };
        assert_eq!(view.expected_pages(&fault(5, rights::READ)), 1);
        view.expect(PAGE_BYTES + 1, 4 * PAGE_BYTES, rights::READ);
        view.expect(1 << 30, u64::MAX, rights::WRITE);
        let pages = |address, access| view.expected_pages(&fault(address, access));
        assert_eq!(pages(PAGE_BYTES + 1, rights::READ), 5);
        assert_eq!(pages(4 * PAGE_BYTES, rights::READ), 2);
        assert_eq!(pages(PAGE_BYTES + 1, rights::WRITE), 1);
        assert_eq!(pages(9 * PAGE_BYTES, rights::READ), 1);
        assert_eq!(pages(1 << 30, rights::WRITE), u32::MAX);
    });
}

//! The cost of a load with translation, against the same load without.

use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

use hmm_bench::{Bench, Per, Turn};
use vhost_device_hmm::device::memory::DeviceMemory;
use vhost_device_hmm::device::mmu::{Budget, Leaf, PageRange, Place, Run};
use vhost_device_hmm::device::operations::{Fault, Memory};
use vhost_device_hmm::device::space::{Epochs, Space};
use vhost_device_hmm::device::statistics::Tally;
use vhost_device_hmm::device::tlb::Tlb;
use vhost_device_hmm::device::view::View;
use vhost_device_hmm::device::DeviceConfig;
use virtio_hmm_spec::wire::{rights, PAGE_BYTES};

use crate::machine::{all_of, index, Leaves, Machine, BASE, FRAMES};

/// Loads in a round.
const LOADS: u64 = 1 << 20;

/// Pages that any TLB for small leaves holds.
const FEW: u64 = 512;

/// Measures hits and misses.
pub(crate) fn measure(bench: &mut Bench) {
    bench.group("translation");
    for (name, leaves, pages) in [
        ("load, TLB hit, 4 KiB leaves", Leaves::Small, FEW),
        ("load, TLB hit, 2 MiB leaves", Leaves::Large, FEW),
        // Each page once: its entry has been evicted by the time it is loaded again.
        ("load, TLB miss, 4 KiB leaves", Leaves::Small, FRAMES),
    ] {
        loads(bench, name, leaves, pages);
    }
}

/// Loads one word from each of `pages` pages, over and over.
fn loads(bench: &mut Bench, name: &str, leaves: Leaves, pages: u64) {
    let machine = Machine::new();
    let device = Arc::new(DeviceMemory::new(2 << 20).expect("there is memory"));
    let budget = Budget::new(DeviceConfig::default().table_memory);
    let space = Space::new(1, &budget, &Epochs::new()).expect("within the budget");
    let everything = Run {
        range: PageRange::new(BASE, FRAMES).expect("a range"),
        leaf: Leaf::new(Place::System, 0, rights::ALL),
        large: leaves == Leaves::Large,
    };
    space.map(&[everything], None).expect("within the budget");
    let mut tlb = Tlb::new(Arc::clone(&device), Arc::clone(&machine.system));
    let words = all_of(&machine.system).words();
    // Each word is in a different cache line of its page, or they would compete for few cache sets.
    let offset = |page: u64| page * PAGE_BYTES + page * 64 % PAGE_BYTES;
    bench.pair(name, Per::Times(LOADS), "plain load", |turn| {
        let start = Instant::now();
        let mut sum = 0_u64;
        match turn {
            Turn::Measured => {
                let mappings = space.read();
                let mut tally = Tally::default();
                let mut view = View::new(1, &mappings, &mut tlb, &device, None, &mut tally);
                for _ in 0..LOADS / pages {
                    for page in 0..pages {
                        let word = view.load(BASE + offset(page)).map_err(text)?;
                        sum = sum.wrapping_add(word);
                    }
                }
            }
            Turn::Reference => {
                for _ in 0..LOADS / pages {
                    for page in 0..pages {
                        let word = words[index(offset(page) / 8)].load(Ordering::Relaxed);
                        sum = sum.wrapping_add(word);
                    }
                }
            }
        }
        black_box(sum);
        Ok::<_, String>(start.elapsed())
    });
}

fn text(fault: Fault) -> String {
    format!("{:#x} is not mapped", fault.address)
}

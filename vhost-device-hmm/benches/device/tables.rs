//! Page tables: the cost of mapping, unmapping and looking up, and their size.

use std::convert::Infallible;
use std::hint::black_box;
use std::time::Instant;

use hmm_bench::{Bench, Better, Per, Unit};
use vhost_device_hmm::device::mmu::{Budget, Leaf, PageRange, PageTable, Place, Run};
use vhost_device_hmm::device::request::Command;
use vhost_device_hmm::device::DeviceConfig;
use virtio_hmm_spec::wire::command::{MapEntry, RangeEntry};
use virtio_hmm_spec::wire::{rights, LARGE_PAGES, PAGE_BYTES, PAGE_SHIFT};
use zerocopy::little_endian::U64;

use crate::machine::{index, map_entry, shuffled, Leaves, Machine, BASE, FRAMES};

/// The space that is mapped and unmapped.
const SPACE: u32 = 7;

/// Small leaves in a round: 4 GiB of them.
const SMALL: u64 = 1 << 20;

/// Large leaves in a round: 16 GiB of them, because they take little time.
const LARGE: u64 = 8 << 10;

/// Measures requests, then a table by itself.
pub(crate) fn measure(bench: &mut Bench) {
    bench.group("page tables");
    let machine = Machine::new();
    machine.execute(Command::SpaceCreate { space: SPACE });
    for (leaves, count) in [(Leaves::Small, SMALL), (Leaves::Large, LARGE)] {
        let pages = 1_u64 << leaves.order();
        let of = leaves.name();
        let range = RangeEntry {
            address: U64::new(BASE),
            pages: U64::new(count * pages),
        };
        let map = |entries: &[MapEntry]| machine.map(SPACE, entries);
        let unmap = || {
            machine.execute(Command::Unmap {
                space: SPACE,
                ranges: &[range],
            })
        };
        let scattered = entries(leaves, count);
        // One entry for each contiguous run, as often as it fits.
        let run = FRAMES / pages;
        let runs: Vec<_> = (0..count / run)
            .map(|i| map_entry(BASE + i * FRAMES * PAGE_BYTES, 0, FRAMES, leaves))
            .collect();
        for (name, entries) in [("an entry each", &scattered), ("in long runs", &runs)] {
            bench.alone(
                &format!("map a leaf, {of}, {name}"),
                Per::Times(count),
                || {
                    let time = map(entries);
                    unmap();
                    Ok::<_, Infallible>(time)
                },
            );
        }
        bench.alone(&format!("unmap a leaf, {of}"), Per::Times(count), || {
            map(&scattered);
            Ok::<_, Infallible>(unmap())
        });
        let what = (Unit::Percent, Better::Lower);
        bench.figure(&format!("table bytes of mapped bytes, {of}"), what, || {
            let before = machine.accelerator.statistics();
            map(&scattered);
            let after = machine.accelerator.statistics();
            unmap();
            let grown = |now: U64, then: U64| float(now.get() - then.get());
            let tables = grown(after.table_bytes, before.table_bytes);
            let mapped = grown(after.mapped_pages, before.mapped_pages) * float(PAGE_BYTES);
            Ok::<_, Infallible>(100.0 * tables / mapped)
        });
        look_up(bench, leaves, count);
    }
}

/// Scattered frames at consecutive addresses.
fn entries(leaves: Leaves, count: u64) -> Vec<MapEntry> {
    let pages = 1_u64 << leaves.order();
    let frames = shuffled(FRAMES / pages);
    let frames = frames.iter().cycle();
    (0..count)
        .zip(frames)
        .map(|(i, frame)| map_entry(BASE + i * pages * PAGE_BYTES, frame * pages, pages, leaves))
        .collect()
}

/// Looks pages up in random order.
fn look_up(bench: &mut Bench, leaves: Leaves, count: u64) {
    let budget = Budget::new(DeviceConfig::default().table_memory);
    let mut table = PageTable::new(&budget).expect("within the budget");
    let pages = 1_u64 << leaves.order();
    let run = Run {
        range: PageRange::new(BASE, count * pages).expect("a range"),
        leaf: Leaf::new(Place::System, 0, rights::ALL),
        large: leaves == Leaves::Large,
    };
    table.map(&[run], |_| ()).expect("within the budget");
    let first = BASE >> PAGE_SHIFT;
    let order: Vec<u64> = shuffled(count).iter().map(|i| first + i * pages).collect();
    let name = format!("look up a page, {}, random", leaves.name());
    bench.alone(&name, Per::Times(count), || {
        let start = Instant::now();
        let mut sum = 0_u64;
        for &page in &order {
            let found = table.find(page).ok_or("a page was not found")?;
            sum = sum.wrapping_add(found.frame_of(page));
        }
        black_box(sum);
        Ok::<_, &str>(start.elapsed())
    });
    debug_assert!(index(count) == order.len() && pages <= LARGE_PAGES);
}

/// For ratios; the numbers have far fewer than 53 bits.
#[expect(clippy::cast_precision_loss)]
fn float(number: u64) -> f64 {
    number as f64
}

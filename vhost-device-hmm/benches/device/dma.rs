//! Copy lists against `memcpy` and `memset` of the same bytes.

use std::time::{Duration, Instant};

use hmm_bench::{Bench, Per, Turn};
use vhost_device_hmm::device::memory::DeviceMemory;
use vhost_device_hmm::device::request::Transfer;
use vhost_device_hmm::device::{Accelerator, DeviceConfig};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::dma::{DmaItem, ItemResult, Kind};
use virtio_hmm_spec::wire::PAGE_BYTES;
use zerocopy::little_endian::{U32, U64};

use crate::machine::{all_of, bytes_of, shuffled, Machine, Plain, MEMORY};

/// The bytes that one round moves: more than caches hold, on both sides together.
const BYTES: u64 = 64 << 20;

/// A page, a typical contiguous run of a process's pages, and a huge page.
const SIZES: [(&str, u64); 3] = [("4 KiB", 1), ("64 KiB", 16), ("2 MiB", 512)];

/// Measures every kind of copy with every size of item.
pub(crate) fn measure(bench: &mut Bench) {
    bench.group("copy lists");
    let machine = Machine::new();
    // The plain copy needs a destination like device memory.
    let other = DeviceMemory::new(MEMORY).expect("there is memory");
    let other = Plain(other.slice(0, MEMORY / PAGE_BYTES).expect("all of it"));
    let system = all_of(&machine.system);
    for (size, pages) in SIZES {
        let runs = scattered(pages);
        for (name, kind) in [
            ("to the device", Kind::ToDevice),
            ("to system memory", Kind::ToSystem),
        ] {
            let items = items(kind, pages, &runs);
            bench.pair(
                &format!("{name}, items of {size}"),
                Per::Bytes(BYTES),
                "memcpy",
                |turn| match turn {
                    Turn::Measured => carry_out(&machine.accelerator, &items),
                    Turn::Reference => Ok(timed(|| {
                        for &(from, to) in &runs {
                            let from = bytes_of(from, pages);
                            let to = bytes_of(to, pages);
                            match kind {
                                Kind::ToSystem => other.part(from).copy_to(&system.part(to)),
                                _ => system.part(from).copy_to(&other.part(to)),
                            }
                        }
                    })),
                },
            );
        }
        let items = items(Kind::Clear, pages, &runs);
        bench.pair(
            &format!("clear, items of {size}"),
            Per::Bytes(BYTES),
            "memset",
            |turn| match turn {
                Turn::Measured => carry_out(&machine.accelerator, &items),
                Turn::Reference => Ok(timed(|| {
                    for &(_, to) in &runs {
                        other.part(bytes_of(to, pages)).write_all(0);
                    }
                })),
            },
        );
    }
}

/// Scattered sources and destinations of runs of `pages` pages.
fn scattered(pages: u64) -> Vec<(u64, u64)> {
    let count = BYTES / (pages * PAGE_BYTES);
    let places = MEMORY / (pages * PAGE_BYTES);
    let (from, to) = (shuffled(places), shuffled(places));
    // Two different parts of the same order.
    let pairs = from.into_iter().zip(to.into_iter().rev());
    pairs
        .take(usize::try_from(count).expect("a size"))
        .map(|(from, to)| (from * pages, to * pages))
        .collect()
}

fn items(kind: Kind, pages: u64, runs: &[(u64, u64)]) -> Vec<DmaItem> {
    let item = |&(from, to)| DmaItem {
        kind: U32::new(kind.raw()),
        pages: U32::new(u32::try_from(pages).expect("few")),
        source: U64::new(if kind == Kind::Clear { 0 } else { from }),
        destination: U64::new(to),
    };
    runs.iter().map(item).collect()
}

/// Submits the items, as many at a time as the device takes.
fn carry_out(accelerator: &Accelerator, items: &[DmaItem]) -> Result<Duration, String> {
    let mut results: Vec<ItemResult> = Vec::new();
    let mut time = Duration::ZERO;
    for items in items.chunks(DeviceConfig::MAX_ITEMS as usize) {
        let start = Instant::now();
        let done = accelerator.transfer(Ok(Transfer::Copy { items }), &mut results);
        time += start.elapsed();
        done.map_err(|refusal| format!("the list was refused: {refusal:?}"))?;
        let failed = |result: &&ItemResult| result.status.get() != Status::Ok.raw();
        if let Some(result) = results.iter().find(failed) {
            return Err(format!("an item failed: {result:?}"));
        }
    }
    Ok(time)
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

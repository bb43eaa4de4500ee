//! How costs grow with the number of spaces and mappings, and with the size of device memory.
//!
//! The first point of each curve is the reference of the others: a ratio near 1 means that the cost
//! does not grow.

use std::fmt::Display;
use std::time::{Duration, Instant};

use hmm_bench::{resident_mebibytes, Bench, Better, Per, Turn, Unit};
use vhost_device_hmm::device::request::{Command, Transfer};
use vhost_device_hmm::device::{Accelerator, DeviceConfig};
use virtio_hmm_spec::wire::command::{MapEntry, RangeEntry, Status};
use virtio_hmm_spec::wire::dma::{DmaItem, ItemResult, Kind};
use virtio_hmm_spec::wire::operation::{Element, Sum};
use virtio_hmm_spec::wire::{LARGE_PAGES, PAGE_BYTES};
use zerocopy::little_endian::{U32, U64};

use crate::machine::{map_entry, shuffled, Leaves, Machine, BASE, FRAMES};

/// The first space that is made here.
const FIRST: u32 = 16;

/// Operations in a round.
const TIMES: usize = 512;

/// Jobs that are submitted at a time. The time of a single job is mostly the wake-up of another
/// thread, which depends on where the threads run.
const AT_ONCE: usize = 64;

/// Measures every curve.
pub(crate) fn measure(bench: &mut Bench) {
    bench.group("scale");
    spaces(bench);
    mappings(bench);
    device_memory(bench);
}

/// One point of a curve against the first one. `round` is given the one that it is to run.
fn point<T, E: Display>(
    bench: &mut Bench,
    (what, size, first): (&str, &str, &str),
    per: Per,
    (this, reference): (&T, Option<&T>),
    mut round: impl FnMut(&T) -> Result<Duration, E>,
) {
    let name = format!("{what}, {size}");
    match reference {
        None => bench.alone(&name, per, || round(this)),
        Some(reference) => bench.pair(&name, per, first, |turn| match turn {
            Turn::Measured => round(this),
            Turn::Reference => round(reference),
        }),
    }
}

/// A machine with additional spaces, each with some pages mapped.
struct Crowd {
    machine: Machine,
    spaces: Vec<u32>,
}

impl Crowd {
    fn new(count: u32) -> Self {
        let machine = Machine::with(DeviceConfig {
            memory: 2 << 20,
            max_spaces: count + FIRST,
            ..DeviceConfig::default()
        });
        let spaces: Vec<u32> = (FIRST..FIRST + count).collect();
        for &space in &spaces {
            machine.execute(Command::SpaceCreate { space });
            let entries = &[map_entry(BASE, 0, LARGE_PAGES, Leaves::Small)];
            machine.execute(Command::Map { space, entries });
        }
        Self { machine, spaces }
    }

    /// Visits all spaces in turn until enough operations are done.
    fn round<E>(&self, mut each: impl FnMut(u32) -> Result<Duration, E>) -> Result<Duration, E> {
        let turns = self.spaces.iter().cycle();
        turns.take(TIMES).map(|&space| each(space)).sum()
    }

    fn run(&self) -> Result<Duration, String> {
        let tiny = Sum {
            source: BASE,
            count: 1,
            element: Element::U64,
        };
        let turns = self.spaces.iter().cycle();
        let jobs: Vec<_> = turns
            .map(|&space| (space, tiny.into()))
            .take(TIMES)
            .collect();
        let batches = jobs.chunks(AT_ONCE);
        batches.map(|jobs| self.machine.run_all(jobs)).sum()
    }

    fn change(&self) -> Result<Duration, String> {
        self.round(|space| Ok(change(&self.machine, space, BASE)))
    }
}

/// Unmaps a page and maps it again.
fn change(machine: &Machine, space: u32, address: u64) -> Duration {
    let ranges = &[RangeEntry {
        address: U64::new(address),
        pages: U64::new(1),
    }];
    let entries = &[map_entry(address, 0, 1, Leaves::Small)];
    machine.execute(Command::Unmap { space, ranges })
        + machine.execute(Command::Map { space, entries })
}

fn spaces(bench: &mut Bench) {
    let first = Crowd::new(1);
    for count in [1, 8, 64, 512] {
        let crowd = (count > 1).then(|| Crowd::new(count));
        let of = match &crowd {
            Some(crowd) => (crowd, Some(&first)),
            None => (&first, None),
        };
        let size = format!("{count} space{}", if count == 1 { "" } else { "s" });
        let named = |what| (what, size.as_str(), "1 space");
        let per = Per::Times(TIMES as u64);
        point(bench, named("a job among 64"), per, of, Crowd::run);
        point(bench, named("unmap and map a page"), per, of, Crowd::change);
    }
}

/// How the pages of a space are mapped.
struct Mapped {
    name: &'static str,
    space: u32,
    /// Pages from the start of one run of mapped pages to the start of the next.
    stride: u64,
    /// Pages in a run.
    run: u64,
    runs: u64,
}

/// 1 GiB in pages.
const GIB: u64 = (1 << 30) / PAGE_BYTES;

const MAPPED: [Mapped; 3] = [
    Mapped {
        name: "1 GiB mapped",
        space: FIRST,
        stride: FRAMES,
        run: FRAMES,
        runs: GIB / FRAMES,
    },
    Mapped {
        name: "64 GiB mapped",
        space: FIRST + 1,
        stride: FRAMES,
        run: FRAMES,
        runs: 64 * GIB / FRAMES,
    },
    Mapped {
        name: "a page in each 64 MiB of 1 TiB",
        space: FIRST + 2,
        stride: GIB / 16,
        run: 1,
        runs: 1024 * 16,
    },
];

impl Mapped {
    fn map(&self, machine: &Machine) {
        let space = self.space;
        machine.execute(Command::SpaceCreate { space });
        let entries: Vec<MapEntry> = (0..self.runs)
            .map(|run| {
                let address = BASE + run * self.stride * PAGE_BYTES;
                map_entry(address, 0, self.run, Leaves::Small)
            })
            .collect();
        machine.map(space, &entries);
    }

    /// Addresses of mapped pages, scattered.
    fn pages(&self) -> Vec<u64> {
        let order = shuffled(self.runs * self.run.min(1 << 14));
        let address = |place: u64| {
            let (run, page) = (place % self.runs, place / self.runs);
            BASE + (run * self.stride + page) * PAGE_BYTES
        };
        let pages = order.into_iter().map(address);
        pages.take(TIMES).collect()
    }
}

fn mappings(bench: &mut Bench) {
    let machine = Machine::with(DeviceConfig {
        memory: 2 << 20,
        table_memory: 1 << 30,
        ..DeviceConfig::default()
    });
    let resident = || resident_mebibytes(std::process::id());
    let [first, large, _] = &MAPPED;
    for mapped in &MAPPED {
        let before = resident();
        mapped.map(&machine);
        let after = resident();
        if mapped.space == large.space {
            // The larger of the two that have every page, so that memory left over in the allocator
            // counts for little.
            let name = "resident memory of the daemon for 1 GiB mapped, 4 KiB leaves";
            match (before, after) {
                (Ok(before), Ok(after)) => bench.gathered(
                    name,
                    (Unit::Mebibytes, Better::Lower),
                    vec![(after - before) / 64.0],
                ),
                (Err(error), _) | (_, Err(error)) => {
                    bench.figure(name, (Unit::Mebibytes, Better::Lower), || Err(&error));
                }
            }
        }
        let of = (mapped, (mapped.space != first.space).then_some(first));
        let named = |what| (what, mapped.name, first.name);
        let per = Per::Times(TIMES as u64);
        let pages: Vec<_> = MAPPED.iter().map(Mapped::pages).collect();
        let pages_of = |mapped: &Mapped| &pages[(mapped.space - FIRST) as usize];
        point(bench, named("unmap and map a page"), per, of, |mapped| {
            let pages = pages_of(mapped).iter();
            Ok::<_, String>(
                pages
                    .map(|&page| change(&machine, mapped.space, page))
                    .sum(),
            )
        });
        point(bench, named("a job on another page"), per, of, |mapped| {
            let jobs = pages_of(mapped).iter().map(|&source| {
                let tiny = Sum {
                    source,
                    count: 1,
                    element: Element::U64,
                };
                machine.run_all(&[(mapped.space, tiny.into())])
            });
            jobs.sum::<Result<_, _>>()
        });
    }
}

/// A device with a given amount of memory, and a guest.
struct Large {
    machine: Machine,
    frames: u64,
}

/// Items that are copied, and cleared, in a round.
const ITEMS: u64 = 4096;
const _: () = assert!(ITEMS <= FRAMES);

impl Large {
    fn new(memory: u64) -> Self {
        let machine = Machine::with(DeviceConfig {
            memory,
            ..DeviceConfig::default()
        });
        Self {
            machine,
            frames: memory / PAGE_BYTES,
        }
    }

    /// Carries out an item for each of some pages that are scattered over the device's memory.
    fn carry_out(&self, kind: Kind) -> Result<Duration, String> {
        let reads = kind != Kind::Clear;
        let items: Vec<DmaItem> = shuffled(ITEMS)
            .into_iter()
            .map(|place| DmaItem {
                kind: U32::new(kind.raw()),
                pages: U32::new(1),
                source: U64::new(if reads { place } else { 0 }),
                destination: U64::new(place * (self.frames / ITEMS)),
            })
            .collect();
        let mut results: Vec<ItemResult> = Vec::new();
        let start = Instant::now();
        let done = self
            .machine
            .accelerator
            .transfer(Ok(Transfer::Copy { items: &items }), &mut results);
        let time = start.elapsed();
        done.map_err(|refusal| format!("the list was refused: {refusal:?}"))?;
        let is_done = |result: &ItemResult| result.status.get() == Status::Ok.raw();
        if results.iter().all(is_done) {
            Ok(time)
        } else {
            Err("an item failed".into())
        }
    }
}

fn device_memory(bench: &mut Bench) {
    const SIZES: [(&str, u64); 4] = [
        ("64 MiB", 64 << 20),
        ("1 GiB", 1 << 30),
        ("8 GiB", 8 << 30),
        ("64 GiB", 64 << 30),
    ];
    let (smallest, bytes) = SIZES[0];
    let reference = format!("{smallest} of device memory");
    let first = Large::new(bytes);
    for (name, bytes) in SIZES {
        let is_first = name == smallest;
        let large = (!is_first).then(|| Large::new(bytes));
        let of = match &large {
            Some(large) => (large, Some(&first)),
            None => (&first, None),
        };
        let size = format!("{name} of device memory");
        let named = |what| (what, size.as_str(), reference.as_str());
        point(
            bench,
            named("make a device"),
            Per::Times(1),
            (&bytes, (!is_first).then_some(&SIZES[0].1)),
            |&memory| make(memory),
        );
        let per = Per::Bytes(ITEMS * PAGE_BYTES);
        point(
            bench,
            named("copy scattered pages to it"),
            per,
            of,
            |large| large.carry_out(Kind::ToDevice),
        );
        point(
            bench,
            named("clear scattered pages of it"),
            per,
            of,
            |large| large.carry_out(Kind::Clear),
        );
    }
    // No test writes all of it at once: memory that is not written is not allocated.
    let what = (Unit::Mebibytes, Better::Lower);
    let name = "resident memory of a device, 64 GiB of device memory";
    bench.figure(name, what, || {
        let text = |error: std::io::Error| error.to_string();
        let before = resident_mebibytes(std::process::id()).map_err(text)?;
        let accelerator = Accelerator::new(DeviceConfig {
            memory: 64 << 30,
            ..DeviceConfig::default()
        });
        let accelerator = accelerator.map_err(|error| error.to_string())?;
        let after = resident_mebibytes(std::process::id()).map_err(text)?;
        drop(accelerator);
        Ok::<_, String>((after - before).max(0.0))
    });
}

/// Makes a device, and drops it again.
fn make(memory: u64) -> Result<Duration, String> {
    let config = DeviceConfig {
        memory,
        ..DeviceConfig::default()
    };
    let start = Instant::now();
    let accelerator = Accelerator::new(config).map_err(|error| error.to_string())?;
    let time = start.elapsed();
    drop(accelerator);
    Ok(time)
}

//! Changes of memory that the device has mapped, compared with memory that it has not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, Result};
use hmm::{page_size, work, Space};
use hmm_bench::{Bench, Better, Per, Turn, Unit};
use hmm_tool::buffer::{Buffer, Pages, LARGE};

use super::traffic::Traffic;

/// Mappings of one page in a round.
const SINGLE: usize = 32;

/// The bytes that each of the jobs reads that keep the engines busy.
const BUSY: usize = 64 << 20;

/// How many of these jobs are in flight.
const BUSY_JOBS: usize = 8;

/// The change that the process makes to its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Unmap,
    Protect,
}

impl Change {
    fn name(self) -> &'static str {
        match self {
            Self::Unmap => "munmap",
            Self::Protect => "mprotect",
        }
    }

    /// Makes the change. Returns how long it took.
    fn make(self, mut memory: Vec<Buffer>) -> Result<Duration> {
        let start = Instant::now();
        match self {
            Self::Unmap => drop(memory),
            Self::Protect => {
                for buffer in &mut memory {
                    buffer.protect()?;
                }
                let time = start.elapsed();
                drop(memory);
                return Ok(time);
            }
        }
        Ok(start.elapsed())
    }
}

/// Several pieces of memory, which change one after the other.
#[derive(Clone)]
struct Lot {
    name: String,
    count: usize,
    bytes: usize,
    pages: Pages,
}

impl Lot {
    /// Memory with a page at each address.
    fn memory(&self) -> Result<Vec<Buffer>> {
        let new = |_| {
            let mut buffer = Buffer::new(self.bytes, self.pages)?;
            let step = match self.pages {
                Pages::Small => page_size(),
                Pages::Large => LARGE,
            };
            for page in buffer.bytes_mut().chunks_mut(step) {
                page[0] = 1;
            }
            Ok(buffer)
        };
        (0..self.count).map(new).collect()
    }

    fn per(&self) -> Per {
        Per::Times(self.count as u64)
    }
}

/// Has the device map all of it.
fn map(space: &Space, memory: &[Buffer]) -> Result<()> {
    memory
        .iter()
        .try_for_each(|buffer| Ok(space.run(work::sum(buffer.words())).map(|_| ())?))
}

/// A small amount of memory.
fn page() -> Lot {
    Lot {
        name: "one page".into(),
        count: SINGLE,
        bytes: page_size(),
        pages: Pages::Small,
    }
}

/// A large amount of memory.
fn bulk(bytes: usize, pages: Pages) -> Lot {
    Lot {
        name: format!("{} MiB in {}", bytes >> 20, pages.name()),
        count: 1,
        bytes,
        pages,
    }
}

/// Measures changes of a small amount, and of `mapped` bytes.
pub(super) fn measure(bench: &mut Bench, space: &Space, mapped: usize) {
    bench.group("munmap and mprotect of what the device has mapped");
    let lots = [page(), bulk(mapped, Pages::Large)];
    for change in [Change::Unmap, Change::Protect] {
        for lot in &lots {
            one_device(bench, space, change, lot, "idle");
        }
    }
    // Filling as much memory with small pages takes long, and the kind of change does not matter.
    let small = bulk(mapped, Pages::Small);
    one_device(bench, space, Change::Unmap, &small, "idle");
    let busy = while_engines_run(space, || {
        for change in [Change::Unmap, Change::Protect] {
            for lot in &lots {
                one_device(bench, space, change, lot, "engines run");
            }
        }
    });
    if let Err(error) = busy {
        // These measurements are invalid: the engines did not run.
        let what = (Unit::Count, Better::Lower);
        bench.figure("engines that run", what, || Err(format!("{error:#}")));
    }
}

/// Measures changes of memory that two devices have mapped, of `mapped` bytes at most.
pub(super) fn measure_two(bench: &mut Bench, spaces: (&Space, &Space), mapped: usize) {
    bench.group("munmap of what two devices have mapped");
    for lot in [page(), bulk(mapped, Pages::Large)] {
        two_devices(bench, spaces, &lot);
    }
}

fn one_device(bench: &mut Bench, space: &Space, change: Change, lot: &Lot, engines: &str) {
    let name = format!("{}, {}, {engines}", change.name(), lot.name);
    let mut shares = Vec::new();
    let reference = "not mapped on the device";
    bench.pair(&name, lot.per(), reference, |turn| -> Result<Duration> {
        let memory = lot.memory()?;
        if turn == Turn::Reference {
            return change.make(memory);
        }
        map(space, &memory)?;
        let (traffic, time) = Traffic::of(space, || change.make(memory))?;
        let waited = traffic.grown(|all| all.driver.invalidate_nanoseconds);
        shares.push(100.0 * waited / (time.as_secs_f64() * 1e9));
        Ok(time)
    });
    // The first round is not counted among the repetitions.
    bench.gathered(
        &format!("  of it waiting for the promise, {name}"),
        (Unit::Percent, Better::Lower),
        shares.split_off(shares.len().min(1)),
    );
}

/// The same memory is mapped on two devices; the driver asks both before it waits for either.
fn two_devices(bench: &mut Bench, (first, second): (&Space, &Space), lot: &Lot) {
    let reference = "mapped on one of them";
    let (mut for_two, mut for_one) = (Vec::new(), Vec::new());
    bench.pair(
        &lot.name,
        lot.per(),
        reference,
        |turn| -> Result<Duration> {
            let memory = lot.memory()?;
            map(first, &memory)?;
            if turn == Turn::Measured {
                map(second, &memory)?;
            }
            let both = || Traffic::of(second, || Change::Unmap.make(memory));
            let (one, (other, time)) = Traffic::of(first, both)?;
            let waited = |traffic: &Traffic| traffic.grown(|all| all.driver.invalidate_nanoseconds);
            // The count is small.
            #[allow(clippy::cast_precision_loss)]
            let wait = (waited(&one) + waited(&other)) / lot.count as f64;
            match turn {
                Turn::Measured => for_two.push(wait),
                Turn::Reference => for_one.push(wait),
            }
            Ok(time)
        },
    );
    for (which, mut waits) in [("both promises", for_two), ("one promise", for_one)] {
        // The first round is not counted among the repetitions.
        bench.gathered(
            &format!("  waiting for {which}, {}", lot.name),
            (Unit::Nanoseconds, Better::Lower),
            waits.split_off(waits.len().min(1)),
        );
    }
}

/// Runs `body` while all engines have jobs on other memory.
fn while_engines_run(space: &Space, body: impl FnOnce()) -> Result<()> {
    let memory = Buffer::filled(space, BUSY, Pages::Large)?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let jobs = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                let sums = (0..BUSY_JOBS).map(|_| work::sum(memory.words()));
                for result in space.run_all(sums) {
                    result?;
                }
            }
            Ok(())
        });
        body();
        over.store(true, Ordering::Relaxed);
        jobs.join()
            .map_err(|_| anyhow!("the thread that kept the engines busy has panicked"))?
    })
}

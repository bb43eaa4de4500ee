//! Device faults: pages that the CPU has and the device has not mapped yet.

use std::time::Duration;

use anyhow::Result;
use hmm::{work, Space};
use hmm_bench::{Bench, Better, Per, Turn, Unit};
use hmm_tool::buffer::{Buffer, Pages, LARGE};

use super::timing::timed;
use super::traffic::Traffic;

/// Pages that are touched one by one.
const SINGLE: usize = 32;

/// Streams through memory: the bytes, and the number of jobs that share them.
const STREAMS: [(usize, usize); 2] = [(256 << 20, 1), (64 << 20, 8)];

/// Measures single faults and streams of them.
pub(super) fn measure(bench: &mut Bench, space: &Space) {
    bench.group("device faults");
    single(bench, space);
    for pages in [Pages::Small, Pages::Large] {
        for (bytes, jobs) in STREAMS {
            stream(bench, space, pages, (bytes, jobs));
        }
    }
}

/// One page by itself: the job on it, less the same job once the page is mapped.
fn single(bench: &mut Bench, space: &Space) {
    bench.alone(
        "one cold page",
        Per::Times(SINGLE as u64),
        || -> Result<Duration> {
            // Far from each other, so that no fault also maps the next page.
            let mut buffer = Buffer::new(SINGLE * LARGE, Pages::Small)?;
            for page in buffer.bytes_mut().chunks_mut(LARGE) {
                page[0] = 1;
            }
            let run = || {
                timed(|| {
                    let mut pages = buffer.words().chunks(LARGE / size_of::<u64>());
                    pages.try_for_each(|page| space.run(work::sum(&page[..8])).map(|_| ()))
                })
            };
            let cold = run()?;
            Ok(cold.saturating_sub(run()?))
        },
    );
}

/// Jobs that go through memory from its beginning to its end, side by side.
fn stream(bench: &mut Bench, space: &Space, pages: Pages, (bytes, jobs): (usize, usize)) {
    let what = format!(
        "{}, {jobs} job{}",
        pages.name(),
        if jobs == 1 { "" } else { "s" }
    );
    let size = format!("{} MiB", bytes >> 20);
    let mut seen: Vec<Cold> = Vec::new();
    let mut buffer = None;
    let rate = Per::Bytes(bytes as u64);
    bench.pair(
        &format!("cold {size}, {what}"),
        rate,
        "warm",
        |turn| -> Result<_> {
            let memory = match (turn, buffer.take()) {
                (Turn::Reference, Some(warm)) => warm,
                // The memory of the last round is freed before more is allocated.
                (_, last) => {
                    drop(last);
                    Buffer::filled(space, bytes, pages)?
                }
            };
            let part = bytes / size_of::<u64>() / jobs;
            let run = || -> Result<Duration> {
                Ok(timed(|| {
                    let results = space.run_all(memory.words().chunks(part).map(work::sum));
                    results
                        .into_iter()
                        .try_for_each(|result| result.map(|_| ()))
                })?)
            };
            let (traffic, time) = Traffic::of(space, run)?;
            match (turn, seen.last_mut()) {
                (Turn::Reference, Some(cold)) => cold.warm = time,
                _ => seen.push(Cold {
                    traffic,
                    time,
                    warm: Duration::ZERO,
                }),
            }
            buffer = Some(memory);
            Ok(time)
        },
    );
    // The first round is not counted among the repetitions.
    let seen = seen.get(1..).unwrap_or(&[]);
    // Far fewer than 53 bits.
    #[allow(clippy::cast_precision_loss)]
    let huge_pages = (bytes / LARGE) as f64;
    let mut show = |name: &str, (unit, better), figure: &dyn Fn(&Cold) -> f64| {
        let values = seen.iter().map(figure);
        // A division by zero, if nothing happened, is left out.
        let values = values.filter(|value| value.is_finite()).collect();
        bench.gathered(&format!("  {name}, {size}, {what}"), (unit, better), values);
    };
    let (count, less) = (Unit::Count, Better::Lower);
    show("a fault", (Unit::Nanoseconds, less), &|cold| {
        cold.lost().as_secs_f64() * 1e9 / cold.faults()
    });
    show("pages mapped for a fault", (count, Better::Higher), &|c| {
        c.traffic.grown(|all| all.driver.fault_pages) / c.faults()
    });
    show("faults in a batch", (count, Better::Higher), &|cold| {
        cold.faults() / cold.batches()
    });
    show("batches for 2 MiB", (count, less), &|cold| {
        cold.batches() / huge_pages
    });
    show("requests for 1000 faults", (count, less), &|cold| {
        1e3 * cold.traffic.requests() / cold.faults()
    });
    show("kicks for 1000 faults", (count, less), &|cold| {
        1e3 * cold.traffic.grown(|all| all.driver.kicks) / cold.faults()
    });
    show("interrupts for 1000 faults", (count, less), &|cold| {
        1e3 * cold.interrupts() / cold.faults()
    });
    // The end of a job also raises an interrupt.
    #[allow(clippy::cast_precision_loss)]
    let ends = jobs as f64;
    show(
        "interrupts for a batch, but for the jobs' ends",
        (count, less),
        &|cold| (cold.interrupts() - ends).max(0.0) / cold.batches(),
    );
}

/// A run over memory that was not mapped, and the time of the same run afterwards.
struct Cold {
    traffic: Traffic,
    time: Duration,
    warm: Duration,
}

impl Cold {
    /// The cost of all faults together.
    fn lost(&self) -> Duration {
        self.time.saturating_sub(self.warm)
    }

    fn faults(&self) -> f64 {
        self.traffic.grown(|all| all.driver.faults)
    }

    fn batches(&self) -> f64 {
        self.traffic.grown(|all| all.driver.fault_batches)
    }

    fn interrupts(&self) -> f64 {
        self.traffic.grown(|all| all.driver.interrupts)
    }
}

//! Device faults: pages that the CPU has and the device has not mapped yet.

use std::time::Duration;

use anyhow::Result;
use hmm::{work, Counters, Space};
use hmm_bench::{Bench, Better, Per, Turn, Unit};

use super::buffer::{Buffer, Pages, LARGE};
use super::timed;

/// Pages that are touched one by one.
const SINGLE: usize = 32;

/// Bytes that a job goes through.
const STREAM: usize = 64 << 20;

/// Measures single faults and streams of them.
pub(super) fn measure(bench: &mut Bench, space: &Space) {
    bench.group("device faults");
    single(bench, space);
    for pages in [Pages::Small, Pages::Large] {
        for jobs in [1, 8] {
            stream(bench, space, pages, jobs);
        }
    }
}

/// One page by itself: the job on it, less the same job once the page is mapped.
fn single(bench: &mut Bench, space: &Space) {
    bench.alone(
        "one cold page",
        Per::Times(SINGLE as u64),
        || -> Result<Duration> {
            // Far from each other, so that no fault brings in the next one's page.
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
fn stream(bench: &mut Bench, space: &Space, pages: Pages, jobs: usize) {
    let what = format!(
        "{}, {jobs} job{}",
        pages.name(),
        if jobs == 1 { "" } else { "s" }
    );
    let mut seen = Vec::new();
    let mut buffer = None;
    let rate = Per::Bytes(STREAM as u64);
    bench.pair(
        &format!("cold 64 MiB, {what}"),
        rate,
        "warm",
        |turn| -> Result<_> {
            let memory = match (turn, buffer.take()) {
                (Turn::Reference, Some(warm)) => warm,
                // What the last round has warmed up goes before more is asked for.
                (_, last) => {
                    drop(last);
                    Buffer::filled(space, STREAM, pages)?
                }
            };
            let part = STREAM / size_of::<u64>() / jobs;
            let before = space.device().counters()?;
            let time = timed(|| {
                let results = space.run_all(memory.words().chunks(part).map(work::sum));
                results
                    .into_iter()
                    .try_for_each(|result| result.map(|_| ()))
            })?;
            if turn == Turn::Measured {
                seen.push(Traffic::between(&before, &space.device().counters()?));
            }
            buffer = Some(memory);
            Ok(time)
        },
    );
    // The first round is not counted among the repetitions.
    let seen = seen.get(1..).unwrap_or(&[]);
    let all = |figure: fn(&Traffic) -> f64| seen.iter().map(figure).collect::<Vec<f64>>();
    for (name, better, values) in [
        (
            "pages mapped for a fault",
            Better::Higher,
            all(|t| t.pages / t.faults),
        ),
        (
            "faults in a batch",
            Better::Higher,
            all(|t| t.faults / t.batches),
        ),
        (
            "batches for 2 MiB",
            Better::Lower,
            all(|t| t.batches * 2.0 / 64.0),
        ),
        (
            "requests for 1000 faults",
            Better::Lower,
            all(|t| 1e3 * t.requests / t.faults),
        ),
        (
            "interrupts for 1000 faults",
            Better::Lower,
            all(|t| 1e3 * t.interrupts / t.faults),
        ),
    ] {
        // A division by zero, where nothing happened, is no figure.
        let values = values
            .into_iter()
            .filter(|value| value.is_finite())
            .collect();
        bench.gathered(&format!("  {name}, {what}"), (Unit::Count, better), values);
    }
}

/// What driver and device said to each other.
struct Traffic {
    faults: f64,
    batches: f64,
    pages: f64,
    requests: f64,
    interrupts: f64,
}

impl Traffic {
    fn between(before: &Counters, after: &Counters) -> Self {
        let (before, after) = (&before.driver, &after.driver);
        // The counts of a few seconds: far fewer than 53 bits.
        #[allow(clippy::cast_precision_loss)]
        let grown = |now: u64, then: u64| now.wrapping_sub(then) as f64;
        let requests = |of: &hmm::DriverStatistics| of.control_requests + of.dma_requests;
        Self {
            faults: grown(after.faults, before.faults),
            batches: grown(after.fault_batches, before.fault_batches),
            pages: grown(after.fault_pages, before.fault_pages),
            requests: grown(requests(after), requests(before)),
            interrupts: grown(after.interrupts, before.interrupts),
        }
    }
}

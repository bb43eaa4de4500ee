//! CPU faults on pages that are on the device, compared with pages that have no memory yet.

use std::time::Duration;

use anyhow::Result;
use hmm::{work, Destination, Space};
use hmm_bench::{Bench, Better, Turn, Unit};
use hmm_tool::walk::{Walk, WALKS};

use super::timing::move_all;
use super::traffic::Traffic;

/// Measures single CPU faults and walks.
pub(super) fn measure(bench: &mut Bench, space: &Space) {
    bench.group("the CPU touches the device's pages");
    for walk in WALKS {
        measure_walk(&walk, bench, space);
    }
}

fn measure_walk(walk: &Walk, bench: &mut Bench, space: &Space) {
    let reference = "first touch of new memory";
    let mut seen = Vec::new();
    bench.pair(
        walk.name,
        walk.per(),
        reference,
        |turn| -> Result<Duration> {
            if turn == Turn::Reference {
                return Ok(walk.access(&mut walk.memory()?));
            }
            let mut buffer = walk.on_device(|buffer, part| {
                move_all(space, buffer.range_of(part), Destination::Device).map(|_| ())
            })?;
            if walk.mapped {
                let stride = walk.stride / size_of::<u64>();
                for words in buffer.words().chunks(stride) {
                    space.run(work::sum(&words[..1]))?;
                }
            }
            let (traffic, time) = Traffic::of(space, || Ok(walk.access(&mut buffer)))?;
            seen.push(traffic);
            Ok(time)
        },
    );
    // Far fewer than 53 bits.
    #[allow(clippy::cast_precision_loss)]
    let count = walk.count as f64;
    // The first round is not counted among the repetitions.
    let seen = seen.get(1..).unwrap_or(&[]);
    let requests = seen.iter().map(|traffic| traffic.requests() / count);
    bench.gathered(
        &format!("  requests for a page, {}", walk.name),
        (Unit::Count, Better::Lower),
        requests.collect(),
    );
}

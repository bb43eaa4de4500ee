//! `hmm stats`: reads the counters, once or again and again.
//!
//! Which counters there are, and how they are shown, is in [`counters`].

mod counters;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use hmm::Device;
use hmm_cli::say;

use crate::args::Stats;
use counters::Reading;

/// Prints the counters, or what changes.
pub(crate) fn show(path: &Path, stats: &Stats, json: bool) -> Result<()> {
    let device = Device::open(path)?;
    let reading = Reading::of(&device.counters()?);
    let Some(seconds) = stats.watch else {
        if json {
            say!("{}", reading.json());
        } else {
            say!("{}", reading.table(stats.all));
        }
        return Ok(());
    };
    watch(&device, reading, Duration::from_secs(seconds), stats, json)
}

/// Prints what has changed at the end of each period.
fn watch(
    device: &Device,
    mut before: Reading,
    period: Duration,
    stats: &Stats,
    json: bool,
) -> Result<()> {
    let begun = Instant::now();
    let mut read = begun;
    let mut shown = 0;
    while stats.times.is_none_or(|times| shown < times) {
        shown += 1;
        // Counted from the beginning, so that the times of printing do not add up.
        let next = begun + period.saturating_mul(u32::try_from(shown).unwrap_or(u32::MAX));
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let now = Reading::of(&device.counters()?);
        let at = Instant::now();
        let change = now.since(&before, at - read);
        if json {
            say!("{}", change.json(at - begun));
        } else {
            say!("{}", change.table(at - begun));
        }
        (before, read) = (now, at);
    }
    Ok(())
}

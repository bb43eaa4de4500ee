//! Takes the time of what a measurement repeats: a fallible operation, and a move of all pages of a
//! range.
//!
//! It does not know what is measured.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use hmm::{Destination, PageRange, Space};

/// How long an operation takes, which may fail.
pub(super) fn timed<T, E>(
    work: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<Duration, E> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

/// After this many calls, a page that has not moved will not move.
const TRIES: u64 = 4;

/// Moves all pages of a range. Returns how long it took. A page that is in use at the moment stays
/// where it is, so the rest is asked for again, as any program would.
pub(super) fn move_all(
    space: &Space,
    range: PageRange,
    destination: Destination,
) -> Result<Duration> {
    let pages = range.pages() as u64;
    let (mut moved, mut tries) = (0, 0);
    let start = Instant::now();
    while moved < pages && tries < TRIES {
        moved += space.migrate(range, destination)?.moved;
        tries += 1;
    }
    let time = start.elapsed();
    ensure!(
        moved == pages,
        "of {pages} pages {moved} moved to {destination:?} in {tries} calls"
    );
    Ok(time)
}

//! How often a row tries what happens only now and then.

use std::time::{Duration, Instant};

/// After this time a machine is taken to be slow.
const ENOUGH: Duration = Duration::from_secs(10);

/// The numbers of rounds from 0 on: `most` of them, or on a slow machine at least a third of that.
pub(crate) fn rounds(most: u32) -> impl Iterator<Item = u32> {
    let begun = Instant::now();
    (0..most).take_while(move |round| *round < most / 3 || begun.elapsed() < ENOUGH)
}

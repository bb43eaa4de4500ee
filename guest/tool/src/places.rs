//! Counts of pages by place, and the sum of their numbers.

use hmm::{PageState, Place};

use crate::memory::pattern;

/// How many of the pages are at a place.
pub fn at(place: Place, states: &[PageState]) -> usize {
    states.iter().filter(|state| state.place() == place).count()
}

/// The sum of the numbers of a pattern.
pub fn sum(seed: u64, count: usize) -> u64 {
    (0..count).fold(0, |sum: u64, index| sum.wrapping_add(pattern(seed, index)))
}

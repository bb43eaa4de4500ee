//! The CPU faults of measurements: which pages on the device a CPU accesses, and in which order.

use std::hint::black_box;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;
use hmm_bench::Per;

use crate::buffer::{Buffer, Pages, LARGE};

/// The pages of a walk: it accesses one word of each, in this order.
pub struct Walk {
    /// The name in measurements.
    pub name: &'static str,
    pages: Pages,
    /// Bytes from one page to the next.
    pub stride: usize,
    /// The number of pages.
    pub count: usize,
    shuffled: bool,
    /// Whether the device has mapped the page, and loses it with the CPU fault.
    pub mapped: bool,
}

/// Every walk.
pub const WALKS: [Walk; 5] = [
    // Far from each other, so that no page brings its neighbour along.
    Walk {
        name: "one page of 4 KiB",
        pages: Pages::Small,
        stride: LARGE,
        count: 32,
        shuffled: false,
        mapped: false,
    },
    Walk {
        name: "one page of 4 KiB that the device has mapped",
        pages: Pages::Small,
        stride: LARGE,
        count: 32,
        shuffled: false,
        mapped: true,
    },
    Walk {
        name: "one page of 2 MiB",
        pages: Pages::Large,
        stride: LARGE,
        count: 8,
        shuffled: false,
        mapped: false,
    },
    Walk {
        name: "16 MiB in order, a page",
        pages: Pages::Small,
        stride: 4096,
        count: 4096,
        shuffled: false,
        mapped: false,
    },
    Walk {
        name: "16 MiB at random, a page",
        pages: Pages::Small,
        stride: 4096,
        count: 4096,
        shuffled: true,
        mapped: false,
    },
];

impl Walk {
    /// The number of accesses.
    #[must_use]
    pub fn per(&self) -> Per {
        Per::Times(self.count as u64)
    }

    /// New memory to walk through.
    ///
    /// # Errors
    ///
    /// When it cannot be mapped.
    pub fn memory(&self) -> Result<Buffer> {
        Buffer::new(self.count * self.stride, self.pages)
    }

    /// Memory whose pages are on a device: `migrate` moves the parts there.
    ///
    /// # Errors
    ///
    /// When it cannot be mapped, and the errors of `migrate`.
    pub fn on_device(
        &self,
        mut migrate: impl FnMut(&Buffer, Range<usize>) -> Result<()>,
    ) -> Result<Buffer> {
        let mut buffer = self.memory()?;
        let page = self.stride.min(match self.pages {
            Pages::Small => 4096,
            Pages::Large => LARGE,
        });
        let offsets = (0..self.count).map(|index| index * self.stride);
        for offset in offsets.clone() {
            buffer.bytes_mut()[offset] = 1;
        }
        // Only existing pages can move: one page at a time if there are holes.
        if page == self.stride {
            migrate(&buffer, 0..self.count * self.stride)?;
        } else {
            for offset in offsets {
                migrate(&buffer, offset..offset + page)?;
            }
        }
        Ok(buffer)
    }

    /// Accesses page after page. Returns how long it took.
    pub fn access(&self, buffer: &mut Buffer) -> Duration {
        let mut order: Vec<usize> = (0..self.count).collect();
        if self.shuffled {
            Rng::with_seed(2).shuffle(&mut order);
        }
        let stride = self.stride / size_of::<u64>();
        let words = buffer.words_mut();
        let start = Instant::now();
        for &page in &order {
            // New pages are written, too, because a read alone need not allocate a page.
            words[page * stride] = black_box(2);
        }
        let time = start.elapsed();
        black_box(words);
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_accessed_is_migrated_and_nothing_twice() {
        for walk in &WALKS {
            let mut migrated = Vec::new();
            let mut buffer = walk
                .on_device(|_, part| {
                    migrated.push(part);
                    Ok(())
                })
                .unwrap();
            walk.access(&mut buffer);
            let stride = walk.stride / size_of::<u64>();
            for (index, &word) in buffer.words().iter().enumerate() {
                let offset = index * size_of::<u64>();
                let moves = migrated
                    .iter()
                    .filter(|part| part.contains(&offset))
                    .count();
                assert!(moves <= 1, "{} at {index}", walk.name);
                if index % stride == 0 {
                    assert_eq!((moves, word), (1, 2), "{} at {index}", walk.name);
                }
            }
        }
    }
}

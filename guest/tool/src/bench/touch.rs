//! The CPU touches pages that are on the device, against pages that are nowhere yet.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;
use hmm::{Destination, Space};
use hmm_bench::{Bench, Per, Turn};

use super::buffer::{Buffer, Pages, LARGE};
use super::move_all;

/// What is touched: one word of each of these pages, in this order.
struct Walk {
    name: &'static str,
    pages: Pages,
    /// Bytes from one page to the next.
    stride: usize,
    count: usize,
    shuffled: bool,
}

const WALKS: [Walk; 4] = [
    // Far from each other, so that no page brings its neighbour along.
    Walk {
        name: "one page of 4 KiB",
        pages: Pages::Small,
        stride: LARGE,
        count: 32,
        shuffled: false,
    },
    Walk {
        name: "one page of 2 MiB",
        pages: Pages::Large,
        stride: LARGE,
        count: 8,
        shuffled: false,
    },
    Walk {
        name: "16 MiB in order, a page",
        pages: Pages::Small,
        stride: 4096,
        count: 4096,
        shuffled: false,
    },
    Walk {
        name: "16 MiB at random, a page",
        pages: Pages::Small,
        stride: 4096,
        count: 4096,
        shuffled: true,
    },
];

/// Measures single touches and walks.
pub(super) fn measure(bench: &mut Bench, space: &Space) {
    bench.group("the CPU touches the device's pages");
    for walk in WALKS {
        walk.measure(bench, space);
    }
}

impl Walk {
    fn measure(&self, bench: &mut Bench, space: &Space) {
        let mut order: Vec<usize> = (0..self.count).collect();
        if self.shuffled {
            Rng::with_seed(2).shuffle(&mut order);
        }
        let per = Per::Times(self.count as u64);
        let reference = "first touch of new memory";
        bench.pair(self.name, per, reference, |turn| -> Result<Duration> {
            let mut buffer = Buffer::new(self.count * self.stride, self.pages)?;
            let stride = self.stride / size_of::<u64>();
            if turn == Turn::Measured {
                for &page in &order {
                    buffer.words_mut()[page * stride] = 1;
                }
                // Only what is there can move: one page at a time where there are holes.
                let page = self.stride.min(match self.pages {
                    Pages::Small => 4096,
                    Pages::Large => LARGE,
                });
                if page == self.stride {
                    move_all(space, buffer.range(), Destination::Device)?;
                } else {
                    for &place in &order {
                        let start = place * self.stride;
                        let range = buffer.range_of(start..start + page);
                        move_all(space, range, Destination::Device)?;
                    }
                }
            }
            let start = Instant::now();
            let words = buffer.words_mut();
            for &page in &order {
                // Both sides write, because a page that is only read need not be new.
                words[page * stride] = black_box(2);
            }
            let time = start.elapsed();
            black_box(words);
            Ok(time)
        });
    }
}

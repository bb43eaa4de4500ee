//! The CPU touches pages that are on the device, against pages that are nowhere yet.

use std::hint::black_box;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;
use hmm::{work, Destination, Space};
use hmm_bench::{Bench, Better, Per, Turn, Unit};

use super::buffer::{Buffer, Pages, LARGE};
use super::move_all;
use super::traffic::Traffic;

/// What is touched: one word of each of these pages, in this order.
pub(super) struct Walk {
    /// For the names of measurements.
    pub(super) name: &'static str,
    pages: Pages,
    /// Bytes from one page to the next.
    stride: usize,
    count: usize,
    shuffled: bool,
    /// The device has mapped it, and loses it with the touch.
    pub(super) mapped: bool,
}

/// Every walk.
pub(super) const WALKS: [Walk; 5] = [
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

/// Measures single touches and walks.
pub(super) fn measure(bench: &mut Bench, space: &Space) {
    bench.group("the CPU touches the device's pages");
    for walk in WALKS {
        walk.measure(bench, space);
    }
}

impl Walk {
    fn measure(&self, bench: &mut Bench, space: &Space) {
        let reference = "first touch of new memory";
        let mut seen = Vec::new();
        bench.pair(
            self.name,
            self.per(),
            reference,
            |turn| -> Result<Duration> {
                if turn == Turn::Reference {
                    return Ok(self.touch(&mut self.memory()?));
                }
                let mut buffer = self.away(|buffer, part| {
                    move_all(space, buffer.range_of(part), Destination::Device).map(|_| ())
                })?;
                if self.mapped {
                    let stride = self.stride / size_of::<u64>();
                    for words in buffer.words().chunks(stride) {
                        space.run(work::sum(&words[..1]))?;
                    }
                }
                let (traffic, time) = Traffic::of(space, || Ok(self.touch(&mut buffer)))?;
                seen.push(traffic);
                Ok(time)
            },
        );
        // Far fewer than 53 bits.
        #[allow(clippy::cast_precision_loss)]
        let count = self.count as f64;
        // The first round is not counted among the repetitions.
        let seen = seen.get(1..).unwrap_or(&[]);
        let requests = seen.iter().map(|traffic| traffic.requests() / count);
        bench.gathered(
            &format!("  requests for a page, {}", self.name),
            (Unit::Count, Better::Lower),
            requests.collect(),
        );
    }

    /// How often something is touched.
    pub(super) fn per(&self) -> Per {
        Per::Times(self.count as u64)
    }

    fn memory(&self) -> Result<Buffer> {
        Buffer::new(self.count * self.stride, self.pages)
    }

    /// Memory whose pages are on a device, where `send` has sent parts of it.
    pub(super) fn away(
        &self,
        mut send: impl FnMut(&Buffer, Range<usize>) -> Result<()>,
    ) -> Result<Buffer> {
        let mut buffer = self.memory()?;
        let page = self.stride.min(match self.pages {
            Pages::Small => 4096,
            Pages::Large => LARGE,
        });
        let places = (0..self.count).map(|place| place * self.stride);
        for place in places.clone() {
            buffer.bytes_mut()[place] = 1;
        }
        // Only what is there is to move: one page at a time where there are holes.
        if page == self.stride {
            send(&buffer, 0..self.count * self.stride)?;
        } else {
            for place in places {
                send(&buffer, place..place + page)?;
            }
        }
        Ok(buffer)
    }

    /// Touches page after page: how long it took.
    pub(super) fn touch(&self, buffer: &mut Buffer) -> Duration {
        let mut order: Vec<usize> = (0..self.count).collect();
        if self.shuffled {
            Rng::with_seed(2).shuffle(&mut order);
        }
        let stride = self.stride / size_of::<u64>();
        let words = buffer.words_mut();
        let start = Instant::now();
        for &page in &order {
            // Pages that are new are written, too, because one that is only read need not
            // be new.
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
    fn all_that_is_touched_is_sent_away_and_nothing_twice() {
        for walk in &WALKS {
            let mut sent = Vec::new();
            let mut buffer = walk
                .away(|_, part| {
                    sent.push(part);
                    Ok(())
                })
                .unwrap();
            walk.touch(&mut buffer);
            let stride = walk.stride / size_of::<u64>();
            for (place, &word) in buffer.words().iter().enumerate() {
                let bytes = place * size_of::<u64>();
                let away = sent.iter().filter(|part| part.contains(&bytes)).count();
                assert!(away <= 1, "{} at {place}", walk.name);
                if place % stride == 0 {
                    assert_eq!((away, word), (1, 2), "{} at {place}", walk.name);
                }
            }
        }
    }
}

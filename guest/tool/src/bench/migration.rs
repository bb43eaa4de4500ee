//! Memory that moves on request, compared with a copy of the same bytes by the CPU.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use hmm::{Counters, Destination, Space};
use hmm_bench::{Bench, Better, Per, Turn, Unit};
use hmm_tool::buffer::{Buffer, Pages, LARGE};

use super::timing::move_all;
use super::traffic::Traffic;

/// Sizes, and how many moves of this size make a round.
///
/// From 512 KiB on they are those of the kernel's own benchmark.
const SIZES: [(&str, usize, usize); 8] = [
    ("4 KiB", 4 << 10, 64),
    ("64 KiB", 64 << 10, 32),
    ("512 KiB", 512 << 10, 16),
    ("1 MiB", 1 << 20, 16),
    ("2 MiB", 2 << 20, 16),
    ("4 MiB", 4 << 20, 8),
    ("8 MiB", 8 << 20, 4),
    ("16 MiB", 16 << 20, 2),
];

/// For these sizes and the largest one, the time of each stage is shown.
const SHOWN: [usize; 2] = [4 << 10, 2 << 20];

/// The stages of the driver's time for a move, and how much of it the device copies.
const STAGES: [(&str, Better, Stage); 6] = [
    ("collect", Better::Lower, |c| c.driver.collect_nanoseconds),
    ("allocate memory", Better::Lower, |c| {
        c.driver.allocate_nanoseconds
    }),
    ("waiting for the copy", Better::Lower, |c| {
        c.driver.copy_nanoseconds
    }),
    ("the copy itself", Better::Higher, |c| {
        c.device.copy_nanoseconds.get()
    }),
    ("commit", Better::Lower, |c| c.driver.commit_nanoseconds),
    ("finalise", Better::Lower, |c| c.driver.finalise_nanoseconds),
];

/// A counter of nanoseconds.
type Stage = fn(&Counters) -> u64;

/// The offset at which the copies begin. At the same offset of a huge page as their source, both
/// would compete for the same sets of every cache that is indexed by the low bits of addresses; an
/// emulator's cache is one.
const SKEW: usize = 5 * 4096;

/// Measures every size up to `largest`, which is also moved as a whole.
pub(super) fn measure(bench: &mut Bench, space: &Space, largest: usize) -> Result<()> {
    bench.group("migration");
    let free = space.device().info()?.free_memory;
    ensure!(
        largest as u64 <= free,
        "{} MiB do not fit: the device has {} MiB free",
        largest >> 20,
        free >> 20
    );
    let name = format!("{} MiB", largest >> 20);
    for (size, bytes, times) in SIZES.into_iter().chain([(name.as_str(), largest, 1)]) {
        for pages in [Pages::Small, Pages::Large] {
            if pages == Pages::Large && bytes < LARGE {
                continue;
            }
            let lot = Lot {
                bytes,
                times,
                pages,
            };
            lot.measure(bench, space, size, bytes == largest);
        }
    }
    Ok(())
}

/// Several pieces of memory of the same size.
#[derive(Clone, Copy)]
struct Lot {
    bytes: usize,
    times: usize,
    pages: Pages,
}

impl Lot {
    fn measure(self, bench: &mut Bench, space: &Space, size: &str, is_largest: bool) {
        let per = Per::Bytes((self.bytes * self.times) as u64);
        for (name, destination) in [
            ("to the device", Destination::Device),
            ("to system memory", Destination::System),
        ] {
            let name = format!("{size} {name}, {}", self.pages.name());
            let mut memory = None;
            let mut seen = Vec::new();
            bench.pair(&name, per, "memcpy", |turn| -> Result<Duration> {
                let (source, target) = match memory.take() {
                    // Memory that came back in small pages cannot leave in large ones.
                    Some((source, target)) if self.is_usable(&source, space)? => (source, target),
                    last => {
                        drop(last);
                        (self.memory(space)?, self.copies(space)?)
                    }
                };
                let (source, target) = memory.insert((source, target));
                match turn {
                    Turn::Measured => {
                        let go = |to| Traffic::of(space, || self.go(space, source, to));
                        let (to_device, to_system) =
                            (go(Destination::Device)?, go(Destination::System)?);
                        let (traffic, time) = if destination == Destination::Device {
                            to_device
                        } else {
                            to_system
                        };
                        seen.push((traffic, time));
                        Ok(time)
                    }
                    Turn::Reference => {
                        let start = Instant::now();
                        let copies = target.bytes_mut()[SKEW..].chunks_mut(self.bytes);
                        for (piece, copy) in self.pieces().zip(copies) {
                            copy.copy_from_slice(&source.bytes()[piece]);
                        }
                        Ok(start.elapsed())
                    }
                }
            });
            if is_largest || SHOWN.contains(&self.bytes) {
                // The first round is not counted among the repetitions.
                show_stages(bench, &name, seen.get(1..).unwrap_or(&[]));
            }
        }
    }

    fn memory(self, space: &Space) -> Result<Buffer> {
        let stride = self.stride();
        if self.pages == Pages::Large {
            return Buffer::filled(space, stride * self.times, self.pages);
        }
        let mut buffer = Buffer::new(stride * self.times, self.pages)?;
        for piece in self.pieces() {
            buffer.bytes_mut()[piece].fill(0x5a);
        }
        Ok(buffer)
    }

    /// Room for copies of all pieces.
    fn copies(self, space: &Space) -> Result<Buffer> {
        let bytes = (SKEW + self.bytes * self.times).next_multiple_of(LARGE);
        Buffer::filled(space, bytes, self.pages)
    }

    fn is_usable(self, memory: &Buffer, space: &Space) -> Result<bool> {
        match self.pages {
            Pages::Small => Ok(true),
            Pages::Large => memory.is_large(space),
        }
    }

    /// Moves the pieces one by one.
    fn go(self, space: &Space, memory: &Buffer, destination: Destination) -> Result<Duration> {
        let pieces = self.pieces();
        pieces
            .map(|piece| move_all(space, memory.range_of(piece), destination))
            .sum()
    }

    /// The distance between pieces, so that none is a neighbour of the next.
    fn stride(self) -> usize {
        self.bytes.next_multiple_of(LARGE)
    }

    fn pieces(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.times).map(move |i| i * self.stride()..i * self.stride() + self.bytes)
    }
}

/// Shows the share of each stage in the time of a move.
fn show_stages(bench: &mut Bench, name: &str, seen: &[(Traffic, Duration)]) {
    for (stage, better, counter) in STAGES {
        let share = |(traffic, time): &(Traffic, Duration)| {
            100.0 * traffic.grown(counter) / (time.as_secs_f64() * 1e9)
        };
        let name = format!("  {stage}, {name}");
        bench.gathered(
            &name,
            (Unit::Percent, better),
            seen.iter().map(share).collect(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_no_neighbours() {
        let lot = Lot {
            bytes: 4096,
            times: 3,
            pages: Pages::Small,
        };
        let pieces: Vec<_> = lot.pieces().collect();
        assert_eq!(pieces[1], LARGE..LARGE + 4096);
        assert_eq!(pieces.len(), 3);
    }

    #[test]
    fn large_pieces_fill_their_memory() {
        let lot = Lot {
            bytes: 2 * LARGE,
            times: 2,
            pages: Pages::Large,
        };
        assert_eq!(
            lot.pieces().map(|piece| piece.len()).sum::<usize>(),
            4 * LARGE
        );
    }
}

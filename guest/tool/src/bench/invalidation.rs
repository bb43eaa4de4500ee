//! Memory that goes while the device has it mapped, against memory that it has not.

use std::time::{Duration, Instant};

use anyhow::Result;
use hmm::{page_size, work, Space};
use hmm_bench::{Bench, Per, Turn};

use super::buffer::{Buffer, Pages};
use crate::memory::Mapping;

/// Mappings of one page in a round.
const SINGLE: usize = 32;

/// Bytes of the large mapping.
const BULK: usize = 64 << 20;

/// Measures `munmap` of little and of much.
pub(super) fn measure(bench: &mut Bench, space: &Space) {
    bench.group("munmap of what the device has mapped");
    let reference = "not mapped on the device";
    let per = Per::Times(SINGLE as u64);
    bench.pair("one page", per, reference, |turn| -> Result<Duration> {
        let pages = (0..SINGLE)
            .map(|_| {
                let mut page = Mapping::anonymous(page_size())?;
                page.numbers_mut::<u64>()[0] = 1;
                Ok(page)
            })
            .collect::<Result<Vec<_>>>()?;
        if turn == Turn::Measured {
            for page in &pages {
                space.run(work::sum(page.numbers::<u64>()))?;
            }
        }
        let start = Instant::now();
        drop(pages);
        Ok(start.elapsed())
    });
    for pages in [Pages::Small, Pages::Large] {
        let name = format!("64 MiB, {}", pages.name());
        bench.pair(
            &name,
            Per::Times(1),
            reference,
            |turn| -> Result<Duration> {
                let buffer = Buffer::filled(space, BULK, pages)?;
                if turn == Turn::Measured {
                    space.run(work::sum(buffer.words()))?;
                }
                let start = Instant::now();
                drop(buffer);
                Ok(start.elapsed())
            },
        );
    }
}

//! Memory whose pages have a chosen size.

use std::io;
use std::ops::Range;

use anyhow::{ensure, Context, Result};
use hmm::{PageRange, Space};
use hmm_cli::figure;
use rustix::io::Errno;
use rustix::mm::{madvise, Advice};
use zerocopy::FromBytes;

use crate::region::Region;

/// The size of a huge page in bytes.
pub const LARGE: usize = 2 << 20;

/// The page size that the kernel is to use for a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Pages of 4 KiB only.
    Small,
    /// Pages of 2 MiB.
    Large,
}

impl Pages {
    /// The name in measurements.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "4 KiB pages",
            Self::Large => "2 MiB pages",
        }
    }
}

/// Memory that begins at the boundary of a huge page. A page exists only after it is written.
pub struct Buffer {
    region: Region,
    part: Range<usize>,
}

impl Buffer {
    /// Maps this many bytes, a multiple of 8.
    pub fn new(bytes: usize, pages: Pages) -> Result<Self> {
        let mut region = Region::anonymous(bytes + LARGE)
            .with_context(|| format!("mapping {}", figure::bytes(bytes as u64)))?;
        let start = region.bytes().as_ptr().align_offset(LARGE);
        let part = start..start + bytes;
        advise(&mut region.bytes_mut()[part.clone()], pages)
            .with_context(|| format!("asking for {}", pages.name()))?;
        Ok(Self { region, part })
    }

    /// Maps this many bytes and writes to all of them. Fails if the kernel lacks the huge pages
    /// that were asked for.
    pub fn filled(space: &Space, bytes: usize, pages: Pages) -> Result<Self> {
        let mut buffer = Self::new(bytes, pages)?;
        buffer.bytes_mut().fill(0x5a);
        if pages == Pages::Large {
            ensure!(
                buffer.is_large(space)?,
                "the guest has no huge pages left for {}",
                figure::bytes(bytes as u64)
            );
        }
        Ok(buffer)
    }

    /// Whether all of it is in huge pages.
    pub fn is_large(&self, space: &Space) -> Result<bool> {
        let states = space.residency(self.range())?;
        Ok(states.iter().all(|state| state.is_large()))
    }

    /// Makes it read-only.
    pub fn protect(&mut self) -> Result<()> {
        self.region.protect().context("mprotect")
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.region.bytes()[self.part.clone()]
    }

    /// All of it, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.region.bytes_mut()[self.part.clone()]
    }

    /// Its words.
    pub fn words(&self) -> &[u64] {
        // The start is aligned and the length is a multiple of 8, so this is all of it.
        <[u64]>::ref_from_bytes(self.bytes()).unwrap_or(&[])
    }

    /// Its words, to be written.
    pub fn words_mut(&mut self) -> &mut [u64] {
        <[u64]>::mut_from_bytes(self.bytes_mut()).unwrap_or(&mut [])
    }

    /// Its pages.
    pub fn range(&self) -> PageRange {
        PageRange::covering(self.bytes())
    }

    /// The pages of a part of it.
    pub fn range_of(&self, part: Range<usize>) -> PageRange {
        PageRange::covering(&self.bytes()[part])
    }
}

/// Tells the kernel which pages to use for memory that has none yet.
fn advise(memory: &mut [u8], pages: Pages) -> io::Result<()> {
    let advice = match pages {
        Pages::Small => Advice::LinuxNoHugepage,
        Pages::Large => Advice::LinuxHugepage,
    };
    // SAFETY: the advice changes how the kernel backs the memory and not what it holds, and the
    // memory is borrowed mutably, so it has no other user.
    match unsafe { madvise(memory.as_mut_ptr().cast(), memory.len(), advice) } {
        // A kernel without huge pages.
        Err(Errno::INVAL) if pages == Pages::Small => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_begins_at_a_huge_page_and_can_be_written() {
        let mut buffer = Buffer::new(3 << 20, Pages::Small).unwrap();
        assert_eq!(buffer.bytes().as_ptr().addr() % LARGE, 0);
        assert_eq!(buffer.bytes().len(), 3 << 20);
        buffer.words_mut().fill(7);
        assert!(buffer.words().iter().all(|&word| word == 7));
        assert_eq!(buffer.words().len(), (3 << 20) / 8);
    }
}

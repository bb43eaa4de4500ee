//! The addresses of the guest's memory, as its kernel reports them.

use std::fs;

use anyhow::{Context, Result};
use virtio_hmm_spec::wire::PAGE_SHIFT;

const MAP: &str = "/proc/iomem";

/// No machine that these tests run on has memory at or above this address.
const SURELY_NOTHING: u64 = 1 << 44;

/// Where a run of frames is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In memory as a whole.
    Inside,
    /// Surely not in memory as a whole.
    Outside,
    /// The kernel does not say: firmware may have taken it.
    Unknown,
}

/// The guest's memory.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// The first byte of each run and the first one after it.
    memory: Vec<(u64, u64)>,
}

impl Machine {
    /// Asks the kernel.
    ///
    /// # Errors
    ///
    /// When the kernel does not report it.
    pub(crate) fn read() -> Result<Self> {
        let text = fs::read_to_string(MAP).with_context(|| format!("reading {MAP}"))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        // Nested resources are indented; the memory is not.
        let memory = text
            .lines()
            .filter_map(|line| {
                let range = line.strip_suffix(" : System RAM")?;
                let (first, last) = range.split_once('-')?;
                let first = u64::from_str_radix(first, 16).ok()?;
                let last = u64::from_str_radix(last, 16).ok()?;
                Some((first, last + 1))
            })
            .collect();
        Self { memory }
    }

    /// Where these frames are.
    pub(crate) fn frames(&self, frame: u64, pages: u64) -> Place {
        let end = frame
            .checked_add(pages)
            .filter(|end| *end <= SURELY_NOTHING >> PAGE_SHIFT);
        let Some(end) = end else {
            return Place::Outside;
        };
        let (first, end) = (frame << PAGE_SHIFT, end << PAGE_SHIFT);
        let inside = |&(from, to): &(u64, u64)| from <= first && end <= to;
        if self.memory.iter().any(inside) {
            Place::Inside
        } else {
            Place::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
00100000-1ffdbfff : System RAM
  02000000-030fffff : Kernel code
fee00000-fee00fff : Local APIC
";

    #[test]
    fn only_what_lies_in_memory_as_a_whole_is_inside() {
        let machine = Machine::parse(TEXT);
        assert_eq!(machine.frames(0x100, 1), Place::Inside);
        assert_eq!(machine.frames(0x100, 0x1fedc), Place::Inside);
        assert_eq!(machine.frames(0x100, 0x1fedd), Place::Unknown);
        assert_eq!(machine.frames(0xfee00, 1), Place::Unknown);
        assert_eq!(machine.frames(0, 1), Place::Unknown);
    }

    #[test]
    fn what_wraps_or_lies_beyond_every_machine_is_outside() {
        let machine = Machine::parse(TEXT);
        assert_eq!(machine.frames(u64::MAX, 1), Place::Outside);
        assert_eq!(machine.frames(u64::MAX, 2), Place::Outside);
        assert_eq!(machine.frames(0x100, 1 << 33), Place::Outside);
    }
}

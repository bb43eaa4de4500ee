//! What is done to a process's memory, chosen at random.
//!
//! Nothing here changes what a program finds in its memory, nor its VMAs. It does not know which
//! processes there are, nor when it is their turn.

use std::io;
use std::ops::Range;

use fastrand::Rng;
use hmm::spec::wire::operation as op;
use hmm::{Destination, Element};
use hmm_cli::remark;

use super::maps::{self, Vma};
use super::tally::Tally;
use super::target::{Advice, Target};
use super::verdict::{Readings, Verdict};

/// The largest range of an act, as a power of two of pages: a huge page.
const LARGEST: u32 = 9;

/// How many places are tried until one is found where the process has pages.
const TRIES: usize = 8;

/// How many pages one act compares at most, and at how many addresses it writes.
const SEVERAL: usize = 4;

/// How many differences are described. One is enough to fail.
const DESCRIBED: u64 = 10;

/// How much of a huge page must be in use before it is made one: the rest of it will be, too.
const MOSTLY: usize = 64;

/// The errors after which nothing can be done with the device any more.
const LOST: [i32; 2] = [libc::EIO, libc::ENODEV];

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    ToDevice,
    ToSystem,
    Compare,
    Write,
    Advise(Advice),
}

/// Each act as often as it is listed.
const ACTS: [Act; 16] = [
    Act::ToDevice,
    Act::ToDevice,
    Act::ToDevice,
    Act::ToDevice,
    Act::ToDevice,
    Act::ToSystem,
    Act::Compare,
    Act::Compare,
    Act::Compare,
    Act::Compare,
    Act::Write,
    Act::Write,
    Act::Write,
    Act::Advise(Advice::Collapse),
    Act::Advise(Advice::Cold),
    Act::Advise(Advice::PageOut),
];

/// A part of a process's memory.
#[derive(Debug)]
struct Part {
    vma: Vma,
    range: Range<usize>,
    /// The addresses of the pages that the process has there; at least one.
    pages: Vec<usize>,
}

/// Acts on the memory of processes.
#[derive(Debug)]
pub(super) struct Acts {
    random: Rng,
    page: usize,
}

impl Acts {
    /// Acts that follow from a seed and from what is found in memory.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Rng::with_seed(seed),
            page: hmm::page_size(),
        }
    }

    /// One of several.
    pub(super) fn choose<'a, T>(&mut self, several: &'a [T]) -> Option<&'a T> {
        self.random.choice(several)
    }

    /// Does one thing to a process.
    ///
    /// # Errors
    ///
    /// When the device is removed or broken. That a process has no such memory any more is no
    /// error, nor that it has ended.
    pub(super) fn act(&mut self, target: &Target, tally: &mut Tally) -> hmm::Result<()> {
        let act = *self.choose(&ACTS).unwrap_or(&Act::Compare);
        let Ok(Some(part)) = self.part(target, act) else {
            return Ok(());
        };
        let done = match act {
            Act::ToDevice => target.migrate(part.range, Destination::Device).map(drop),
            Act::ToSystem => target.migrate(part.range, Destination::System).map(drop),
            Act::Compare => self.compare_some(target, &part, tally),
            Act::Write => self.write(target, &part, tally),
            Act::Advise(advice) => {
                self.advise(target, &part, advice, tally);
                Ok(())
            }
        };
        match done {
            Err(error) if error.errno().is_some_and(|errno| LOST.contains(&errno)) => Err(error),
            // The memory or the process is gone, or all slots for jobs are taken.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// A part of the memory of a process where it has pages, if one is found that suits the act.
    fn part(&mut self, target: &Target, act: Act) -> io::Result<Option<Part>> {
        let suits = |vma: &&Vma| match act {
            Act::Compare | Act::Advise(Advice::Cold) => true,
            Act::ToDevice | Act::ToSystem | Act::Advise(_) => vma.is_anonymous,
            Act::Write => vma.is_anonymous && vma.is_writable,
        };
        let vmas = maps::read(target.pid())?;
        let vmas: Vec<&Vma> = vmas.iter().filter(suits).collect();
        // Most memory of most programs is code and data of libraries, which cannot move.
        let own: Vec<&Vma> = (vmas.iter().copied())
            .filter(|vma| vma.is_anonymous && vma.is_writable)
            .collect();
        for _ in 0..TRIES {
            let some = match self.random.u8(..4) {
                1.. if !own.is_empty() => &own,
                _ => &vmas,
            };
            let Some(vma) = self.random.choice(some) else {
                return Ok(None);
            };
            let range = self.range(&vma.range);
            let populated = maps::populated(target.pagemap(), &range, self.page)?;
            let pages: Vec<usize> = (range.clone().step_by(self.page))
                .zip(populated)
                .filter_map(|(address, is_there)| is_there.then_some(address))
                .collect();
            if !pages.is_empty() {
                let vma = (*vma).clone();
                return Ok(Some(Part { vma, range, pages }));
            }
        }
        Ok(None)
    }

    /// A range of whole pages within another one, of any order of magnitude.
    fn range(&mut self, within: &Range<usize>) -> Range<usize> {
        let all = within.len() / self.page;
        let most = 1 << self.random.u32(..=LARGEST);
        let pages = self.random.usize(1..=most).min(all.max(1));
        let first = self.random.usize(..=all.saturating_sub(pages));
        let start = within.start + first * self.page;
        start..start + pages * self.page
    }

    /// Compares some pages of a part, after it has moved to the device, or as it is.
    fn compare_some(&mut self, target: &Target, part: &Part, tally: &mut Tally) -> hmm::Result<()> {
        if part.vma.is_anonymous && self.random.bool() {
            target.migrate(part.range.clone(), Destination::Device)?;
        }
        for address in self.random.choose_multiple(part.pages.iter(), SEVERAL) {
            self.compare(target, *address, tally)?;
        }
        Ok(())
    }

    /// Compares a page: the device reads it first, because the CPU takes it away from there.
    fn compare(&self, target: &Target, address: usize, tally: &mut Tally) -> hmm::Result<()> {
        let mut readings = Readings::default();
        let mut bytes = vec![0; self.page];
        loop {
            let checksum = op::Checksum {
                source: address as u64,
                bytes: self.page as u64,
            };
            tally.jobs += 1;
            let read = target.run(checksum)?;
            tally.compared_on_device += u64::from(read.usage.device_bytes > 0);
            let [device, ..] = read.value;
            // The lower half: a checksum has 32 bits.
            let device = u32::try_from(device & u64::from(u32::MAX)).unwrap_or_default();
            let mut verdict = readings.device(device);
            if verdict == Verdict::Open {
                if target.read(address, &mut bytes).is_err() {
                    // Neither the program nor anyone else can read it any more.
                    return Ok(());
                }
                verdict = readings.cpu(crc32c::crc32c(&bytes));
            }
            match verdict {
                Verdict::Open => {}
                Verdict::Same => {
                    tally.comparisons += 1;
                    return Ok(());
                }
                Verdict::Different => {
                    tally.comparisons += 1;
                    tally.differences += 1;
                    if tally.differences <= DESCRIBED {
                        remark!(
                            "hmm chaos: process {}, page {address:#x}: the device reads other bytes \
                             than the CPU",
                            target.pid()
                        );
                    }
                    return Ok(());
                }
                Verdict::Restless => {
                    tally.restless += 1;
                    return Ok(());
                }
            }
        }
    }

    /// Writes in place what is there: atomic additions of zero. In the guest's memory this makes the
    /// page exclusive to the device.
    fn write(&mut self, target: &Target, part: &Part, tally: &mut Tally) -> hmm::Result<()> {
        for address in self.random.choose_multiple(part.pages.iter(), SEVERAL) {
            let word = self.random.usize(..self.page / size_of::<u64>());
            let add = op::AtomicAdd {
                address: (address + word * size_of::<u64>()) as u64,
                element: Element::U64,
                operand: 0,
                repeat: 1,
            };
            tally.jobs += 1;
            target.run(add)?;
            tally.writes += 1;
        }
        Ok(())
    }

    fn advise(&self, target: &Target, part: &Part, advice: Advice, tally: &mut Tally) {
        if advice != Advice::Collapse {
            tally.paged_out += u64::from(target.advise(&part.range, advice));
            return;
        }
        let huge = self.page << LARGEST;
        let start = part.range.start / huge * huge;
        let range = start..start + huge;
        let is_inside = part.vma.range.start <= range.start && range.end <= part.vma.range.end;
        let in_use = |pages: Vec<bool>| pages.into_iter().filter(|is_there| *is_there).count();
        if is_inside
            && maps::populated(target.pagemap(), &range, self.page).map_or(0, in_use) >= MOSTLY
        {
            tally.collapsed += u64::from(target.advise(&range, advice));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_lies_within_another_one_and_is_not_empty() {
        let mut acts = Acts::new(1);
        let page = acts.page;
        for pages in [1, 2, 3, 700] {
            let within = 7 * page..(7 + pages) * page;
            for _ in 0..200 {
                let range = acts.range(&within);
                assert!(!range.is_empty() && range.start % page == 0 && range.end % page == 0);
                assert!(within.start <= range.start && range.end <= within.end);
            }
        }
    }

    #[test]
    fn one_seed_makes_the_same_choices() {
        let choices = |seed| -> Vec<Act> {
            let mut acts = Acts::new(seed);
            (0..50)
                .filter_map(|_| acts.choose(&ACTS).copied())
                .collect()
        };
        assert_eq!(choices(1), choices(1));
        assert_ne!(choices(1), choices(2));
    }
}

//! Sorting.
//!
//! Few elements are sorted at once. Many are sorted by one byte of their value after the other, the
//! lowest first, each pass from one range into the other. That needs only 256 short stages of extra
//! memory, and can stop between any two elements.
//!
//! The highest few bytes of 64-bit values usually distinguish most elements. The passes therefore
//! use only these first. Elements that they leave equal are contiguous, and are sorted at once in
//! place. If more are equal than fit, the passes use all bytes.

use super::block::{filled, Block, BLOCK_BYTES};
use super::range::{Progress, Range};
use super::step::{Fault, Memory, Run, Step, STEP_BYTES};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation;
use virtio_hmm_spec::wire::rights::{READ, WRITE};
use zerocopy::IntoBytes;

/// The size of an element.
const SIZE: usize = size_of::<u64>();

/// The most elements that are sorted at once.
const WHOLE: usize = 2048;

/// Elements read at once while many are sorted.
const BLOCK: usize = BLOCK_BYTES / SIZE;

/// Elements read in one step; each is written once, too.
const STEP_ELEMENTS: usize = STEP_BYTES / (4 * SIZE);

/// Bytes of a value.
const DIGITS: usize = 8;

/// Values of a byte, which is also the number of positions to which the next element may go.
const BUCKETS: usize = 256;

/// Elements collected for a bucket before they are written.
const STAGE: usize = 32;

/// A sort and its progress.
#[derive(Debug)]
pub(super) struct Sort {
    data: Range,
    temporary: Range,
    count: u64,
    block: Block,
    /// How many elements have each value of each byte; empty if few are sorted.
    counts: Vec<[u64; BUCKETS]>,
    /// The elements staged in this pass; empty if few are sorted.
    buckets: Vec<Bucket>,
    /// The lowest byte that the passes sort by.
    lowest: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    /// All elements fit into the block.
    Whole,
    /// Counting the values of all bytes.
    Count(Count),
    /// Sorting by one byte.
    Pass(Pass),
    /// Sorting what the bytes above have left equal.
    Finish(Finish),
    /// Copying the elements from the temporary range, where the last pass left them.
    CopyBack(Progress),
}

/// Sorting elements that differ in lower bytes than those of the passes, while they are copied to
/// their final range.
#[derive(Debug)]
struct Finish {
    from: Range,
    progress: Progress,
}

/// A first pass over all elements, which counts.
#[derive(Debug)]
struct Count {
    progress: Progress,
    /// The last element, as long as all elements are in order.
    ascending: Option<u64>,
}

/// Sorting by one byte from one range into the other.
#[derive(Debug)]
struct Pass {
    /// The byte.
    digit: usize,
    from: Range,
    to: Range,
    progress: Progress,
    /// The elements in the block that have not been staged.
    block: std::ops::Range<usize>,
    /// Buckets that have been written to their end.
    flushed: usize,
}

/// The elements that have one value of the byte.
#[derive(Clone, Debug)]
struct Bucket {
    /// The index of the next element that is written.
    next: u64,
    /// The index behind the last element.
    end: u64,
    /// Elements in the stage.
    staged: usize,
    stage: [u64; STAGE],
}

impl Default for Bucket {
    fn default() -> Self {
        Self {
            next: 0,
            end: 0,
            staged: 0,
            stage: [0; STAGE],
        }
    }
}

/// Why a pass cannot continue.
enum Stop {
    Fault(Fault),
    /// The elements differ from those that were counted.
    Changed,
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Sort {
    pub(super) fn new(operation: operation::Sort) -> Result<Self, Status> {
        let operation::Sort {
            data,
            count,
            temporary,
        } = operation;
        let data = Range::new(data, count, SIZE as u64)?;
        let temporary = Range::new(temporary, count, SIZE as u64)?;
        if data.overlaps(temporary) {
            return Err(Status::BadArgument);
        }
        let whole = count <= WHOLE as u64;
        Ok(Self {
            data,
            temporary,
            count,
            block: Block::new(if whole { WHOLE * SIZE } else { BLOCK * SIZE })?,
            counts: if whole {
                Vec::new()
            } else {
                filled(DIGITS, [0; BUCKETS])?
            },
            buckets: if whole {
                Vec::new()
            } else {
                filled(BUCKETS, Bucket::default())?
            },
            lowest: 0,
            state: if whole {
                State::Whole
            } else {
                State::Count(Count {
                    progress: Progress::new(count),
                    ascending: Some(0),
                })
            },
        })
    }

    /// Sorts all elements at once.
    fn sort_whole(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        let count = Progress::new(self.count).next(WHOLE);
        if count < 2 {
            return Ok(Step::Done(Status::Ok, [0; 4]));
        }
        let address = self.data.at(0);
        self.data.expect_from(memory, 0, WRITE);
        // Reserved before the read, so that one fault makes the page present for both.
        memory.reserve(address, (count * SIZE) as u64)?;
        memory.read(address, self.block.get_mut(count * SIZE))?;
        self.block.get_mut::<u64>(count).sort_unstable();
        memory.write(address, self.block.get(count * SIZE))?;
        Ok(Step::Done(Status::Ok, [0; 4]))
    }

    /// Whether elements differ in a byte.
    fn differ(&self, digit: usize) -> bool {
        !self.counts[digit].contains(&self.count)
    }

    /// Chooses the bytes and begins with them: as many of the highest as could distinguish all
    /// elements.
    fn begin(&mut self) -> Step {
        let bits = u64::BITS - self.count.leading_zeros();
        let enough = usize::try_from(bits.div_ceil(8)).unwrap_or(DIGITS);
        let lowest = (0..DIGITS)
            .rev()
            .filter(|digit| self.differ(*digit))
            .nth(enough - 1);
        self.lowest = lowest.unwrap_or(0);
        self.begin_pass(self.lowest, false)
    }

    /// Begins the pass for the first byte from `digit` on in which elements differ. The elements
    /// are in the temporary range if `away` is set.
    fn begin_pass(&mut self, digit: usize, away: bool) -> Step {
        let (from, to) = if away {
            (self.temporary, self.data)
        } else {
            (self.data, self.temporary)
        };
        let Some(digit) = (digit..DIGITS).find(|digit| self.differ(*digit)) else {
            self.state = if (0..self.lowest).any(|digit| self.differ(digit)) {
                State::Finish(Finish {
                    from,
                    progress: Progress::new(self.count),
                })
            } else if away {
                State::CopyBack(Progress::new(self.count * SIZE as u64))
            } else {
                return Step::Done(Status::Ok, [0; 4]);
            };
            return Step::More;
        };
        let mut position = 0;
        for (bucket, count) in self.buckets.iter_mut().zip(&self.counts[digit]) {
            bucket.staged = 0;
            bucket.next = position;
            position += count;
            bucket.end = position;
        }
        let progress = Progress::new(self.count);
        self.state = State::Pass(Pass {
            digit,
            from,
            to,
            progress,
            block: 0..0,
            flushed: 0,
        });
        Step::More
    }
}

impl Run for Sort {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        match &mut self.state {
            State::Whole => self.sort_whole(memory),
            State::Count(count) => {
                count.step(memory, self.data, &mut self.block, &mut self.counts)?;
                Ok(match (count.progress.finished(), count.ascending) {
                    (false, _) => Step::More,
                    (true, Some(_)) => Step::Done(Status::Ok, [0; 4]),
                    (true, None) => self.begin(),
                })
            }
            State::Pass(pass) => match pass.step(memory, &mut self.block, &mut self.buckets) {
                Ok(()) if pass.flushed == BUCKETS => {
                    let (digit, away) = (pass.digit + 1, pass.to == self.temporary);
                    Ok(self.begin_pass(digit, away))
                }
                Ok(()) => Ok(Step::More),
                Err(Stop::Fault(fault)) => Err(fault),
                Err(Stop::Changed) => Ok(Step::Done(Status::BadArgument, [0; 4])),
            },
            State::Finish(finish) => {
                let fits = finish.step(memory, self.data, &mut self.block, 8 * self.lowest)?;
                if fits {
                    return Ok(Step::more_until(finish.progress.finished(), [0; 4]));
                }
                // All elements are still where the last pass has left them, though some may be in
                // another order.
                let away = finish.from == self.temporary;
                self.lowest = 0;
                Ok(self.begin_pass(0, away))
            }
            State::CopyBack(progress) => {
                let (done, bytes) = (progress.done(), progress.next(STEP_BYTES / 2));
                self.temporary.expect_from(memory, done, READ);
                self.data.expect_from(memory, done, WRITE);
                memory.copy(self.temporary.at(done), self.data.at(done), bytes)?;
                progress.advance(bytes);
                Ok(Step::more_until(progress.finished(), [0; 4]))
            }
        }
    }
}

impl Count {
    fn step(
        &mut self,
        memory: &mut impl Memory,
        data: Range,
        block: &mut Block,
        counts: &mut [[u64; BUCKETS]],
    ) -> Result<(), Fault> {
        data.expect_from(memory, self.progress.done() * SIZE as u64, WRITE);
        for _ in 0..STEP_ELEMENTS / BLOCK {
            let count = self.progress.next(BLOCK);
            let (address, bytes) = (data.at(self.progress.done() * SIZE as u64), count * SIZE);
            // Elements that are out of order will be written here.
            memory.reserve(address, bytes as u64)?;
            memory.read(address, block.get_mut(bytes))?;
            for value in block.get::<u64>(count) {
                self.ascending = self
                    .ascending
                    .filter(|last| last <= value)
                    .and(Some(*value));
                for (counts, digit) in counts.iter_mut().zip(value.to_le_bytes()) {
                    counts[usize::from(digit)] += 1;
                }
            }
            self.progress.advance(count);
        }
        Ok(())
    }
}

impl Pass {
    /// Stages elements, or writes the staged ones when there are no more.
    fn step(
        &mut self,
        memory: &mut impl Memory,
        block: &mut Block,
        buckets: &mut [Bucket],
    ) -> Result<(), Stop> {
        for _ in 0..STEP_ELEMENTS / BLOCK {
            if self.block.is_empty() {
                let count = self.progress.next(BLOCK);
                if count == 0 {
                    return self.flush(memory, buckets);
                }
                let offset = self.progress.done() * SIZE as u64;
                self.from.expect_from(memory, offset, READ);
                memory.read(self.from.at(offset), block.get_mut(count * SIZE))?;
                self.progress.advance(count);
                self.block = 0..count;
            }
            self.stage(memory, block.get(self.block.end), buckets)?;
        }
        Ok(())
    }

    /// Puts the elements of the block into their buckets.
    fn stage(
        &mut self,
        memory: &mut impl Memory,
        block: &[u64],
        buckets: &mut [Bucket],
    ) -> Result<(), Stop> {
        let shift = 8 * self.digit;
        for value in &block[self.block.start..] {
            let bucket = &mut buckets[usize::from((value >> shift).to_le_bytes()[0])];
            if bucket.staged == STAGE {
                bucket.write(memory, self.to)?;
            }
            bucket.stage[bucket.staged] = *value;
            bucket.staged += 1;
            self.block.start += 1;
        }
        Ok(())
    }

    /// Writes the rest of the buckets.
    fn flush(&mut self, memory: &mut impl Memory, buckets: &mut [Bucket]) -> Result<(), Stop> {
        for bucket in &mut buckets[self.flushed..] {
            bucket.write(memory, self.to)?;
            self.flushed += 1;
        }
        Ok(())
    }
}

impl Finish {
    /// Sorts elements that have equal values above `shift` and copies them to `data`. Returns
    /// whether that was possible, because all equal elements fit into the block.
    fn step(
        &mut self,
        memory: &mut impl Memory,
        data: Range,
        block: &mut Block,
        shift: usize,
    ) -> Result<bool, Fault> {
        let offset = self.progress.done() * SIZE as u64;
        self.from.expect_from(memory, offset, READ);
        data.expect_from(memory, offset, WRITE);
        for _ in 0..STEP_ELEMENTS / BLOCK {
            let (offset, count) = (
                self.progress.done() * SIZE as u64,
                self.progress.next(BLOCK),
            );
            let Some(last) = count.checked_sub(1) else {
                break;
            };
            memory.reserve(data.at(offset), (count * SIZE) as u64)?;
            memory.read(self.from.at(offset), block.get_mut(count * SIZE))?;
            let values = block.get_mut::<u64>(count);
            // Elements equal to the last one may continue behind the block.
            let high = values[last] >> shift;
            let whole = if count as u64 == self.progress.rest() {
                count
            } else {
                match values.iter().rposition(|value| value >> shift != high) {
                    Some(before) => before + 1,
                    None => return Ok(false),
                }
            };
            let equal = |left: &u64, right: &u64| left >> shift == right >> shift;
            for values in values[..whole].chunk_by_mut(equal) {
                if values.len() > 1 {
                    values.sort_unstable();
                }
            }
            memory.write(data.at(offset), block.get(whole * SIZE))?;
            self.progress.advance(whole);
        }
        Ok(true)
    }
}

impl Bucket {
    /// Writes the stage.
    fn write(&mut self, memory: &mut impl Memory, to: Range) -> Result<(), Stop> {
        if self.staged as u64 > self.end - self.next {
            return Err(Stop::Changed);
        }
        let offset = self.next * SIZE as u64;
        // The rest of this bucket will be written from here on, but the next elements of the other
        // buckets elsewhere: the whole rest is needed soon.
        to.expect_from(memory, offset, WRITE);
        memory.write(to.at(offset), self.stage[..self.staged].as_bytes())?;
        self.next += self.staged as u64;
        self.staged = 0;
        Ok(())
    }
}

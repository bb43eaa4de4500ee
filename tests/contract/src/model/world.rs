//! The pages of one process, the possible values of their words, and the steps of its threads.
//!
//! Every writing thread owns one word of each page and knows its value. It writes and reads its
//! words by CPU, by device and by the kernel, while other threads do the same with their words of
//! the same pages. Further threads move, swap and inspect pages, which changes no word. One thread
//! changes mappings and forks: then, and only then, all writing threads wait, because the expected
//! values change.
//!
//! Counters lie in pages of their own. All threads add to them, and their sum is known.

use std::fmt;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};
use fastrand::Rng;
use hmm::spec::wire::operation::{Compare, Fill};
use hmm::{Destination, Device, JobFailure, Reason, Status};

use crate::area::{Area, LARGE_PAGES, PAGE};
use crate::bound::{add, Bound};
use crate::child::Child;
use crate::sys;

/// The size of a world.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) threads: usize,
    pub(super) pages: usize,
}

/// The distance from one thread's word to the next one's, in words: each has its own cache line.
const STRIDE: usize = 8;
/// Pages of counters.
const COUNTERS: usize = 2;
/// Threads that change no word.
const MOVERS: u64 = 2;
/// The most forked processes at a time.
const CHILDREN: usize = 2;
/// One in this many steps may find its pages too busy: the other threads change them without end,
/// and a job may give up on them.
const BUSY: u64 = 20;

/// The possible values of a word.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    value: u64,
    /// It may also be zero: the kernel may have taken the page (`MADV_FREE`).
    or_zero: bool,
}

/// The possible values of one thread's words, by page.
type Words = Vec<Word>;

/// Counts of the steps.
#[derive(Debug, Default)]
pub(super) struct Tally {
    steps: AtomicU64,
    busy: AtomicU64,
    changes: AtomicU64,
    moved: AtomicU64,
    forks: AtomicU64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        write!(
            f,
            "{} steps ({} found pages too busy), {} changes of mappings, {} pages moved, {} forks",
            count(&self.steps),
            count(&self.busy),
            count(&self.changes),
            count(&self.moved),
            count(&self.forks)
        )
    }
}

struct World {
    area: Area,
    /// Whether the area was made of huge pages.
    large: bool,
    counters: Area,
    /// The sums of what all threads have added to the counters.
    sums: Vec<AtomicU64>,
    devices: Vec<Bound>,
    /// Held for reading during each step, and for writing by the thread that changes mappings.
    words: RwLock<Vec<Mutex<Words>>>,
    stop: AtomicBool,
    deadline: Instant,
    tally: Tally,
}

/// Runs a world until the deadline or until the first mistake.
pub(super) fn run(seed: u64, size: Size, large: bool, deadline: Instant) -> Result<Tally> {
    let area = if large {
        Area::large((size.pages * PAGE).div_ceil(crate::area::LARGE))?
    } else {
        Area::small(size.pages)?
    };
    let pages = area.pages();
    let world = World {
        area,
        large,
        counters: Area::small(COUNTERS)?,
        sums: (0..COUNTERS).map(|_| AtomicU64::new(0)).collect(),
        devices: (0..Device::list().len())
            .map(Bound::number)
            .collect::<Result<_>>()?,
        words: RwLock::new(
            (0..size.threads)
                .map(|_| Mutex::new(vec![Word::default(); pages]))
                .collect(),
        ),
        stop: AtomicBool::new(false),
        deadline,
        tally: Tally::default(),
    };
    thread::scope(|scope| -> Result<()> {
        let world = &world;
        let writers = (0..size.threads).map(|thread| {
            let mut rng = Rng::with_seed(seed ^ (thread as u64 + 1) << 48);
            scope.spawn(move || {
                world.until_the_end(|| world.write_or_read(thread, &mut rng), "writer")
            })
        });
        let movers = (0..MOVERS).map(|thread| {
            let mut rng = Rng::with_seed(seed ^ (thread + 1) << 40);
            scope.spawn(move || world.until_the_end(|| world.shuffle(&mut rng), "mover"))
        });
        let threads: Vec<_> = writers.chain(movers).collect();
        let mut rng = Rng::with_seed(seed);
        let mut children = Vec::new();
        let changer = world.until_the_end(
            || world.change(&mut rng, &mut children),
            "who changes mappings",
        );
        let ends = threads.into_iter().map(|thread| match thread.join() {
            Ok(end) => end,
            Err(_) => bail!("a thread broke down"),
        });
        // All threads have stopped before any is judged.
        let ends: Vec<_> = ends.collect();
        children.into_iter().try_for_each(Child::end)?;
        std::iter::once(changer).chain(ends).collect()
    })?;
    world.check_all(&mut Rng::with_seed(seed))?;
    Ok(world.tally)
}

/// The words, even if a thread panicked with the lock.
fn read<'a>(words: &'a RwLock<Vec<Mutex<Words>>>) -> RwLockReadGuard<'a, Vec<Mutex<Words>>> {
    words.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<'a>(words: &'a RwLock<Vec<Mutex<Words>>>) -> RwLockWriteGuard<'a, Vec<Mutex<Words>>> {
    words.write().unwrap_or_else(PoisonError::into_inner)
}

fn own(words: &mut Mutex<Words>) -> &mut Words {
    words.get_mut().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    fn until_the_end(&self, mut step: impl FnMut() -> Result<()>, who: &str) -> Result<()> {
        let mut number = 0_u64;
        while !self.stop.load(Ordering::Relaxed) && Instant::now() < self.deadline {
            number += 1;
            if let Err(error) = step() {
                self.stop.store(true, Ordering::Relaxed);
                return Err(error.context(format!("{who}, step {number}")));
            }
        }
        Ok(())
    }

    fn device(&self, rng: &mut Rng) -> &Bound {
        &self.devices[rng.usize(..self.devices.len())]
    }

    /// Some pages. Every other time, if pages are large, whole large ones.
    fn range(&self, rng: &mut Rng) -> std::ops::Range<usize> {
        if self.large && rng.bool() {
            let count = self.area.pages() / LARGE_PAGES;
            let first = rng.usize(..count);
            let end = rng.usize(first + 1..=count);
            return first * LARGE_PAGES..end * LARGE_PAGES;
        }
        let most = if rng.u8(..4) == 0 {
            self.area.pages()
        } else {
            8
        };
        let start = rng.usize(..self.area.pages());
        start..(start + 1 + rng.usize(..most)).min(self.area.pages())
    }

    /// Whether a job gave up because its pages were too busy, and so did nothing.
    fn is_busy(&self, failure: &JobFailure) -> Result<bool> {
        let busy = failure.status == Status::Storm || failure.reason == Some(Reason::Busy);
        if busy {
            let busy = self.tally.busy.fetch_add(1, Ordering::Relaxed);
            let steps = self.tally.steps.load(Ordering::Relaxed);
            ensure!(
                busy < 100 || busy < steps / BUSY,
                "{busy} of {steps} steps found their pages too busy"
            );
        }
        Ok(busy)
    }

    /// A step of a thread with its own words.
    fn write_or_read(&self, thread: usize, rng: &mut Rng) -> Result<()> {
        let words = read(&self.words);
        let mut own = words[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let page = rng.usize(..self.area.pages());
        let index = thread * STRIDE;
        self.tally.steps.fetch_add(1, Ordering::Relaxed);
        match rng.u8(..12) {
            0..=2 => {
                own[page] = Word {
                    value: rng.u64(1..),
                    or_zero: false,
                };
                self.area.write_word(page, index, own[page].value);
            }
            3..=5 => {
                let value = rng.u64(1..);
                let fill = Fill {
                    destination: (self.area.address(page) + index * 8) as u64,
                    bytes: 8,
                    pattern: value,
                };
                match self.device(rng).run(fill)? {
                    Ok(_) => {
                        own[page] = Word {
                            value,
                            or_zero: false,
                        }
                    }
                    Err(failure) if self.is_busy(&failure)? => {}
                    Err(failure) => bail!("page {page} cannot be written: {failure}"),
                }
            }
            6..=7 => check(
                &mut own[page],
                page,
                "a CPU",
                self.area.read_word(page, index),
            )?,
            8..=9 => self.check_by_device(&mut own[page], page, index, rng)?,
            10 => {
                let found = self.read_by_kernel(page, index)?;
                check(&mut own[page], page, "the kernel", found)?;
            }
            _ => {
                let page = rng.usize(..COUNTERS);
                let operand = rng.u64(..1000);
                if rng.bool() {
                    let counter = self.counters.counter(page, 0);
                    counter.fetch_add(operand, Ordering::Relaxed);
                } else if let Err(failure) =
                    self.device(rng)
                        .run(add(&self.counters, page, 0, operand, 1))?
                {
                    ensure!(self.is_busy(&failure)?, "counter {page}: {failure}");
                    return Ok(());
                }
                self.sums[page].fetch_add(operand, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// The kernel reads a word, as it does for another process.
    fn read_by_kernel(&self, page: usize, index: usize) -> Result<u64> {
        let mut bytes = [0; 8];
        let id = i32::try_from(process::id())?;
        let address = self.area.address(page) + index * 8;
        sys::read_process(id, address, &mut bytes).context("process_vm_readv")?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn check_by_device(
        &self,
        word: &mut Word,
        page: usize,
        index: usize,
        rng: &mut Rng,
    ) -> Result<()> {
        let device = self.device(rng);
        let reads = |wanted: &u64| {
            device.run(Compare {
                left: std::ptr::from_ref(wanted).expose_provenance() as u64,
                right: (self.area.address(page) + index * 8) as u64,
                bytes: 8,
            })
        };
        // Not on the stack: others would move its page.
        let wanted = Box::new([word.value, 0]);
        for wanted in wanted.iter().take(if word.or_zero { 2 } else { 1 }) {
            match reads(wanted)? {
                Ok([8, ..]) => return check(word, page, "a device", *wanted),
                Ok(_) => {}
                Err(failure) if self.is_busy(&failure)? => return Ok(()),
                Err(failure) => bail!("page {page} cannot be read: {failure}"),
            }
        }
        bail!(
            "a device reads page {page} as something else than {word:?}; a CPU reads {:#x}",
            self.area.read_word(page, index)
        )
    }

    /// A step that changes no word: it moves, swaps out or inspects pages.
    fn shuffle(&self, rng: &mut Rng) -> Result<()> {
        let range = self.range(rng);
        let device = self.device(rng);
        match rng.u8(..12) {
            0..=4 => {
                let moved = device.migrate(&self.area, range, Destination::Device)?;
                self.tally.moved.fetch_add(moved.moved, Ordering::Relaxed);
            }
            5..=6 => {
                let moved = device.migrate(&self.area, range, Destination::System)?;
                self.tally.moved.fetch_add(moved.moved, Ordering::Relaxed);
            }
            7 => {
                let counters = rng.usize(..COUNTERS);
                let to = [Destination::Device, Destination::System][rng.usize(..2)];
                device.migrate(&self.counters, counters..counters + 1, to)?;
            }
            8..=9 => {
                // All of it at once. Others write meanwhile, so the result is not judged.
                let address = self.area.address(range.start) as u64;
                let bytes = (range.len() * PAGE) as u64;
                let compare = Compare {
                    left: address,
                    right: address,
                    bytes,
                };
                if let Err(failure) = device.run(compare)? {
                    let mapped = [Some(Reason::Unmapped), Some(Reason::Denied)];
                    let told = mapped.contains(&failure.reason);
                    ensure!(told || self.is_busy(&failure)?, "{failure}");
                }
            }
            10 => {
                // Part of the range may be unmapped at this moment.
                let _ = self.area.try_advise(range, libc::MADV_PAGEOUT);
            }
            11 if self.large && rng.bool() => {
                // Split pages become large again where the kernel can do it.
                let _ = self.area.try_advise(range, libc::MADV_COLLAPSE);
            }
            _ => {
                device.states(&self.area, range)?;
            }
        }
        Ok(())
    }

    /// A step that changes mappings, while no other thread expects any value.
    fn change(&self, rng: &mut Rng, children: &mut Vec<Child>) -> Result<()> {
        if children.len() >= CHILDREN {
            children.remove(0).end()?;
        }
        let range = self.range(rng);
        // The other threads get a turn first, however long their steps take.
        thread::yield_now();
        let mut words = write(&self.words);
        self.tally.changes.fetch_add(1, Ordering::Relaxed);
        match rng.u8(..10) {
            0..=1 => {
                self.area.advise(range.clone(), libc::MADV_DONTNEED)?;
                for words in words.iter_mut() {
                    own(words)[range.clone()].fill(Word::default());
                }
            }
            2 => {
                self.area.advise(range.clone(), libc::MADV_FREE)?;
                for words in words.iter_mut() {
                    for word in &mut own(words)[range.clone()] {
                        word.or_zero = true;
                    }
                }
            }
            3 => {
                self.area.renew(range.clone())?;
                for words in words.iter_mut() {
                    own(words)[range.clone()].fill(Word::default());
                }
            }
            4 => {
                let pages = self.area.pages();
                let to = rng.usize(..=pages - range.len());
                if to < range.end && range.start < to + range.len() {
                    return Ok(());
                }
                let moved = self.area.remap(range.clone(), &self.area, to)?;
                // The moved range is part of the area again.
                std::mem::forget(moved);
                self.area.renew(range.clone())?;
                for words in words.iter_mut() {
                    own(words).copy_within(range.clone(), to);
                    own(words)[range.clone()].fill(Word::default());
                }
            }
            5..=6 => {
                self.area.protect(range.clone(), sys::READ)?;
                let page = range.start;
                let device = self.device(rng);
                let write = device.try_write(&self.area, page, 1)?;
                let refused = match &write {
                    Err(failure) => {
                        failure.reason == Some(Reason::Denied) || self.is_busy(failure)?
                    }
                    Ok(_) => false,
                };
                ensure!(refused, "page {page} is read-only: {write:?}");
                self.area.protect(range, sys::READ_WRITE)?;
            }
            _ => {
                self.tally.forks.fetch_add(1, Ordering::Relaxed);
                let seed = rng.u64(..);
                let words: Vec<Words> = words.iter_mut().map(|words| own(words).clone()).collect();
                children.push(Child::fork(|_| {
                    self.as_a_child(words, &mut Rng::with_seed(seed))
                })?);
            }
        }
        Ok(())
    }

    /// The steps of a forked child. It finds the values of the moment of the fork, and afterwards
    /// its own, whatever its parent and its siblings do.
    fn as_a_child(&self, mut words: Vec<Words>, rng: &mut Rng) -> Result<()> {
        let devices = (0..Device::list().len())
            .map(Bound::number)
            .collect::<Result<Vec<_>>>()?;
        for _ in 0..60 {
            let (thread, page) = (rng.usize(..words.len()), rng.usize(..self.area.pages()));
            let index = thread * STRIDE;
            let word = &mut words[thread][page];
            let device = &devices[rng.usize(..devices.len())];
            match rng.u8(..7) {
                0..=1 => {
                    let found = self.area.read_word(page, index);
                    check(word, page, "a child", found)?;
                }
                2..=3 => {
                    *word = Word {
                        value: rng.u64(1..),
                        or_zero: false,
                    };
                    let fill = Fill {
                        destination: (self.area.address(page) + index * 8) as u64,
                        bytes: 8,
                        pattern: word.value,
                    };
                    if let Err(failure) = device.run(fill)? {
                        bail!("a child's device cannot write page {page}: {failure}");
                    }
                }
                4..=5 => {
                    *word = Word {
                        value: rng.u64(1..),
                        or_zero: false,
                    };
                    self.area.write_word(page, index, word.value);
                }
                _ => {
                    let to = [Destination::Device, Destination::System][rng.usize(..2)];
                    device.migrate(&self.area, self.range(rng), to)?;
                }
            }
        }
        for (thread, words) in words.iter_mut().enumerate() {
            for (page, word) in words.iter_mut().enumerate() {
                let found = self.area.read_word(page, thread * STRIDE);
                check(word, page, "a child at its end", found)?;
            }
        }
        Ok(())
    }

    /// At the end no step is in flight: checks every word and every sum.
    fn check_all(&self, rng: &mut Rng) -> Result<()> {
        let mut words = write(&self.words);
        for (thread, words) in words.iter_mut().enumerate() {
            let index = thread * STRIDE;
            for (page, word) in own(words).iter_mut().enumerate() {
                if page % 16 == 0 {
                    self.check_by_device(word, page, index, rng)?;
                }
                check(
                    word,
                    page,
                    "a CPU at the end",
                    self.area.read_word(page, index),
                )?;
            }
        }
        for (page, sum) in self.sums.iter().enumerate() {
            let (sum, found) = (
                sum.load(Ordering::Relaxed),
                self.counters.read_word(page, 0),
            );
            ensure!(
                sum == found,
                "{sum} was added to counter {page}, which is {found}"
            );
        }
        Ok(())
    }
}

/// Compares a value with those that are possible.
fn check(word: &mut Word, page: usize, who: &str, found: u64) -> Result<()> {
    if word.or_zero && found == 0 {
        *word = Word::default();
    }
    ensure!(
        found == word.value,
        "{who} reads page {page} as {found:#x} instead of {word:x?}"
    );
    Ok(())
}

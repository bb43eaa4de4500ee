//! Duties that can be checked on any driver with the nodes of the kernel's own tests of HMM: on the
//! kernel's `test_hmm`, and on ours with `dmirror=1`.
//!
//! These cases are missing from `hmm-tests.c`. Each runs in a process of its own. It knows the
//! nodes by `DmirrorCommand` alone.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use hmm::spec::uapi::dmirror::{DmirrorCall, DmirrorCommand};
use hmm_cli::say;

use crate::area::{Area, Tag, LARGE_PAGES, PAGE, ZERO};
use crate::child::Child;
use crate::row::Outcome;
use crate::sys;

/// What can be chosen.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The node
    #[arg(long, default_value = "/dev/hmm_dmirror0")]
    node: String,

    /// Seed of the random steps
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Names of cases; by default all except those that a bug of the kernel itself breaks
    cases: Vec<String>,
}

struct Case {
    name: &'static str,
    /// Whether Linux 7.3 itself may break, with any driver.
    breaks_the_kernel: bool,
    run: fn(&Arguments) -> Result<()>,
}

const CASES: &[Case] = &[
    Case {
        name: "write-after-a-child-ended",
        breaks_the_kernel: false,
        run: write_after_a_child_ended,
    },
    Case {
        name: "written-pages-are-dirty",
        breaks_the_kernel: false,
        run: written_pages_are_dirty,
    },
    Case {
        name: "munmap-of-a-part",
        breaks_the_kernel: false,
        run: munmap_of_a_part,
    },
    Case {
        name: "two-threads-on-a-file",
        breaks_the_kernel: false,
        run: two_threads_on_a_file,
    },
    Case {
        name: "write-after-fork",
        breaks_the_kernel: false,
        run: write_after_fork,
    },
    Case {
        name: "random-steps",
        breaks_the_kernel: false,
        run: random_steps,
    },
    Case {
        name: "huge-discarded-on-its-way-back",
        breaks_the_kernel: true,
        run: huge_discarded_on_its_way_back,
    },
];

/// Runs cases. Returns whether all of them passed. Each prints a line, `NAME: VERDICT`, and its
/// name is announced before it is tried, because the kernel may not survive it.
///
/// # Errors
///
/// When there is no such case, or a process cannot be made.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    for name in &arguments.cases {
        let known = CASES.iter().any(|case| case.name == name);
        ensure!(known, "no case is called {name}");
    }
    let mut good = true;
    for case in CASES {
        let chosen = if arguments.cases.is_empty() {
            !case.breaks_the_kernel
        } else {
            arguments.cases.iter().any(|name| name == case.name)
        };
        if !chosen {
            continue;
        }
        let _ = std::fs::write("/dev/kmsg", format!("hmm-contract: {}", case.name));
        say!("{} ...", case.name);
        let child = Child::fork(|_| (case.run)(arguments))?;
        let outcome = Outcome::from(child.end());
        good &= outcome == Outcome::Kept;
        match outcome {
            Outcome::Kept => say!("{}: kept", case.name),
            Outcome::Broken(reason) | Outcome::CannotRun(reason) => {
                say!("{}: BROKEN: {reason}", case.name);
            }
        }
    }
    Ok(good)
}

/// A node that is bound to this process.
struct Node {
    file: File,
}

impl Node {
    fn new(arguments: &Arguments) -> Result<Self> {
        let path = &arguments.node;
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.with_context(|| format!("opening {path}"))?;
        Ok(Self { file })
    }

    fn call(&self, call: DmirrorCall, area: &Area, pages: Range<usize>, copy: &Area) -> Result<()> {
        let mut command = DmirrorCommand {
            addr: area.address(pages.start) as u64,
            ptr: copy.address(0) as u64,
            npages: pages.len() as u64,
            cpages: 0,
            faults: 0,
        };
        // SAFETY: every call of a node takes this structure. What it writes to the process's memory
        // lies in one of two areas, to which no reference exists.
        unsafe { sys::control(self.file.as_fd(), call.code(), &mut command) }
            .with_context(|| format!("{call:?} of pages {pages:?}"))?;
        ensure!(
            command.cpages == pages.len() as u64 || call == DmirrorCall::MigrateToSystem,
            "{call:?} of pages {pages:?}: {} are done",
            command.cpages
        );
        Ok(())
    }

    fn write(&self, area: &Area, pages: Range<usize>, tag: Tag) -> Result<()> {
        let copy = Area::small(pages.len())?;
        for (index, page) in pages.clone().enumerate() {
            (0..PAGE / 8).for_each(|at| copy.write_word(index, at, area.word(page, tag)));
        }
        self.call(DmirrorCall::Write, area, pages, &copy)
    }

    fn expect(&self, area: &Area, pages: Range<usize>, tag: Tag) -> Result<()> {
        let copy = Area::small(pages.len())?;
        self.call(DmirrorCall::Read, area, pages.clone(), &copy)?;
        for (index, page) in pages.enumerate() {
            for at in [0, 7, PAGE / 8 - 1] {
                let (found, wanted) = (copy.read_word(index, at), area.word(page, tag));
                ensure!(
                    found == wanted,
                    "the device reads {found:#x} in page {page} instead of {wanted:#x} (tag {tag})"
                );
            }
        }
        Ok(())
    }

    fn move_to_device(&self, area: &Area, pages: Range<usize>) -> Result<()> {
        let copy = Area::small(pages.len())?;
        self.call(DmirrorCall::MigrateToDevice, area, pages, &copy)
    }

    fn move_to_system(&self, area: &Area, pages: Range<usize>) -> Result<()> {
        let copy = Area::small(pages.len())?;
        self.call(DmirrorCall::MigrateToSystem, area, pages, &copy)
    }
}

fn write_after_a_child_ended(arguments: &Arguments) -> Result<()> {
    let node = Node::new(arguments)?;
    let area = Area::small(16)?;
    area.write(area.all(), 1);
    node.move_to_device(&area, area.all())?;
    Child::fork(|_| area.expect(0..4, 1))?.end()?;
    // The child's read has moved some pages to system memory; all belong to this process alone
    // again.
    node.write(&area, 0..4, 2)?;
    node.expect(&area, 0..4, 2)?;
    area.expect(0..4, 2)?;
    area.expect(4..16, 1)
}

fn written_pages_are_dirty(arguments: &Arguments) -> Result<()> {
    let node = Node::new(arguments)?;
    let area = Area::small(16)?;
    area.write(area.all(), 1);
    node.write(&area, area.all(), 1)?;
    area.advise(area.all(), libc::MADV_FREE)?;
    node.write(&area, area.all(), 2)?;
    // Reclaim drops pages here that are clean and marked as free.
    area.advise(area.all(), libc::MADV_PAGEOUT)?;
    area.expect(area.all(), 2)
}

fn munmap_of_a_part(arguments: &Arguments) -> Result<()> {
    let node = Node::new(arguments)?;
    let area = Area::large(1)?;
    area.write(area.all(), 1);
    node.move_to_device(&area, area.all())?;
    area.renew(64..128)?;
    area.expect(64..128, ZERO)?;
    node.expect(&area, 0..64, 1)?;
    node.expect(&area, 64..128, ZERO)?;
    node.write(&area, 128..192, 2)?;
    area.expect(128..192, 2)?;
    area.expect(192..LARGE_PAGES, 1)
}

fn two_threads_on_a_file(arguments: &Arguments) -> Result<()> {
    let node = Node::new(arguments)?;
    let area = Area::small(64)?;
    area.write(area.all(), 1);
    let begun = Instant::now();
    thread::scope(|scope| {
        let workers = [0..32, 32..64].map(|pages| {
            let (node, area) = (&node, &area);
            scope.spawn(move || -> Result<()> {
                let mut tag = 1;
                while begun.elapsed() < Duration::from_secs(2) {
                    tag = tag % 100 + 1;
                    // In system memory: writes of pages on the device are another case.
                    area.write(pages.clone(), tag);
                    node.expect(area, pages.clone(), tag)?;
                    node.write(area, pages.clone(), tag + 100)?;
                    area.expect(pages.clone(), tag + 100)?;
                    area.protect(pages.clone(), sys::READ)?;
                    area.protect(pages.clone(), sys::READ_WRITE)?;
                }
                Ok(())
            })
        });
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("a thread broke down"))?
        })
    })
}

fn write_after_fork(arguments: &Arguments) -> Result<()> {
    let node = Node::new(arguments)?;
    let area = Area::small(16)?;
    area.write(area.all(), 1);
    node.move_to_device(&area, area.all())?;
    let mut child = Child::fork(|turns| {
        turns.pass_and_wait()?;
        area.expect(area.all(), 1)
    })?;
    child.wait()?;
    // Two processes share these pages on the device: the write must copy this process's.
    node.write(&area, 0..8, 2)?;
    child.pass_and_end()?;
    area.expect(0..8, 2)?;
    area.expect(8..16, 1)
}

fn random_steps(arguments: &Arguments) -> Result<()> {
    const PAGES: usize = 64;
    const STEPS: usize = 1500;
    let node = Node::new(arguments)?;
    let area = Area::small(PAGES)?;
    area.write(area.all(), 1);
    let mut tags = [1; PAGES];
    let mut random = fastrand::Rng::with_seed(arguments.seed);
    for step in 0..STEPS {
        let first = random.usize(0..PAGES);
        let pages = first..random.usize(first + 1..=PAGES.min(first + 16));
        let tag = random.u8(1..=200);
        let kind = random.u8(0..6);
        let done = match kind {
            0 => node.move_to_device(&area, pages.clone()),
            1 => node.move_to_system(&area, pages.clone()),
            2 => {
                area.write(pages.clone(), tag);
                Ok(())
            }
            3 => node.write(&area, pages.clone(), tag),
            4 => pages
                .clone()
                .try_for_each(|page| node.expect(&area, page..page + 1, tags[page])),
            _ => pages
                .clone()
                .try_for_each(|page| area.expect(page..page + 1, tags[page])),
        };
        done.with_context(|| format!("seed {}, step {step}", arguments.seed))?;
        if kind == 2 || kind == 3 {
            tags[pages].fill(tag);
        }
    }
    Ok(())
}

/// When the owner of a huge page discards it while it moves from the device to system memory,
/// Linux 7.3 takes it for one that is already there. See `docs/kernel-findings.md`.
fn huge_discarded_on_its_way_back(arguments: &Arguments) -> Result<()> {
    let node = Node::new(arguments)?;
    let area = Area::large(1)?;
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    thread::scope(|scope| {
        let mover = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                // Some pages are absent at that moment, which is no mistake.
                let _ = node.move_to_device(&area, area.all());
                let _ = node.move_to_system(&area, area.all());
            }
            Ok(())
        });
        let mut result = Ok(());
        while begun.elapsed() < Duration::from_secs(20) && result.is_ok() {
            area.write_word(0, 0, 1);
            thread::sleep(Duration::from_micros(200));
            result = area.advise(area.all(), libc::MADV_DONTNEED);
        }
        stop.store(true, Ordering::Relaxed);
        match mover.join() {
            Ok(moved) => moved.and(result),
            Err(_) => bail!("the mover broke down"),
        }
    })
}

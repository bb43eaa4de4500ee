// SPDX-License-Identifier: GPL-2.0

//! Making pages of a process present, and mapping them on the device.
//!
//! A [`Wish`] says what is wanted of a region of 2 MiB. The [`Installer`] looks at the
//! region and, if all that is wanted is there, posts one `Map` for it under the lock of the
//! mirrored state. Else it has the kernel make present what lacks, and looks again; so it
//! does if something has changed in between.
//!
//! A page has the rights that the process has at that moment, and `ATOMIC` only where
//! somebody wants to replace a value: pages in device memory then keep it, anonymous pages
//! in ordinary memory are taken away from the CPUs for it.
//!
//! Knows nothing of who wants the pages, nor of how pages move, but for one call: a page in
//! device memory that must be written and is shared after a fork is sent home first.

use crate::{
    command::{Answer, Frame, Map},
    device::Device,
    mapped::Region,
    migrate,
    mm::{
        hmm::{Committed, HmmPage, Pages, Want},
        migrate::page_range,
        LARGE_ORDER, LARGE_PAGES, PAGE_SHIFT, PAGE_SIZE,
    },
    queue::{Message, Sent},
    space::{Mapper, Space},
    virtio::Handler,
    wire::rights,
    wish::{Atomics, Wish},
};
use core::ops::Range;
use kernel::{
    mm::MmWithUser,
    prelude::*,
    sync::Arc,
    time::{delay::fsleep, Delta, Instant, Monotonic},
};

/// How often at least it is tried anew because the process changed its mappings.
const ATTEMPTS: u32 = 64;

/// How long at least, in milliseconds: where others have pages on the move, attempts end at once.
const PERSISTENCE: i64 = 2000;

/// How long the kernel may wait for changes by others in one attempt, in milliseconds.
const PATIENCE: u32 = 1000;

/// How often it is tried to map what nobody waits for: once to see what lacks, once when it is
/// there.
const ATTEMPTS_AHEAD: u32 = 2;

/// Counts attempts.
struct Attempts {
    left: u32,
    /// For so many milliseconds their number does not matter.
    persistence: i64,
    begun: Instant<Monotonic>,
}

impl Attempts {
    fn new() -> Self {
        Self {
            left: ATTEMPTS,
            persistence: PERSISTENCE,
            begun: Instant::now(),
        }
    }

    /// For what nobody waits for.
    fn ahead() -> Self {
        Self {
            left: ATTEMPTS_AHEAD,
            persistence: 0,
            begun: Instant::now(),
        }
    }

    /// Whether it makes sense to try once more.
    fn go_on(&mut self) -> bool {
        let goes_on = self.left > 0 || self.begun.elapsed().as_millis() < self.persistence;
        self.left = self.left.saturating_sub(1);
        goes_on
    }
}

/// What has been mapped.
pub(crate) struct Installed {
    /// Pages in device memory that were wanted, or welcome, and are mapped.
    pub(crate) in_device: u64,
    /// Where what could be wished for ends.
    pub(crate) end: usize,
    /// The request by which they were mapped, if there were any.
    pub(crate) request: Option<Sent<Map>>,
}

/// The memory that it takes to map pages of a region.
struct Means {
    map: Message<Map>,
    region: Region,
}

/// How one attempt went.
enum Attempt {
    Done(Installed),
    /// The process has changed its mappings meanwhile.
    Changed,
    /// A page that was asked for is not there, or not so that it can be written.
    Lacking,
    /// Pages of this range must be written, but are shared with another process and in
    /// device memory.
    Shared(Range<usize>),
    /// The page is in ordinary memory, where the wish does not want it.
    Elsewhere,
}

/// Maps pages of a process on the device.
pub(crate) struct Installer<'a> {
    space: &'a Space,
    mm: &'a MmWithUser,
    pages: Pages,
}

impl<'a> Installer<'a> {
    /// For the process of a space, whose memory is `mm`.
    pub(crate) fn new(space: &'a Space, mm: &'a MmWithUser) -> Result<Self> {
        Ok(Self {
            space,
            mm,
            pages: Pages::new(LARGE_PAGES)?,
        })
    }

    /// Maps what is wished for of the region around an address. Posts `answers` behind it.
    ///
    /// # Errors
    ///
    /// - `EFAULT` if the process has nothing there, or may not read it.
    /// - `EPERM` if it may not write to it.
    /// - `EHWPOISON` if a page is poisoned, `ENOMEM` if there is no memory for it.
    /// - `EBUSY` if the process kept changing its mappings.
    /// - `ESRCH` if the space has ended, `EINTR` if the caller is being killed.
    /// - `EIO` or `ENODEV` if the device is given up.
    /// - What `describe` returns.
    pub(crate) fn install(
        &mut self,
        address: usize,
        describe: impl Fn(&mut Wish) -> Result,
        answers: &mut Option<Message<Answer>>,
    ) -> Result<Installed> {
        // Only a wish for atomics can be for another place.
        self.settle(address, describe, answers, Attempts::new())?
            .ok_or(EBUSY)
    }

    /// The same for what nobody waits for as yet: it is not tried for long, and the device is not
    /// told before [`Self::tell`].
    ///
    /// # Errors
    ///
    /// As [`Self::install`].
    pub(crate) fn install_ahead(
        &mut self,
        address: usize,
        describe: impl Fn(&mut Wish) -> Result,
    ) -> Result<Installed> {
        self.seek(address, describe, &mut None, Attempts::ahead())?
            .ok_or(EBUSY)
    }

    /// Tells the device of all that was mapped, unless it knows.
    pub(crate) fn tell(&self) {
        self.space.device.core.link.kick::<Map>();
    }

    /// Maps the page at an address so that the device can write to it and replace values
    /// atomically. Posts `answers` behind it.
    ///
    /// # Errors
    ///
    /// As [`Self::install`].
    pub(crate) fn install_atomic(
        &mut self,
        address: usize,
        answers: &mut Option<Message<Answer>>,
    ) -> Result<Installed> {
        let wish = |atomics| {
            move |wish: &mut Wish| {
                wish.want_atomics(address, atomics);
                Ok(())
            }
        };
        let in_device = wish(Atomics::InDevice);
        if let Some(installed) = self.settle(address, in_device, answers, Attempts::new())? {
            return Ok(installed);
        }
        match self.install_exclusive(address, answers) {
            Err(error) if error == EOPNOTSUPP => {}
            other => return other,
        }
        // CPUs keep the page, and the device's atomic operations are atomic to them also.
        let anywhere = wish(Atomics::Anywhere);
        self.settle(address, anywhere, answers, Attempts::new())?
            .ok_or(EBUSY)
    }

    /// Takes the page at an address away from the CPUs, and maps it so that the device can
    /// write to it and replace values atomically. A page in device memory is brought home
    /// first. Posts `answers` behind it.
    ///
    /// # Errors
    ///
    /// As [`Self::install`], and `EOPNOTSUPP` if it is no anonymous page.
    pub(crate) fn install_exclusive(
        &mut self,
        address: usize,
        answers: &mut Option<Message<Answer>>,
    ) -> Result<Installed> {
        let mut attempts = Attempts::new();
        while attempts.go_on() {
            match self.attempt_exclusive(address, answers)? {
                Some(installed) => return Ok(installed),
                None => self.count_retry(),
            }
        }
        Err(EBUSY)
    }

    /// As [`Self::install`]; `None` if a page is elsewhere than the wish wants it.
    fn settle(
        &mut self,
        address: usize,
        describe: impl Fn(&mut Wish) -> Result,
        answers: &mut Option<Message<Answer>>,
        attempts: Attempts,
    ) -> Result<Option<Installed>> {
        let installed = self.seek(address, describe, answers, attempts)?;
        self.tell();
        Ok(installed)
    }

    /// The same without telling the device.
    fn seek(
        &mut self,
        address: usize,
        describe: impl Fn(&mut Wish) -> Result,
        answers: &mut Option<Message<Answer>>,
        mut attempts: Attempts,
    ) -> Result<Option<Installed>> {
        // All that may take memory comes before the lock.
        let mut means = Some(Means {
            map: self.map_message(LARGE_PAGES)?,
            region: Region::around(address)?,
        });
        while attempts.go_on() {
            let mut wish = Wish::around(self.mm, address).ok_or(EFAULT)?;
            describe(&mut wish)?;
            match self.attempt(&wish, &mut means, answers) {
                Ok(Attempt::Done(installed)) => return Ok(Some(installed)),
                Ok(Attempt::Elsewhere) => return Ok(None),
                Ok(Attempt::Lacking) => self.fault(&wish)?,
                Ok(Attempt::Changed) => self.count_retry(),
                Ok(Attempt::Shared(range)) => {
                    // A write needs a copy of its own, which only the kernel makes, and
                    // only of ordinary memory.
                    let tally = migrate::to_system(self.space, self.mm, range)?;
                    if tally.moved == 0 {
                        // Somebody else has them on the move, which takes a moment.
                        fsleep(Delta::from_micros(100));
                    }
                }
                Err(error) if error == EBUSY => self.count_retry(),
                Err(error) => return Err(error),
            }
        }
        Err(EBUSY)
    }

    fn count_retry(&self) {
        self.space.device.core.counters.fault_retries.increment();
    }

    /// Has the kernel make present what the wish asks for, and nothing else.
    fn fault(&mut self, wish: &Wish) -> Result {
        for (range, want) in wish.runs() {
            let fault = self.space.interval.fault(
                self.mm,
                range,
                self.space.device.pagemap.owner(),
                PATIENCE,
                &mut self.pages,
                want,
            );
            match fault {
                Err(error) if error == EBUSY => self.count_retry(),
                other => other?,
            }
        }
        Ok(())
    }

    /// Maps what the wish is about as it is now, by `means`, which are taken if that is
    /// possible.
    fn attempt(
        &mut self,
        wish: &Wish,
        means: &mut Option<Means>,
        answers: &mut Option<Message<Answer>>,
    ) -> Result<Attempt> {
        let device = &*self.space.device;
        let core = &device.core;
        let snapshot = self.space.interval.snapshot(
            self.mm,
            wish.window.clone(),
            device.pagemap.owner(),
            PATIENCE,
            &mut self.pages,
        )?;
        let map_room = core.link.room::<Map>()?;
        let answer_room = core.link.room::<Answer>()?;
        let Ok(mut committed) = snapshot.commit() else {
            return Ok(Attempt::Changed);
        };
        if committed.state().is_ended() {
            return Err(ESRCH);
        }
        if let Some(obstacle) = judge(device, &committed, wish) {
            return Ok(obstacle);
        }
        let Means {
            mut map,
            mut region,
        } = means.take().ok_or(EINVAL)?;
        let (pages, in_device) = write_map(device, &committed, wish, &mut map, &mut region)?;
        let leftover = committed.state().record(region);
        // The lock is held until both are in the ring: the `Unmap` of any later change
        // comes behind them.
        let request = (map.count() > 0).then(|| core.link.post(map_room, map));
        if let Some(answers) = answers.take() {
            core.link.post(answer_room, answers);
        }
        drop(committed);
        drop(leftover);
        core.counters.fault_pages.add(pages);
        Ok(Attempt::Done(Installed {
            in_device,
            end: wish.window.end,
            request,
        }))
    }

    /// `None` if the process has changed its mappings meanwhile.
    fn attempt_exclusive(
        &mut self,
        address: usize,
        answers: &mut Option<Message<Answer>>,
    ) -> Result<Option<Installed>> {
        let core = &self.space.device.core;
        let mut map = self.map_message(1)?;
        let mut region = Region::around(address)?;
        let exclusive = match self.space.interval.make_exclusive(self.mm, address) {
            Ok(exclusive) => exclusive,
            Err(error) if error == EBUSY => return Ok(None),
            Err(error) => return Err(error),
        };
        // Not before, because it may itself have needed room: it moves pages.
        let map_room = core.link.room::<Map>()?;
        let answer_room = core.link.room::<Answer>()?;
        let Some(mut committed) = exclusive.commit() else {
            return Ok(None);
        };
        if committed.state().is_ended() {
            return Err(ESRCH);
        }
        let page = page_range(address);
        region.add_exclusive(page.start);
        committed.mark_dirty();
        let frame = Frame::System(committed.pfn() as u64);
        map.push(&Map::entry(page.start, frame, 1, false, rights::ALL))?;
        let leftover = committed.state().record(region);
        let request = Some(core.link.post(map_room, map));
        if let Some(answers) = answers.take() {
            core.link.post(answer_room, answers);
        }
        // Not before the requests are in the ring: the page is kept for the device so long.
        drop(committed);
        drop(leftover);
        self.tell();
        core.counters.fault_pages.increment();
        Ok(Some(Installed {
            in_device: 0,
            end: page.end,
            request,
        }))
    }

    fn map_message(&self, capacity: usize) -> Result<Message<Map>> {
        let watch = Some(self.space.device.core.watch.clone() as Arc<dyn Handler>);
        Message::with_handler(self.space.id(), capacity, 0, watch, GFP_KERNEL)
    }
}

/// What keeps the wish from being fulfilled with the pages that there are, if anything.
fn judge(device: &Device, committed: &Committed<'_, Mapper>, wish: &Wish) -> Option<Attempt> {
    let mut shared: Option<Range<usize>> = None;
    for place in 0..committed.len() {
        let Some(want) = wish.asks_for(place) else {
            continue;
        };
        let found = committed.page(place);
        let Some((page, pfn)) = found.and_then(|page| Some((page, page.pfn()?))) else {
            return Some(Attempt::Lacking);
        };
        let is_ours = device.pagemap.frame(pfn).is_some();
        if want == Want::Write && !page.is_writable() {
            if !is_ours || device.pagemap.is_coherent() {
                return Some(Attempt::Lacking);
            }
            // No fault for the device does anything about it, as a CPU's would.
            let page = page_range(wish.window.start + (place << PAGE_SHIFT));
            shared = Some(shared.map_or(page.start, |shared| shared.start)..page.end);
        } else if wish.atomics == Atomics::InDevice && !is_ours {
            return Some(Attempt::Elsewhere);
        }
    }
    shared.map(Attempt::Shared)
}

/// Writes what is to be mapped; returns how many pages of the wish that is, and how many
/// among them are in device memory.
fn write_map(
    device: &Device,
    committed: &Committed<'_, Mapper>,
    wish: &Wish,
    map: &mut Message<Map>,
    region: &mut Region,
) -> Result<(u64, u64)> {
    let place_of = |pfn: usize| match device.pagemap.frame(pfn) {
        Some(frame) => Frame::Device(frame),
        None => Frame::System(pfn as u64),
    };
    if let Some((head, pfn)) = large(committed) {
        let frame = place_of(pfn);
        let rights = rights_of(head, frame, wish);
        let write = rights & rights::WRITE != 0;
        if write {
            head.mark_dirty();
        }
        region.add(wish.window.start, LARGE_PAGES, write);
        let pages = LARGE_PAGES as u32;
        map.push(&Map::entry(wish.window.start, frame, pages, true, rights))?;
        let wanted = (0..LARGE_PAGES)
            .filter(|&place| wish.is_wanted(place))
            .count() as u64;
        return Ok((wanted, if frame.is_device() { wanted } else { 0 }));
    }

    let (mut mapped, mut in_device) = (0, 0);
    // A run of pages that can be mapped by one entry: its first address, frame and rights,
    // and how many pages it has.
    let mut run: Option<(usize, Frame, u32, u32)> = None;
    for place in 0..committed.len() {
        let found = committed.page(place).filter(|_| wish.is_wanted(place));
        let Some((page, pfn)) = found.and_then(|page| Some((page, page.pfn()?))) else {
            continue;
        };
        let frame = place_of(pfn);
        let rights = rights_of(page, frame, wish);
        let write = rights & rights::WRITE != 0;
        if write {
            page.mark_dirty();
        }
        mapped += 1;
        in_device += u64::from(frame.is_device());
        let address = wish.window.start + (place << PAGE_SHIFT);
        region.add(address, 1, write);
        run = match run {
            Some((start, first, same, pages))
                if address == start + pages as usize * PAGE_SIZE
                    && frame == first.after(pages.into())
                    && rights == same =>
            {
                Some((start, first, same, pages + 1))
            }
            other => {
                if let Some((start, first, rights, pages)) = other {
                    map.push(&Map::entry(start, first, pages, false, rights))?;
                }
                Some((address, frame, rights, 1))
            }
        };
    }
    if let Some((start, first, rights, pages)) = run {
        map.push(&Map::entry(start, first, pages, false, rights))?;
    }
    Ok((mapped, in_device))
}

/// The rights that the device gets to a page: none that the process does not have, and
/// none to change it as long as nobody asks to.
fn rights_of(page: HmmPage<'_>, frame: Frame, wish: &Wish) -> u32 {
    if !wish.write || !page.is_writable() {
        rights::READ
    } else if frame.is_device() || wish.atomics == Atomics::Anywhere {
        rights::ALL
    } else {
        rights::READ | rights::WRITE
    }
}

/// The large page that fills the window, and the number of its first frame.
fn large<'c>(committed: &'c Committed<'_, Mapper>) -> Option<(HmmPage<'c>, usize)> {
    if committed.len() != LARGE_PAGES {
        return None;
    }
    let head = committed.page(0)?;
    let pfn = head.pfn()?;
    (head.order() >= LARGE_ORDER && pfn % LARGE_PAGES == 0).then_some((head, pfn))
}

// SPDX-License-Identifier: GPL-2.0

//! Makes pages of a process present and maps them on the device.
//!
//! A [`FaultRequest`] describes what is requested of a region of 2 MiB. The [`PageMapper`] looks at
//! the region. If everything requested is present, it posts one `Map` for it under the lock of the
//! mirrored state. Otherwise it has the kernel make the missing pages present, and looks again. It
//! also looks again if something has changed in between.
//!
//! A page gets the rights that the process has at that moment. It gets `ATOMIC` only if a job has
//! requested to replace a value: pages in device memory then keep it, and anonymous pages in system
//! memory are taken away from the CPUs for it.
//!
//! Knows neither why the pages are requested nor how pages move, except for one call: a page in
//! device memory that must be written and is shared after a fork is first moved to system memory.

use crate::{
    device::{
        command::{Answer, Frame, Map},
        queue::{Message, Sent},
        Device,
    },
    fault::{
        attempts::Attempts,
        request::{Atomics, FaultRequest},
    },
    late,
    migrate::{pipeline::Until, to_system::to_system},
    mm::{
        address_at, has_process,
        hmm::{Committed, HmmPage, HmmPfns, HmmRange, HmmRequest},
        page_range, HPAGE_PMD_NR, HPAGE_PMD_ORDER,
    },
    quirks::follow_writes::is_tracked,
    space::{mapped::Region, mirror::SpaceMirror, Space},
    trace,
    uapi::{late::LatePoint, trace::Cause},
    virtio::Handler,
    wire::rights,
};
use core::ops::Range;
use kernel::{
    current,
    mm::MmWithUser,
    prelude::*,
    sync::Arc,
    time::{delay::fsleep, Delta, Instant, Monotonic},
};

/// How long one attempt may wait in the kernel for changes by other threads.
const TIMEOUT: Delta = Delta::from_millis(100);

/// What has been mapped.
pub(crate) struct MapOutcome {
    /// Requested pages, required or optional, that are mapped and are in device memory.
    pub(crate) in_device: u64,
    /// The end of the window that the request could cover.
    pub(crate) end: usize,
    /// The request that mapped them, if there were any.
    pub(crate) request: Option<Sent<Map>>,
}

/// Preallocated memory for mapping pages of a region.
struct MapResources {
    map: Message<Map>,
    region: Region,
}

/// The outcome of one attempt.
enum Attempt {
    Done(MapOutcome),
    /// The process has changed its mappings meanwhile.
    Changed,
    /// A requested page is not present, or not writable as requested.
    Lacking,
    /// Pages of this range must be written, but are in device memory and shared with another
    /// process.
    Shared(Range<usize>),
    /// The page is in system memory, where the request does not want it.
    Elsewhere,
}

/// What a trace tells of one call of a [`PageMapper`].
#[derive(Default)]
struct Traced {
    pages: u64,
    retries: u64,
}

/// Maps pages of a process on the device.
pub(crate) struct PageMapper<'a> {
    space: &'a Space,
    mm: &'a MmWithUser,
    pfns: HmmPfns,
    /// Pages that were mapped, and attempts that were in vain, by one call.
    traced: Traced,
    /// Whether other faults wait for the caller, not counting those that arrive meanwhile.
    pub(crate) is_awaited: bool,
}

impl<'a> PageMapper<'a> {
    /// For the process of a space, whose address space is `mm`.
    pub(crate) fn new(space: &'a Space, mm: &'a MmWithUser) -> Result<Self> {
        Ok(Self {
            space,
            mm,
            pfns: HmmPfns::new(HPAGE_PMD_NR)?,
            traced: Traced::default(),
            is_awaited: false,
        })
    }

    /// Maps what is requested of the region around an address. Posts `answers` behind it.
    ///
    /// # Errors
    ///
    /// - `EFAULT` if the process has nothing there, or may not read it.
    /// - `EPERM` if it may not write to it.
    /// - `EHWPOISON` if a page is poisoned, `ENOMEM` if there is no memory for it.
    /// - `EBUSY` if the process kept changing its mappings.
    /// - `ESRCH` if the space has ended, `EINTR` if the caller is being killed.
    /// - `EAGAIN` if a page takes long and other faults wait for the caller.
    /// - `EIO` or `ENODEV` if the device is given up.
    /// - What `describe` returns.
    pub(crate) fn map(
        &mut self,
        address: usize,
        describe: impl Fn(&mut FaultRequest) -> Result,
        answers: &mut Option<Message<Answer>>,
    ) -> Result<MapOutcome> {
        self.traced(address, answers, |mapper, answers| {
            // Only a request for atomics can depend on where the page is.
            mapper
                .map_and_kick(address, describe, answers, Attempts::new(mapper.space))?
                .ok_or(EBUSY)
        })
    }

    /// The same for pages that no job waits for yet: fewer attempts, and the device is not kicked
    /// before [`Self::kick`].
    ///
    /// # Errors
    ///
    /// As [`Self::map`].
    pub(crate) fn map_ahead(
        &mut self,
        address: usize,
        describe: impl Fn(&mut FaultRequest) -> Result,
    ) -> Result<MapOutcome> {
        self.traced(address, &mut None, |mapper, answers| {
            mapper
                .try_map(address, describe, answers, Attempts::ahead(mapper.space))?
                .ok_or(EBUSY)
        })
    }

    /// Kicks the device for everything that was mapped, unless it has been kicked since.
    pub(crate) fn kick(&self) {
        self.space.device.core.link.kick::<Map>();
    }

    /// Maps the page at an address so that the device can write to it and replace values
    /// atomically. Posts `answers` behind it.
    ///
    /// # Errors
    ///
    /// As [`Self::map`].
    pub(crate) fn map_atomic(
        &mut self,
        address: usize,
        answers: &mut Option<Message<Answer>>,
    ) -> Result<MapOutcome> {
        self.traced(address, answers, |mapper, answers| {
            mapper.map_for_atomics(address, answers)
        })
    }

    fn map_for_atomics(
        &mut self,
        address: usize,
        answers: &mut Option<Message<Answer>>,
    ) -> Result<MapOutcome> {
        if let Some(outcome) = self.answer_exclusive(address, answers)? {
            return Ok(outcome);
        }
        let wanted = |atomics| {
            move |wanted: &mut FaultRequest| {
                wanted.require_atomics(address, atomics);
                Ok(())
            }
        };
        let in_device = wanted(Atomics::InDevice);
        if let Some(outcome) =
            self.map_and_kick(address, in_device, answers, Attempts::new(self.space))?
        {
            return Ok(outcome);
        }
        match self.try_exclusive(address, answers) {
            Err(error) if error == EOPNOTSUPP => {}
            other => return other,
        }
        // CPUs keep the page; the device's atomic operations are atomic to them as well.
        let anywhere = wanted(Atomics::Anywhere);
        self.map_and_kick(address, anywhere, answers, Attempts::new(self.space))?
            .ok_or(EBUSY)
    }

    /// Posts `answers` if the page at an address is already exclusive: the `Map` that made it so
    /// was posted before them. Making it exclusive again would first give it back to the CPUs, and
    /// every job that uses it would fault again. `None` if the page is not exclusive.
    fn answer_exclusive(
        &mut self,
        address: usize,
        answers: &mut Option<Message<Answer>>,
    ) -> Result<Option<MapOutcome>> {
        let core = &self.space.device.core;
        if core.watch.has_refused() {
            return Ok(None);
        }
        // What a change takes away stays recorded until the change is over.
        self.space.notifier.wait_for_changes();
        let slot = core.link.reserve_slot::<Answer>()?;
        let page = page_range(address);
        let mapped = self.space.notifier.lock();
        if mapped.is_ended() {
            return Err(ESRCH);
        }
        if !mapped.has_exclusive(&page) {
            return Ok(None);
        }
        if let Some(answers) = answers.take() {
            core.link.post(slot, answers);
        }
        drop(mapped);
        self.kick();
        Ok(Some(MapOutcome {
            in_device: 0,
            end: page.end,
            request: None,
        }))
    }

    /// Takes the page at an address away from the CPUs, and maps it so that the device can write to
    /// it and replace values atomically. A page in device memory is first moved to system memory.
    /// Posts `answers` behind it.
    ///
    /// # Errors
    ///
    /// As [`Self::map`], and `EOPNOTSUPP` if it is not an anonymous page.
    pub(crate) fn map_exclusive(
        &mut self,
        address: usize,
        answers: &mut Option<Message<Answer>>,
    ) -> Result<MapOutcome> {
        self.traced(address, answers, |mapper, answers| {
            mapper.try_exclusive(address, answers)
        })
    }

    fn try_exclusive(
        &mut self,
        address: usize,
        answers: &mut Option<Message<Answer>>,
    ) -> Result<MapOutcome> {
        let mut attempts = Attempts::new(self.space);
        while attempts.go_on() {
            match self.attempt_exclusive(address, answers)? {
                Some(outcome) => return Ok(outcome),
                None => self.count_retry(),
            }
        }
        Err(EBUSY)
    }

    /// Traces one call that maps pages of a region.
    fn traced(
        &mut self,
        address: usize,
        answers: &mut Option<Message<Answer>>,
        map: impl FnOnce(&mut Self, &mut Option<Message<Answer>>) -> Result<MapOutcome>,
    ) -> Result<MapOutcome> {
        let begun = Instant::<Monotonic>::now();
        let faults = answers.as_ref().map_or(0, Message::count);
        let mapped = map(self, answers);
        let Traced { pages, retries } = core::mem::take(&mut self.traced);
        trace::resolve(|| trace::Resolve {
            device: self.space.device.core.node(),
            space: self.space.id(),
            address: address as u64,
            faults,
            error: mapped.as_ref().map_or_else(|error| error.to_errno(), |_| 0),
            pages,
            retries,
            nanoseconds: begun.elapsed().as_nanos().unsigned_abs(),
        });
        mapped
    }

    /// As [`Self::map`]; `None` if the page is not where the request wants it.
    fn map_and_kick(
        &mut self,
        address: usize,
        describe: impl Fn(&mut FaultRequest) -> Result,
        answers: &mut Option<Message<Answer>>,
        attempts: Attempts<'_>,
    ) -> Result<Option<MapOutcome>> {
        let outcome = self.try_map(address, describe, answers, attempts)?;
        self.kick();
        Ok(outcome)
    }

    /// The same without kicking the device.
    fn try_map(
        &mut self,
        address: usize,
        describe: impl Fn(&mut FaultRequest) -> Result,
        answers: &mut Option<Message<Answer>>,
        mut attempts: Attempts<'_>,
    ) -> Result<Option<MapOutcome>> {
        // Everything that allocates comes before the lock.
        let mut resources = Some(MapResources {
            map: self.map_message(HPAGE_PMD_NR)?,
            region: Region::around(address)?,
        });
        while attempts.go_on() {
            // What the VMA is must not change until the pages are mapped.
            let seq = self.space.notifier.read_begin();
            let mut wanted = FaultRequest::around(self.mm, address).ok_or(EFAULT)?;
            describe(&mut wanted)?;
            match self.attempt(&wanted, seq, &mut resources, answers) {
                Ok(Attempt::Done(outcome)) => return Ok(Some(outcome)),
                Ok(Attempt::Elsewhere) => return Ok(None),
                Ok(Attempt::Lacking) => {
                    // Earlier mappings must not wait until this page is present.
                    self.kick();
                    self.fault(&wanted, &mut attempts)?;
                    attempts.progressed();
                }
                Ok(Attempt::Changed) => self.count_retry(),
                Ok(Attempt::Shared(range)) => {
                    // A write needs a private copy. Only the kernel makes it, and only of system
                    // memory.
                    let moved =
                        to_system(self.space, self.mm, range, Until::Done, Cause::DeviceFault)?;
                    if moved.tally.moved == 0 {
                        // Another thread is migrating them, which takes a moment.
                        fsleep(Delta::from_micros(100));
                    }
                }
                Err(error) if error == EBUSY => self.count_retry(),
                Err(error) => return Err(error),
            }
        }
        Err(EBUSY)
    }

    fn count_retry(&mut self) {
        self.traced.retries = self.traced.retries.saturating_add(1);
        self.space.device.core.counters.fault_retries.increment();
    }

    /// Has the kernel make the requested pages present, and no others.
    fn fault(&mut self, wanted: &FaultRequest, attempts: &mut Attempts<'_>) -> Result {
        attempts.faulting();
        for (range, request) in wanted.runs() {
            let owner = self.space.device.pagemap.owner();
            let range = HmmRange::new(&self.space.notifier, range, owner);
            let fault = range.fault(self.mm, TIMEOUT, &mut self.pfns, request);
            match fault {
                Err(error) if error == EBUSY => self.count_retry(),
                Err(error) if error == EINTR => {
                    attempts.waited_long();
                    self.waited_long()?;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// The page takes long: checks whether it is still needed.
    ///
    /// # Errors
    ///
    /// `ESRCH` if the space has ended or the process is gone, `EINTR` if the caller is being
    /// killed, `EAGAIN` if other faults wait for the caller.
    fn waited_long(&mut self) -> Result {
        if current!().signal_pending() {
            return Err(EINTR);
        }
        if self.space.notifier.lock().is_ended() || !has_process(self.mm) {
            return Err(ESRCH);
        }
        self.count_retry();
        if self.is_awaited || !self.space.inbox.is_empty() {
            return Err(EAGAIN);
        }
        Ok(())
    }

    /// Maps what is requested as it is now, with `resources`, which are taken if that succeeds. The
    /// request was made when the notifier had this sequence.
    fn attempt(
        &mut self,
        wanted: &FaultRequest,
        seq: usize,
        resources: &mut Option<MapResources>,
        answers: &mut Option<Message<Answer>>,
    ) -> Result<Attempt> {
        let device = &*self.space.device;
        let core = &device.core;
        let (window, owner) = (wanted.window.clone(), device.pagemap.owner());
        let range = HmmRange::new(&self.space.notifier, window, owner);
        let snapshot = range.snapshot(self.mm, TIMEOUT, &mut self.pfns)?;
        let (map_slot, answer_slot) = if answers.is_some() {
            // Both or none: a thread that holds one slot must not wait for a second one.
            let [map_slot, answer_slot] = core.link.reserve_two_slots::<Map>()?;
            (map_slot, Some(answer_slot))
        } else {
            (core.link.reserve_slot::<Map>()?, None)
        };
        late::at(LatePoint::Lock);
        let Ok(mut committed) = snapshot.commit() else {
            return Ok(Attempt::Changed);
        };
        if committed.state().is_ended() {
            return Err(ESRCH);
        }
        if committed.has_changed_since(seq) {
            return Ok(Attempt::Changed);
        }
        if let Some(obstacle) = check(device, &committed, wanted)? {
            return Ok(obstacle);
        }
        let MapResources {
            mut map,
            mut region,
        } = resources.take().ok_or(EINVAL)?;
        let (pages, in_device) = write_map(device, &committed, wanted, &mut map, &mut region)?;
        // The lock is held until both are in the ring, so the `Unmap` of any later change comes
        // behind them. {drv-map-before-retry}
        let request = (map.count() > 0).then(|| core.link.post(map_slot, map));
        let position = request.as_ref().map(Sent::position);
        let leftover = committed.state().record(region, position);
        if let Some((slot, answers)) = answer_slot.zip(answers.take()) {
            core.link.post(slot, answers);
        }
        drop(committed);
        drop(leftover);
        self.count_pages(pages);
        Ok(Attempt::Done(MapOutcome {
            in_device,
            end: wanted.window.end,
            request,
        }))
    }

    /// `None` if the process has changed its mappings meanwhile.
    fn attempt_exclusive(
        &mut self,
        address: usize,
        answers: &mut Option<Message<Answer>>,
    ) -> Result<Option<MapOutcome>> {
        let core = &self.space.device.core;
        let mut map = self.map_message(1)?;
        let mut region = Region::around(address)?;
        let exclusive = match self.space.notifier.make_exclusive(self.mm, address) {
            Ok(exclusive) => exclusive,
            Err(error) if error == EBUSY => return Ok(None),
            Err(error) => return Err(error),
        };
        // The slots are not reserved before, because making the page exclusive may itself need
        // slots: it moves pages. The caller must not wait for them, because the page is locked.
        let [map_slot, answer_slot] = match core.link.try_reserve_two_slots::<Map>() {
            Err(error) if error == EAGAIN => {
                drop(exclusive);
                drop(core.link.reserve_two_slots::<Map>()?);
                return Ok(None);
            }
            slots => slots?,
        };
        late::at(LatePoint::Lock);
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
        let request = core.link.post(map_slot, map);
        let position = request.position();
        let leftover = committed.state().record(region, Some(position));
        if let Some(answers) = answers.take() {
            core.link.post(answer_slot, answers);
        }
        // Only now that the requests are in the ring may CPUs take the page back.
        drop(committed);
        drop(leftover);
        self.kick();
        self.count_pages(1);
        Ok(Some(MapOutcome {
            in_device: 0,
            end: page.end,
            request: Some(request),
        }))
    }

    fn count_pages(&mut self, pages: u64) {
        self.traced.pages = self.traced.pages.saturating_add(pages);
        self.space.device.core.counters.fault_pages.add(pages);
        self.space.events().fault_pages.add(pages);
    }

    fn map_message(&self, capacity: usize) -> Result<Message<Map>> {
        let refusals = Some(self.space.refusals.clone() as Arc<dyn Handler>);
        Message::with_handler(self.space.id(), capacity, 0, refusals, GFP_KERNEL)
    }
}

/// Whether the device may write to the page at an index as it is, if the process may.
///
/// It may not if the page is in device memory and userfaultfd(2) is to learn of the next write:
/// only a write fault reports it, and device memory raises none. In system memory there is one.
fn is_writable(
    device: &Device,
    committed: &Committed<'_, SpaceMirror>,
    wanted: &FaultRequest,
    index: usize,
    page: HmmPage<'_>,
) -> bool {
    let is_private = || {
        let is_ours = |pfn| device.pagemap.frame(pfn).is_some();
        !device.pagemap.is_coherent() && page.pfn().is_some_and(is_ours)
    };
    let is_followed = || is_tracked(committed, address_at(wanted.window.start, index));
    page.is_writable() && !(wanted.is_tracked && is_private() && is_followed())
}

/// What prevents mapping the pages as requested, if anything.
///
/// # Errors
///
/// `EHWPOISON` if the device has lost one of them.
fn check(
    device: &Device,
    committed: &Committed<'_, SpaceMirror>,
    wanted: &FaultRequest,
) -> Result<Option<Attempt>> {
    if let Some((head, pfn)) = large(committed) {
        // What holds for one of its pages holds for all.
        let want = wanted.strongest_access();
        let flaw = want.and_then(|want| flaw(device, committed, wanted, want, (0, head, pfn)));
        return flaw.map(|flaw| flaw.obstacle(&wanted.window)).transpose();
    }
    let mut shared: Option<Range<usize>> = None;
    for index in 0..committed.len() {
        let Some(want) = wanted.access_at(index) else {
            continue;
        };
        let found = committed.page(index);
        let Some((page, pfn)) = found.and_then(|page| Some((page, page.pfn()?))) else {
            return Ok(Some(Attempt::Lacking));
        };
        match flaw(device, committed, wanted, want, (index, page, pfn)) {
            None => {}
            Some(Flaw::Shared) => {
                let page = page_range(address_at(wanted.window.start, index));
                shared = Some(shared.map_or(page.start, |shared| shared.start)..page.end);
            }
            Some(other) => return other.obstacle(&wanted.window).map(Some),
        }
    }
    Ok(shared.map(Attempt::Shared))
}

/// Why a page cannot be mapped as requested.
enum Flaw {
    Lost,
    ReadOnly,
    Shared,
    Elsewhere,
}

impl Flaw {
    /// The outcome for pages of this range.
    fn obstacle(self, range: &Range<usize>) -> Result<Attempt> {
        match self {
            Self::Lost => Err(EHWPOISON),
            Self::ReadOnly => Ok(Attempt::Lacking),
            Self::Shared => Ok(Attempt::Shared(range.clone())),
            Self::Elsewhere => Ok(Attempt::Elsewhere),
        }
    }
}

/// What is wrong with one page, if anything. The page is given by its index, its entry and its
/// frame number.
fn flaw(
    device: &Device,
    committed: &Committed<'_, SpaceMirror>,
    wanted: &FaultRequest,
    want: HmmRequest,
    (index, page, pfn): (usize, HmmPage<'_>, usize),
) -> Option<Flaw> {
    let is_ours = device.pagemap.frame(pfn).is_some();
    if is_ours && is_lost(device, pfn) {
        Some(Flaw::Lost)
    } else if want == HmmRequest::Write && !is_writable(device, committed, wanted, index, page) {
        // Unlike a CPU's write, a range fault does not copy a shared page in private device memory.
        let is_shared = is_ours && !device.pagemap.is_coherent();
        Some(if is_shared {
            Flaw::Shared
        } else {
            Flaw::ReadOnly
        })
    } else {
        (wanted.atomics == Atomics::InDevice && !is_ours).then_some(Flaw::Elsewhere)
    }
}

/// Whether a page is in device memory and the device has lost its contents.
fn is_lost(device: &Device, pfn: usize) -> bool {
    let frame = device.pagemap.frame(pfn);
    frame.is_some_and(|frame| device.core.frames.is_lost(frame, 1))
}

/// Writes what is to be mapped. Returns the number of requested pages mapped, and how many of them
/// are in device memory.
fn write_map(
    device: &Device,
    committed: &Committed<'_, SpaceMirror>,
    wanted: &FaultRequest,
    map: &mut Message<Map>,
    region: &mut Region,
) -> Result<(u64, u64)> {
    // {drv-own-frames}
    let frame_of = |pfn: usize| match device.pagemap.frame(pfn) {
        Some(frame) => Frame::Device(frame),
        None => Frame::System(pfn as u64),
    };
    if let Some((head, pfn)) = large(committed).filter(|(_, pfn)| !is_lost(device, *pfn)) {
        let frame = frame_of(pfn);
        let rights = rights_of(head.is_writable(), frame, wanted);
        let write = rights & rights::WRITE != 0;
        if write {
            head.mark_dirty();
        }
        region.add(wanted.window.start, HPAGE_PMD_NR, write);
        let pages = HPAGE_PMD_NR as u32;
        map.push(&Map::entry(wanted.window.start, frame, pages, true, rights))?;
        let requested = (0..HPAGE_PMD_NR).fold(0_u64, |sum, index| {
            sum.saturating_add(wanted.is_requested(index).into())
        });
        return Ok((requested, if frame.is_device() { requested } else { 0 }));
    }

    let (mut mapped, mut in_device) = (0_u64, 0_u64);
    let mut run: Option<Run> = None;
    for index in 0..committed.len() {
        let found = committed.page(index).filter(|_| wanted.is_requested(index));
        let Some((page, pfn)) = found.and_then(|page| Some((page, page.pfn()?))) else {
            continue;
        };
        if is_lost(device, pfn) {
            continue;
        }
        let frame = frame_of(pfn);
        let is_writable = is_writable(device, committed, wanted, index, page);
        let rights = rights_of(is_writable, frame, wanted);
        if rights & rights::WRITE != 0 {
            page.mark_dirty();
        }
        mapped = mapped.saturating_add(1);
        in_device = in_device.saturating_add(frame.is_device().into());
        let address = address_at(wanted.window.start, index);
        run = match run {
            Some((start, first, same, pages))
                if address == address_at(start, pages as usize)
                    && frame == first.after(pages.into())
                    && rights == same =>
            {
                Some((start, first, same, pages.saturating_add(1)))
            }
            other => {
                write_run(other, map, region)?;
                Some((address, frame, rights, 1))
            }
        };
    }
    write_run(run, map, region)?;
    Ok((mapped, in_device))
}

/// Pages that one entry can map: their first address and frame, their rights, and their number.
type Run = (usize, Frame, u32, u32);

/// Writes the entry of a run, if there is one, and records it.
fn write_run(run: Option<Run>, map: &mut Message<Map>, region: &mut Region) -> Result {
    let Some((start, first, rights, pages)) = run else {
        return Ok(());
    };
    region.add(start, pages as usize, rights & rights::WRITE != 0);
    map.push(&Map::entry(start, first, pages, false, rights))
}

/// The rights that the device gets to a page: none that the process does not have, and no write
/// access unless a job has requested it. {drv-real-rights}
fn rights_of(is_writable: bool, frame: Frame, wanted: &FaultRequest) -> u32 {
    if !wanted.write || !is_writable {
        rights::READ
    } else if frame.is_device() || wanted.atomics == Atomics::Anywhere {
        rights::ALL
    } else {
        rights::READ | rights::WRITE
    }
}

/// The huge page that fills the window, and the number of its first frame.
fn large<'c>(committed: &'c Committed<'_, SpaceMirror>) -> Option<(HmmPage<'c>, usize)> {
    if committed.len() != HPAGE_PMD_NR {
        return None;
    }
    let head = committed.page(0)?;
    let pfn = head.pfn()?;
    (head.order() >= HPAGE_PMD_ORDER && pfn % HPAGE_PMD_NR == 0).then_some((head, pfn))
}

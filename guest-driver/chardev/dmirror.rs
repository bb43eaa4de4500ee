// SPDX-License-Identifier: GPL-2.0

//! The nodes `/dev/hmm_dmirrorN` of the kernel's own HMM tests, with the virtio device behind them.
//!
//! Jobs of the device copy what the tests read and write; the device also copies what they migrate.
//! A snapshot shows the process's page table as the mirror sees it. A file is bound to the process
//! that opens it. Its space is created by the first call and not by `open`: the kernel opens one
//! miscellaneous device at a time, and this device may be slow.
//!
//! Knows neither rings nor the frames of pages.

use crate::{
    chardev::{
        ioctl::{self, call},
        kernel_tests::{map_pages, protection_of, range_of},
        node,
        residency::{PageWalker, STEP},
    },
    clients::Clients,
    device::{command::Map, queue::Sent, Device},
    ends::Ends,
    fault::{map::PageMapper, request::FaultRequest},
    job::Fences,
    migrate::{
        allocate::Holes, pipeline::Until, to_device::to_device, to_system::to_system,
        transfer::Tally,
    },
    mm::{hmm::HmmRequest, hpage_range, observed, LockedMm, HPAGE_PMD_SIZE},
    poll::{Poll, Waiters},
    process::Owner,
    space::Space,
    uapi::{
        dmirror::{DmirrorCall, DmirrorCommand, FAIL_ALLOC},
        trace::Cause,
    },
    wire::{
        command::Status,
        fault::Reason,
        job::JobReply,
        operation::{self, Operation},
        rights,
    },
};
use core::{ops::Range, pin::Pin};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    current,
    fs::File,
    miscdevice::{MiscDevice, MiscDeviceRegistration},
    mm::{virt::VmaNew, Mm, MmWithUser},
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    sync::{aref::ARef, Arc, Mutex},
    time::{delay::fsleep, Delta},
};

/// The number of attempts to move pages. A page to which another thread holds a short reference
/// stays where it is, and nothing reports the end of that reference.
const ROUNDS: u32 = 10;

/// How much one job copies out while more pages move to the device.
const PART: usize = 8 * HPAGE_PMD_SIZE;

/// An open file, bound to the process that has opened it: `struct dmirror` of `lib/test_hmm.c`.
#[pin_data]
pub(crate) struct Dmirror {
    clients: Arc<Clients>,
    mm: ARef<Mm>,
    #[pin]
    bound: Mutex<Option<Arc<Space>>>,
    #[pin]
    fences: Fences,
}

#[vtable]
impl MiscDevice for Dmirror {
    type Ptr = Pin<KBox<Self>>;

    fn open(_file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        let clients = node::clients(misc)?;
        let task = current!();
        let mm = task.mm().ok_or(EPERM)?;
        let ends = Ends::new(Waiters::new()?)?;
        let this = KBox::pin_init(
            pin_init!(Self {
                clients,
                mm: ARef::from(&**mm),
                bound <- new_mutex!(None, "Dmirror::bound"),
                fences <- Fences::new(ends, None),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        this.clients.opened();
        Ok(this)
    }

    fn release(this: Self::Ptr, _file: &File) {
        let space = this.bound.lock().take();
        if let Some(space) = space {
            let cancel = || this.fences.cancel_all(&this.clients.device);
            this.clients.leave(&space, cancel);
        }
        this.clients.device.core.injection.arm(false);
        this.clients.closed();
    }

    fn mmap(_this: Pin<&Self>, _file: &File, vma: &VmaNew) -> Result {
        map_pages(vma)
    }

    fn ioctl(this: Pin<&Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        // Held only for this check, because pages of the program may take long. If the device is
        // removed meanwhile, its requests fail.
        drop(this.clients.enter()?);
        let request = DmirrorCall::from_code(cmd).ok_or(EINVAL)?;
        call(arg, |command: &mut DmirrorCommand| {
            let range = range_of(command)?;
            let space = {
                // No space is created once the device is being removed.
                let _clients = this.clients.enter()?;
                this.space()?
            };
            let mm = observed(space.mm()).ok_or(EFAULT)?;
            let access = Access {
                dmirror: &this,
                space: &space,
                device: &this.clients.device,
                mm: &mm,
                range,
                ptr: command.ptr,
            };
            let done = access.carry_out(request, command.npages);
            // If the device is removed, the space ends before its file.
            let done = done.map_err(|error| if error == ESRCH { ENODEV } else { error })?;
            command.cpages = done.pages;
            command.faults = done.faults;
            Ok(())
        })
    }
}

impl Dmirror {
    /// The space of the process that opened the file, which must be the caller's process.
    fn space(&self) -> Result<Arc<Space>> {
        let task = current!();
        let mm = task.mm().ok_or(EPERM)?;
        if !core::ptr::eq(mm.as_raw(), self.mm.as_raw()) {
            return Err(EPERM);
        }
        let mut bound = self.bound.lock();
        if let Some(space) = &*bound {
            return Ok(space.clone());
        }
        let space = self.clients.bind(mm, Owner::caller())?;
        *bound = Some(space.clone());
        Ok(space)
    }
}

/// A file is always ready.
impl Poll for Dmirror {
    type Node = ();
}

/// The result of an ioctl.
#[derive(Default)]
struct Done {
    pages: u64,
    faults: u64,
}

/// One ioctl.
struct Access<'a> {
    dmirror: &'a Dmirror,
    space: &'a Space,
    device: &'a Arc<Device>,
    mm: &'a MmWithUser,
    range: Range<usize>,
    /// The address of the program's buffer.
    ptr: u64,
}

impl Access<'_> {
    fn carry_out(&self, request: DmirrorCall, npages: u64) -> Result<Done> {
        match request {
            DmirrorCall::Read | DmirrorCall::ReadUnlocked => self.read(),
            DmirrorCall::Write => self.write(),
            DmirrorCall::MigrateToDevice => self.migrate_to_device(),
            DmirrorCall::MigrateToSystem => self.migrate_to_system(),
            DmirrorCall::Snapshot => self.snapshot(),
            DmirrorCall::Exclusive => self.exclusive(),
            DmirrorCall::CheckExclusive => self.check_exclusive(),
            DmirrorCall::Release => {
                let stop = &mut |moved| moved == 0 || current!().signal_pending();
                self.dmirror.clients.evict_all(Cause::Request, stop);
                Ok(Done::default())
            }
            DmirrorCall::Flags => self.flags(npages),
        }
    }

    fn pages(&self) -> u64 {
        (self.range.len() / PAGE_SIZE) as u64
    }

    fn space(&self) -> &Space {
        self.space
    }

    fn read(&self) -> Result<Done> {
        let faults = self.provide(HmmRequest::Read)?;
        self.copy_out()?;
        let pages = self.pages();
        Ok(Done { pages, faults })
    }

    fn write(&self) -> Result<Done> {
        let faults = self.provide(HmmRequest::Write)?;
        self.copy(self.ptr, self.range.start as u64)?;
        let pages = self.pages();
        Ok(Done { pages, faults })
    }

    /// Maps the range on the device unless it is mapped already. Returns the number of faults: 1 if
    /// it had to be mapped, otherwise 0.
    fn provide(&self, want: HmmRequest) -> Result<u64> {
        let write = want == HmmRequest::Write;
        if self.space().notifier.lock().covers(&self.range, write) {
            return Ok(0);
        }
        self.map(self.range.clone(), |wanted, indices| {
            wanted.require(indices, want)
        })?;
        Ok(1)
    }

    /// Maps pages of a part of the range as `describe` requests, region by region. Returns how many
    /// of them are in device memory, when the device has carried the mappings out.
    fn map(
        &self,
        part: Range<usize>,
        describe: impl Fn(&mut FaultRequest, Range<usize>),
    ) -> Result<u64> {
        let mut mapper = PageMapper::new(self.space(), self.mm)?;
        let mut in_device = 0_u64;
        let mut request = None;
        let mut at = part.start;
        while at < part.end {
            let rest = at..part.end;
            let describe = |wanted: &mut FaultRequest| {
                describe(wanted, wanted.indices(&rest));
                Ok(())
            };
            let outcome = mapper.map(at, describe, &mut None)?;
            in_device = in_device.saturating_add(outcome.in_device);
            request = outcome.request.or(request);
            at = outcome.end;
        }
        self.wait(request)?;
        Ok(in_device)
    }

    /// Waits until the device has carried out a request. It has then also carried out all requests
    /// before it.
    fn wait(&self, request: Option<Sent<Map>>) -> Result {
        if let Some(request) = request {
            request.wait(&self.device.core.link)?;
        }
        Ok(())
    }

    fn migrate_to_device(&self) -> Result<Done> {
        self.check_readable()?;
        let mut copying = None;
        let mut moved = Ok(());
        let mut at = self.range.start;
        while at < self.range.end && moved.is_ok() {
            // Do not cut huge pages.
            let cut = hpage_range(at).start.saturating_add(PART);
            let end = self.range.end.min(cut);
            moved = self.move_to_device(at..end);
            // A job copies these pages to the program while the next ones move.
            if let Some(fence) = copying.take() {
                moved = moved.and(self.copied(fence));
            }
            if moved.is_ok() {
                let offset = at.saturating_sub(self.range.start) as u64;
                // The device refuses an address that is not valid.
                let copy = self.ptr.saturating_add(offset);
                match self.start_copy(at as u64, copy, (at..end).len()) {
                    Ok(fence) => copying = Some(fence),
                    Err(error) => moved = Err(error),
                }
            }
            at = end;
        }
        if let Some(fence) = copying {
            moved = moved.and(self.copied(fence));
        }
        moved.map(|()| Done {
            pages: self.pages(),
            faults: 0,
        })
    }

    /// Moves all pages of a part of the range, and maps them.
    fn move_to_device(&self, part: Range<usize>) -> Result {
        for round in 0..ROUNDS {
            if round > 0 {
                fsleep(Delta::from_millis(1));
            }
            let moved = to_device(
                self.space(),
                self.mm,
                part.clone(),
                Holes::AreFilled,
                Until::Killed,
                Cause::Request,
            )?;
            Self::check_kind(&moved.tally)?;
            let in_device =
                self.map(part.clone(), |wanted, indices| wanted.add_optional(indices))?;
            if in_device == (part.len() / PAGE_SIZE) as u64 {
                return Ok(());
            }
        }
        Err(ENOENT)
    }

    fn migrate_to_system(&self) -> Result<Done> {
        self.check_readable()?;
        let back = || {
            to_system(
                self.space(),
                self.mm,
                self.range.clone(),
                Until::Killed,
                Cause::Request,
            )
        };
        let mut tally = back()?.tally;
        Self::check_kind(&tally)?;
        let mut pages = tally.moved;
        if tally.no_memory > 0 {
            // A huge page moves in small pages if there is no huge page of system memory for it.
            // A small page, and coherent memory only has small ones, has no such fallback: retry
            // once.
            tally = back()?.tally;
            pages = pages.saturating_add(tally.moved);
        }
        if tally.no_memory > 0 {
            return Err(ENOMEM);
        }
        Ok(Done { pages, faults: 0 })
    }

    /// Fails unless all of the range can be read.
    fn check_readable(&self) -> Result {
        let locked = LockedMm::new(self.mm);
        let mut at = self.range.start;
        while at < self.range.end {
            let vma = locked.lookup(at).ok_or(EINVAL)?;
            if !vma.is_readable() {
                return Err(EINVAL);
            }
            at = vma.vma().end();
        }
        Ok(())
    }

    fn check_kind(tally: &Tally) -> Result {
        if tally.unmovable > 0 {
            return Err(EINVAL);
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Done> {
        let is_local = |pfn| self.device.pagemap.frame(pfn).is_some();
        let mut walker = PageWalker::new(&self.dmirror.clients, self.space(), self.mm)?;
        ioctl::fill_bytes(&self.range, self.ptr, STEP, |step, protections| {
            walker.for_each_page(step, |index, page| {
                if let Some(protection) = protections.get_mut(index) {
                    *protection = protection_of(page, is_local);
                }
            })
        })?;
        Ok(Done {
            pages: self.pages(),
            faults: 0,
        })
    }

    fn exclusive(&self) -> Result<Done> {
        let mut mapper = PageMapper::new(self.space(), self.mm)?;
        let mut request = None;
        for address in self.range.clone().step_by(PAGE_SIZE) {
            request = mapper.map_exclusive(address, &mut None)?.request;
        }
        // A job that came before the mappings would fault and undo the exclusive access.
        self.wait(request)?;
        self.copy_out()?;
        Ok(Done {
            pages: self.pages(),
            faults: 0,
        })
    }

    fn check_exclusive(&self) -> Result<Done> {
        if self.space().notifier.lock().has_exclusive(&self.range) {
            return Err(EPERM);
        }
        Ok(Done::default())
    }

    fn flags(&self, flags: u64) -> Result<Done> {
        if flags & !FAIL_ALLOC != 0 {
            return Err(EINVAL);
        }
        self.device.core.injection.arm(flags & FAIL_ALLOC != 0);
        Ok(Done::default())
    }

    /// Makes the device copy the range to the program's buffer.
    fn copy_out(&self) -> Result {
        self.copy(self.range.start as u64, self.ptr)
    }

    /// Runs a job that copies as many bytes as the range has.
    fn copy(&self, source: u64, destination: u64) -> Result {
        let fence = self.start_copy(source, destination, self.range.len())?;
        self.copied(fence)
    }

    /// Starts a job that copies; returns its fence.
    fn start_copy(&self, source: u64, destination: u64, bytes: usize) -> Result<u64> {
        let copy = operation::Copy {
            source,
            destination,
            bytes: bytes as u64,
        };
        let job = Operation::from(copy).encode();
        let fences = &self.dmirror.fences;
        let submitted = fences.submit(&self.dmirror.clients, self.space(), &[job], None)?;
        Ok(submitted.first_fence)
    }

    /// Waits until the job is done.
    fn copied(&self, fence: u64) -> Result {
        let reply = self.dmirror.fences.finish(self.space(), fence)?;
        self.check_reply(&reply)
    }

    /// Translates the result of a job into the result of the ioctl.
    fn check_reply(&self, reply: &JobReply) -> Result {
        match Status::from_raw(reply.status.get()) {
            Some(Status::Ok) => Ok(()),
            Some(Status::Fault) => Err(self.error_of(reply)),
            // An address that is invalid for any process.
            Some(Status::BadAddress) => Err(EFAULT),
            Some(Status::Storm) => Err(EBUSY),
            Some(Status::NoMemory) => Err(ENOMEM),
            // The space has ended.
            Some(Status::Cancelled | Status::NoSpace) => Err(ENODEV),
            _ => Err(EIO),
        }
    }

    fn error_of(&self, reply: &JobReply) -> Error {
        let is_write = reply.access.get() & rights::WRITE != 0;
        let in_range =
            usize::try_from(reply.address.get()).is_ok_and(|address| self.range.contains(&address));
        match Reason::from_raw(reply.reason.get()) {
            Some(Reason::Denied) if is_write && in_range => EPERM,
            Some(Reason::Poisoned) => EHWPOISON,
            Some(Reason::NoMemory) => ENOMEM,
            Some(Reason::Busy) => EBUSY,
            Some(Reason::Shutdown) => ENODEV,
            _ => EFAULT,
        }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The nodes `/dev/hmm_dmirrorN`: the device in place of that of the kernel's own tests of
//! HMM.
//!
//! What the tests read and write, jobs of the device copy; what they migrate is copied by
//! the device as well; what they look at is the process's page table as the mirror sees it.
//! A file is bound to the process that opens it.
//!
//! Knows nothing of queues, nor of the kernel's memory management.

use crate::{
    command::Map,
    device::{Device, Using},
    ioctl::{self, call},
    job::Fences,
    mapping::Installer,
    migrate::{self, Tally},
    mm::{
        hmm::{HmmPage, Want},
        migrate::large_range,
        LockedMm, LARGE_ORDER, LARGE_SIZE, PAGE_SIZE,
    },
    node,
    queue::Sent,
    residency::{Looker, STEP},
    space::Space,
    uapi::dmirror::{protection, DmirrorCall, DmirrorCommand, FAIL_ALLOC, MAX_MAPPED_PAGES},
    wire::{
        command::Status,
        fault::Reason,
        job::JobReply,
        operation::{self, Operation},
        rights,
    },
    wish::Wish,
};
use core::{ops::Range, pin::Pin};
use kernel::{
    alloc::flags::{__GFP_ZERO, GFP_KERNEL_ACCOUNT},
    current,
    fs::File,
    miscdevice::{MiscDevice, MiscDeviceRegistration},
    mm::{virt::VmaNew, MmWithUser},
    page::Page,
    prelude::*,
    sync::Arc,
    time::{delay::fsleep, Delta},
};

/// log2 of the pages that an entry of a page upper directory maps.
const HUGE_ORDER: u32 = 2 * LARGE_ORDER;

/// How often pages are asked to move. Such as somebody else uses for a moment stay where they
/// are, and nobody tells when they are let go.
const ROUNDS: u32 = 10;

/// How much is copied out at a time while more is on its way to the device.
const PART: usize = 8 * LARGE_SIZE;

/// An open file, bound to the process that has opened it.
#[pin_data]
pub(crate) struct Session {
    device: Arc<Device>,
    space: Arc<Space>,
    #[pin]
    fences: Fences,
}

#[vtable]
impl MiscDevice for Session {
    type Ptr = Pin<KBox<Self>>;

    fn open(_file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        let found = node::device(misc)?;
        let using = found.enter()?;
        let task = current!();
        let mm = task.mm().ok_or(EPERM)?;
        // A space must be ended, so nothing may fail once there is one.
        let room = KBox::<Self>::new_uninit(GFP_KERNEL)?;
        let device = found.clone();
        let space = Space::new(device.clone(), mm, task.tgid())?;
        let Ok(session) = room.write_pin_init(pin_init!(Self {
            device,
            space,
            fences <- Fences::new(),
        }));
        using.opened();
        Ok(session)
    }

    fn release(session: Self::Ptr, _file: &File) {
        session.space.end();
        session.device.core.injection.arm(false);
        session.device.closed();
    }

    fn mmap(_session: Pin<&Self>, _file: &File, vma: &VmaNew) -> Result {
        let addresses = vma.start()..vma.end();
        if (addresses.len() / PAGE_SIZE) as u64 > MAX_MAPPED_PAGES {
            return Err(EINVAL);
        }
        let area = vma.set_mixedmap();
        for address in addresses.step_by(PAGE_SIZE) {
            let page = Page::alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO)?;
            area.vm_insert_page(address, &page)?;
        }
        Ok(())
    }

    fn ioctl(session: Pin<&Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let device = session.device.enter()?;
        let request = DmirrorCall::from_code(cmd).ok_or(EINVAL)?;
        call(arg, |command: &mut DmirrorCommand| {
            let range = range_of(command)?;
            if !session.space.is_callers() {
                return Err(EPERM);
            }
            let mm = session.space.mm().mmget_not_zero().ok_or(EFAULT)?;
            let access = Access {
                session: &session,
                device: &device,
                mm: &mm,
                range,
                ptr: command.ptr,
            };
            let done = access.carry_out(request, command.npages);
            // The space ends before its file if the device goes.
            let done = done.map_err(|error| if error == ESRCH { ENODEV } else { error })?;
            command.cpages = done.pages;
            command.faults = done.faults;
            Ok(())
        })
    }
}

/// The range that a call is about.
fn range_of(command: &DmirrorCommand) -> Result<Range<usize>> {
    let bytes = command.npages.checked_mul(PAGE_SIZE as u64).ok_or(EINVAL)?;
    if bytes == 0 {
        return Err(EINVAL);
    }
    ioctl::page_range(command.addr, bytes)
}

/// What a call has done.
#[derive(Default)]
struct Done {
    pages: u64,
    faults: u64,
}

/// One call.
struct Access<'a> {
    session: &'a Session,
    device: &'a Using<'a>,
    mm: &'a MmWithUser,
    range: Range<usize>,
    /// The program's own copy.
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
                self.device.bring_all_home(&|| current!().signal_pending());
                Ok(Done::default())
            }
            DmirrorCall::Flags => self.flags(npages),
        }
    }

    fn pages(&self) -> u64 {
        (self.range.len() / PAGE_SIZE) as u64
    }

    fn space(&self) -> &Space {
        &self.session.space
    }

    fn read(&self) -> Result<Done> {
        let faults = self.provide(Want::Read)?;
        self.copy_out()?;
        let pages = self.pages();
        Ok(Done { pages, faults })
    }

    fn write(&self) -> Result<Done> {
        let faults = self.provide(Want::Write)?;
        self.copy(self.ptr, self.range.start as u64)?;
        let pages = self.pages();
        Ok(Done { pages, faults })
    }

    /// Maps the range on the device unless it is; returns how many times that was necessary.
    fn provide(&self, want: Want) -> Result<u64> {
        let write = want == Want::Write;
        if self.space().interval.lock().covers(&self.range, write) {
            return Ok(0);
        }
        self.map(self.range.clone(), |wish, places| wish.want(places, want))?;
        Ok(1)
    }

    /// Maps pages of a part of the range as `describe` wishes, region by region; returns how
    /// many of them are in device memory. When it returns, the device has the mappings.
    fn map(&self, part: Range<usize>, describe: impl Fn(&mut Wish, Range<usize>)) -> Result<u64> {
        let mut installer = Installer::new(self.space(), self.mm)?;
        let mut in_device = 0;
        let mut request = None;
        let mut at = part.start;
        while at < part.end {
            let rest = at..part.end;
            let describe = |wish: &mut Wish| {
                describe(wish, wish.places(&rest));
                Ok(())
            };
            let installed = installer.install(at, describe, &mut None)?;
            in_device += installed.in_device;
            request = installed.request.or(request);
            at = installed.end;
        }
        self.wait(request)?;
        Ok(in_device)
    }

    /// Waits until the device has the mappings of a request, and of those before it: it
    /// carries them out in order.
    fn wait(&self, request: Option<Sent<Map>>) -> Result {
        if let Some(request) = request {
            request.wait(&self.device.core.link)?;
        }
        Ok(())
    }

    fn migrate_to_device(&self) -> Result<Done> {
        self.check_areas()?;
        let mut copying = None;
        let mut moved = Ok(());
        let mut at = self.range.start;
        while at < self.range.end && moved.is_ok() {
            // Large pages are not cut.
            let cut = large_range(at).start.saturating_add(PART);
            let end = self.range.end.min(cut);
            moved = self.move_to_device(at..end);
            // While the next pages move, a job copies these out.
            if let Some(fence) = copying.take() {
                moved = moved.and(self.copied(fence));
            }
            if moved.is_ok() {
                let offset = (at - self.range.start) as u64;
                match self.start_copy(at as u64, self.ptr + offset, end - at) {
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
            let tally = migrate::to_device(self.space(), self.mm, part.clone())?;
            Self::check_kind(&tally)?;
            let in_device = self.map(part.clone(), |wish, places| wish.welcome(places))?;
            if in_device == (part.len() / PAGE_SIZE) as u64 {
                return Ok(());
            }
        }
        Err(ENOENT)
    }

    fn migrate_to_system(&self) -> Result<Done> {
        self.check_areas()?;
        let mut tally = migrate::to_system(self.space(), self.mm, self.range.clone())?;
        Self::check_kind(&tally)?;
        let mut pages = tally.moved;
        if tally.no_memory > 0 {
            // A large page comes home in pieces when there is no large page for it. A small
            // one, which is all that coherent memory holds, has no such way out: it gets a
            // second chance.
            tally = migrate::to_system(self.space(), self.mm, self.range.clone())?;
            pages += tally.moved;
        }
        if tally.no_memory > 0 {
            return Err(ENOMEM);
        }
        Ok(Done { pages, faults: 0 })
    }

    /// Fails unless all of the range can be read.
    fn check_areas(&self) -> Result {
        let locked = LockedMm::new(self.mm);
        let mut at = self.range.start;
        while at < self.range.end {
            let area = locked.lookup(at).ok_or(EINVAL)?;
            if !area.is_readable() {
                return Err(EINVAL);
            }
            at = area.vma().end();
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
        let mut looker = Looker::new(self.device, self.space(), self.mm)?;
        ioctl::fill_bytes(&self.range, self.ptr, STEP, |step, protections| {
            looker.see(step, |index, page| {
                if let Some(protection) = protections.get_mut(index) {
                    *protection = protection_of(self.device, page);
                }
            })
        })?;
        Ok(Done {
            pages: self.pages(),
            faults: 0,
        })
    }

    fn exclusive(&self) -> Result<Done> {
        let mut installer = Installer::new(self.space(), self.mm)?;
        let mut request = None;
        for address in self.range.clone().step_by(PAGE_SIZE) {
            request = installer.install_exclusive(address, &mut None)?.request;
        }
        // A job that came before the mappings would fault, and undo what has been done.
        self.wait(request)?;
        self.copy_out()?;
        Ok(Done {
            pages: self.pages(),
            faults: 0,
        })
    }

    fn check_exclusive(&self) -> Result<Done> {
        if self.space().interval.lock().has_exclusive(&self.range) {
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

    /// Has the device copy the range to the program's own copy.
    fn copy_out(&self) -> Result {
        self.copy(self.range.start as u64, self.ptr)
    }

    /// Has a job copy as many bytes as the range has.
    fn copy(&self, source: u64, destination: u64) -> Result {
        let fence = self.start_copy(source, destination, self.range.len())?;
        self.copied(fence)
    }

    /// Has a job begin to copy; returns its fence.
    fn start_copy(&self, source: u64, destination: u64, bytes: usize) -> Result<u64> {
        let copy = operation::Copy {
            source,
            destination,
            bytes: bytes as u64,
        };
        let job = Operation::from(copy).encode();
        let fences = &self.session.fences;
        let submitted = fences.submit(self.device, self.space(), &[job])?;
        Ok(submitted.first_fence)
    }

    /// Waits until it is done.
    fn copied(&self, fence: u64) -> Result {
        let reply = self.session.fences.finish(self.device, fence)?;
        self.judge(&reply)
    }

    /// How a job ended, as the error of a call.
    fn judge(&self, reply: &JobReply) -> Result {
        match Status::from_raw(reply.status.get()) {
            Some(Status::Ok) => Ok(()),
            Some(Status::Fault) => Err(self.error_of(reply)),
            // An address that no process can have.
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

/// How the process has a page.
fn protection_of(device: &Device, page: HmmPage<'_>) -> u8 {
    if page.is_error() {
        return protection::ERROR;
    }
    let Some(pfn) = page.pfn() else {
        return protection::NONE;
    };
    let is_local = device.pagemap.frame(pfn).is_some();
    let mut found = if page.is_coherent_device_memory() {
        if is_local {
            protection::DEVICE_COHERENT_LOCAL
        } else {
            protection::DEVICE_COHERENT_REMOTE
        }
    } else if is_local {
        protection::DEVICE_PRIVATE_LOCAL
    } else if page.is_zero() {
        protection::ZERO
    } else {
        protection::NONE
    };
    found |= if page.is_writable() {
        protection::WRITE
    } else {
        protection::READ
    };
    match page.order() {
        LARGE_ORDER => found | protection::PMD,
        HUGE_ORDER => found | protection::PUD,
        _ => found,
    }
}

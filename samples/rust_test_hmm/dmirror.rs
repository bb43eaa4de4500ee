// SPDX-License-Identifier: GPL-2.0

//! The nodes `/dev/hmm_dmirrorN`, and the ioctls of `lib/test_hmm_uapi.h`.

use crate::{
    chardev::{
        ioctl::{call, fill_bytes},
        kernel_tests::{map_pages, protection_of, range_of},
    },
    device_memory::{Device, DeviceMemory},
    mirror::{Mirror, Mirrored, Notifier},
    mm::{
        address_at,
        hmm::{Committed, HmmPfns, HmmRange, HmmRequest},
        migrate::{Compound, MigratePfns, MigrateStats},
        page_range, pages_in, parts, Contents, LockedMm, PgmapOwner, HPAGE_PMD_NR,
    },
    poll::{Poll, Registration},
    uapi::dmirror::{protection, DmirrorCall, DmirrorCommand, FAIL_ALLOC},
};
use core::{ops::Range, pin::Pin};
use kernel::{
    current,
    fs::File,
    miscdevice::{MiscDevice, MiscDeviceRegistration},
    mm::{virt::VmaNew, MmWithUser},
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc,
    time::{delay::fsleep, Delta},
    uaccess::{UserPtr, UserSlice},
};

/// How long the kernel may wait for changes by other threads.
const TIMEOUT: Delta = Delta::from_secs(1);

/// The number of attempts to move pages. A page that another thread uses at the moment does not
/// move.
const ROUNDS: usize = 10;

/// An open file, bound to the process that has opened it: `struct dmirror` of `lib/test_hmm.c`.
#[pin_data]
pub(crate) struct Dmirror {
    device: Arc<Device>,
    #[pin]
    notifier: Notifier,
}

#[vtable]
impl MiscDevice for Dmirror {
    type Ptr = Pin<KBox<Self>>;

    fn open(_file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        let device = Registration::of(misc)?.clone();
        let task = current!();
        let mm = task.mm().ok_or(EPERM)?;
        let notifier = Notifier::new(mm, Mirror(device.owner()), Mirrored::NOTHING)?;
        let this = try_pin_init!(Self { device, notifier <- notifier });
        KBox::pin_init(this, GFP_KERNEL)
    }

    fn release(this: Self::Ptr, _file: &File) {
        DeviceMemory::fail(&this.device, false);
    }

    fn mmap(_this: Pin<&Self>, _file: &File, vma: &VmaNew) -> Result {
        map_pages(vma)
    }

    fn ioctl(this: Pin<&Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let request = DmirrorCall::from_code(cmd).ok_or(EINVAL)?;
        let task = current!();
        let mm = task.mm().filter(|mm| this.notifier.is_for(mm.as_raw()));
        let mm = mm.ok_or(EPERM)?;
        call(arg, |command: &mut DmirrorCommand| {
            let mut access = Access {
                device: &this.device,
                notifier: &this.notifier,
                mm,
                range: range_of(command)?,
                ptr: usize::try_from(command.ptr)?,
                pfns: HmmPfns::new(HPAGE_PMD_NR)?,
                faults: 0,
            };
            command.cpages = access.carry_out(request, command.npages)?;
            command.faults = access.faults;
            Ok(())
        })
    }
}

/// A file is always ready.
impl Poll for Dmirror {
    type Node = Arc<Device>;
}

/// One ioctl.
struct Access<'a> {
    device: &'a Device,
    notifier: &'a Notifier,
    mm: &'a MmWithUser,
    range: Range<usize>,
    /// The address of the program's buffer.
    ptr: usize,
    pfns: HmmPfns,
    /// One if the device had to fault pages in, otherwise zero.
    faults: u64,
}

impl Access<'_> {
    /// Carries out a request. Returns how many pages were read, written, moved or looked at.
    fn carry_out(&mut self, request: DmirrorCall, npages: u64) -> Result<u64> {
        match request {
            DmirrorCall::Read | DmirrorCall::ReadUnlocked => {
                return self.transfer(HmmRequest::Read)
            }
            DmirrorCall::Write => return self.transfer(HmmRequest::Write),
            DmirrorCall::MigrateToDevice => return self.migrate_to_device(),
            DmirrorCall::MigrateToSystem => {
                let MigrateStats { moved, no_memory } = self.migrate(&self.range, None)?;
                return if no_memory > 0 {
                    Err(ENOMEM)
                } else {
                    Ok(moved)
                };
            }
            DmirrorCall::Snapshot => return self.snapshot(),
            DmirrorCall::Exclusive => return self.exclusive(),
            DmirrorCall::CheckExclusive => {
                if self.notifier.lock().has_exclusive(&self.range) {
                    return Err(EPERM);
                }
            }
            DmirrorCall::Release => {
                while DeviceMemory::evict(self.device, false) > 0 && !current!().signal_pending() {}
            }
            DmirrorCall::Flags if npages & !FAIL_ALLOC != 0 => return Err(EINVAL),
            DmirrorCall::Flags => DeviceMemory::fail(self.device, npages & FAIL_ALLOC != 0),
        }
        Ok(0)
    }

    /// Calls `carry_out` for each part of the range, with a buffer. For a write, the buffer holds
    /// the data of the program's buffer. For a read, the buffer is copied there afterwards. Returns
    /// the number of pages in the range.
    fn for_each_part(
        &mut self,
        want: HmmRequest,
        mut carry_out: impl FnMut(&mut Self, &Range<usize>, &mut [Contents]) -> Result,
    ) -> Result<u64> {
        let copy = UserSlice::new(UserPtr::from_addr(self.ptr), self.range.len());
        let (mut reader, mut writer) = copy.reader_writer();
        let most = pages_in(&self.range).min(HPAGE_PMD_NR);
        let mut room = KVVec::<Contents>::zeroed(most, GFP_KERNEL)?;
        for part in parts(&self.range.clone()) {
            let data = room.get_mut(..pages_in(&part)).ok_or(EINVAL)?;
            if want == HmmRequest::Write {
                reader.read_slice(data.as_flattened_mut())?;
            }
            carry_out(self, &part, data)?;
            if want == HmmRequest::Read {
                writer.write_slice(data.as_flattened())?;
            }
        }
        Ok(pages_in(&self.range) as u64)
    }

    /// Calls `see` with a snapshot of a part of the range, which stays valid during the call.
    fn see<R>(
        &mut self,
        part: &Range<usize>,
        see: impl FnOnce(&mut Committed<'_, Mirror>) -> R,
    ) -> Result<R> {
        let range = HmmRange::new(self.notifier, part.clone(), self.device.owner());
        range.with_snapshot(self.mm, &mut self.pfns, see)
    }

    /// Makes the device access a part; see [`DeviceMemory::access`].
    fn access(
        &mut self,
        part: &Range<usize>,
        want: HmmRequest,
        is_here: bool,
        data: &mut [Contents],
    ) -> Result<Option<usize>> {
        let device = self.device;
        self.see(part, |pages| {
            DeviceMemory::access(device, pages, part, want, is_here, data)
        })?
    }

    /// Makes the kernel fault pages in.
    fn fault(&mut self, range: Range<usize>, owner: PgmapOwner, want: HmmRequest) -> Result {
        let range = HmmRange::new(self.notifier, range, owner);
        range.fault(self.mm, TIMEOUT, &mut self.pfns, want)
    }

    /// Makes the device read the range to the program's buffer, or write to it from there.
    fn transfer(&mut self, want: HmmRequest) -> Result<u64> {
        self.for_each_part(want, |this, part, data| {
            if !this.notifier.lock().allows(part, want) {
                this.faults = 1;
                this.fault(part.clone(), this.device.owner(), want)?;
            }
            while let Some(index) = this.access(part, want, false, data)? {
                // The kernel returns its owner's device pages as they are, even for a write to one
                // that another process shares. Without an owner the fault is like a CPU's: the page
                // moves to system memory, and is copied there.
                let page = page_range(address_at(part.start, index));
                this.fault(page, PgmapOwner::new(core::ptr::null()), want)?;
            }
            Ok(())
        })
    }

    fn migrate_to_device(&mut self) -> Result<u64> {
        self.for_each_part(HmmRequest::Read, |this, part, data| {
            for round in 0..ROUNDS {
                // A huge page without a huge run of free frames moves in small pages.
                let size = if round == 0 {
                    Compound::Keep
                } else {
                    Compound::Split
                };
                this.migrate(part, Some(size))?;
                if this.access(part, HmmRequest::Read, true, data)?.is_none() {
                    return Ok(());
                }
                fsleep(Delta::from_millis(1));
            }
            Err(ENOENT)
        })
    }

    /// Moves the pages of a range that can move, VMA by VMA: to the device, or to system memory if
    /// no size is given.
    fn migrate(&self, range: &Range<usize>, size: Option<Compound>) -> Result<MigrateStats> {
        let device = self.device;
        let mut sum = MigrateStats::default();
        let locked = LockedMm::new(self.mm);
        let mut at = range.start;
        while let Some(part) = parts(&(at..range.end)).next() {
            let vma = locked.lookup(at).filter(|vma| vma.is_readable());
            let vma = vma.ok_or(EINVAL)?;
            let part = vma.clip(&part);
            let start = core::mem::replace(&mut at, part.end);
            let pfns = MigratePfns::new(pages_in(&part))?;
            sum += if let Some(size) = size {
                DeviceMemory::to_device(device, device.collect_to_device(vma, part, size, pfns)?)?
            } else {
                let collected = device.collect_to_system(vma, part, pfns)?;
                DeviceMemory::to_system(device, collected, Some((vma, start)), None)
            };
        }
        Ok(sum)
    }

    fn snapshot(&mut self) -> Result<u64> {
        let (device, range) = (self.device, self.range.clone());
        let is_local = |pfn| device.frame(pfn).is_some();
        fill_bytes(&range, self.ptr as u64, HPAGE_PMD_NR, |part, found| {
            self.see(part, |committed| {
                for (index, found) in found.iter_mut().enumerate() {
                    let page = committed.page(index);
                    *found = page.map_or(protection::ERROR, |page| protection_of(page, is_local));
                }
            })
        })?;
        Ok(pages_in(&range) as u64)
    }

    fn exclusive(&mut self) -> Result<u64> {
        self.for_each_part(HmmRequest::Read, |this, part, data| {
            for (address, data) in part.clone().step_by(PAGE_SIZE).zip(data) {
                (this.notifier).with_exclusive(this.mm, address, |committed| {
                    committed.state().exclude_others(&page_range(address));
                    committed.read(data)
                })??;
            }
            Ok(())
        })
    }
}

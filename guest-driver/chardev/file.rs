// SPDX-License-Identifier: GPL-2.0

//! The nodes `/dev/hmmN` and their ioctls.
//!
//! Checks the arguments of programs, once, and translates to and from the rest of the driver. Knows
//! neither queues nor the kernel's memory management.
//!
//! A program's memory is only read and written while nothing else is held, neither the device nor
//! another process's memory: the program's pages may take long, or never come.
//!
//! Lock order: `OpenFile::bound` is taken before any other lock of the driver.

use crate::{
    chardev::{
        ioctl::{call, fill_bytes, process_range, zero},
        node,
        residency::{PageWalker, STEP},
    },
    clients::{Clients, Using},
    ends::Ends,
    eventfd::EventFd,
    job::Fences,
    migrate::{allocate::Holes, pipeline::Until, to_device::to_device, to_system::to_system},
    mm::{has_process, observed},
    poll::{Poll, Ready, Waiters},
    process::{self, Owner},
    space::Space,
    uapi::{
        migrate_flags, submit_flags, trace::Cause, Bind, BindProcess, Call, Cancel, Counters,
        Destination, DeviceState, Info, Migrate, Residency, SpaceCounters, Submit, Wait, WaitAny,
        MAX_RESIDENCY_PAGES, MAX_SUBMIT, MAX_WAIT, VERSION,
    },
    wait::Deadline,
    wire::{config, job::JobDescriptor},
};
use core::pin::Pin;
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    current,
    fs::File,
    miscdevice::{MiscDevice, MiscDeviceRegistration},
    mm::{Mm, MmWithUser},
    new_mutex,
    page::PAGE_SHIFT,
    prelude::*,
    sync::{aref::ARef, poll::PollTable, Arc, Mutex, UniqueArc},
    uaccess::{UserPtr, UserSlice},
};
use zerocopy::{FromZeros, IntoBytes};

/// An open file.
#[pin_data]
pub(crate) struct OpenFile {
    clients: Arc<Clients>,
    /// Threads that poll the file or wait for any of its jobs.
    waiters: Arc<Waiters>,
    #[pin]
    bound: Mutex<Option<Arc<Bound>>>,
}

/// The state of a file that is bound to a process.
#[pin_data]
struct Bound {
    space: Arc<Space>,
    /// The address space of the process that has bound it, which alone may make calls.
    user: ARef<Mm>,
    #[pin]
    fences: Fences,
}

#[vtable]
impl MiscDevice for OpenFile {
    type Ptr = Pin<KBox<Self>>;

    fn open(_file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        let clients = node::clients(misc)?;
        let waiters = Waiters::new()?;
        let this = KBox::pin_init(
            pin_init!(Self {
                clients,
                waiters,
                bound <- new_mutex!(None, "OpenFile::bound"),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        this.clients.opened();
        Ok(this)
    }

    fn release(this: Self::Ptr, _file: &File) {
        let bound = this.bound.lock().take();
        if let Some(bound) = bound {
            let cancel = || bound.fences.cancel_all(&this.clients.device);
            this.clients.leave(&bound.space, cancel);
        }
        this.clients.closed();
    }

    fn ioctl(this: Pin<&Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let this = &*this;
        // Held only for this check.
        drop(this.clients.enter()?);
        match cmd {
            Info::CODE => call(arg, |info| this.info(info)),
            Bind::CODE => call(arg, |bind| this.bind(bind)),
            Submit::CODE => call(arg, |submit| this.submit(submit)),
            Wait::CODE => call(arg, |wait| this.wait(wait)),
            Migrate::CODE => call(arg, |migrate| this.migrate(migrate)),
            Residency::CODE => call(arg, |residency| this.residency(residency)),
            Counters::CODE => call(arg, |counters| this.counters(counters)),
            Cancel::CODE => call(arg, |cancel| this.cancel(cancel)),
            WaitAny::CODE => call(arg, |wait| this.wait_any(wait)),
            BindProcess::CODE => call(arg, |bind| this.bind_process(bind)),
            SpaceCounters::CODE => call(arg, |counters| this.space_counters(counters)),
            _ => Err(ENOTTY),
        }
    }
}

impl Poll for OpenFile {
    type Node = ();

    fn poll(this: Pin<&Self>, file: &File, table: &PollTable<'_>) -> Ready {
        this.waiters.register(file, table);
        let mut ready = this.clients.watch(file, table);
        if let Some(bound) = &*this.bound.lock() {
            if !bound.space.is_current() {
                ready = ready | Ready::ERROR;
            }
            if bound.space.has_no_process() {
                ready = ready | Ready::HUNG_UP;
            }
            if bound.fences.ends().is_any_left() {
                ready = ready | Ready::FETCH;
            }
        }
        ready
    }
}

impl OpenFile {
    /// The binding of the file, if the caller's process has made it.
    fn bound(&self) -> Result<Arc<Bound>> {
        let bound = self.bound.lock().clone().ok_or(EPERM)?;
        let task = current!();
        let mm = task.mm();
        if mm.is_some_and(|mm| core::ptr::eq(mm.as_raw(), bound.user.as_raw())) {
            Ok(bound)
        } else {
            Err(EPERM)
        }
    }

    /// The same, if the device still has the space.
    fn served(&self) -> Result<Arc<Bound>> {
        let bound = self.bound()?;
        if bound.space.is_current() {
            Ok(bound)
        } else {
            Err(self.clients.device.core.link.queues().error())
        }
    }

    fn info(&self, info: &mut Info) -> Result {
        let clients = self.clients.enter()?;
        let core = &clients.device.core;
        let limits = &core.limits;
        *info = Info {
            version: VERSION,
            engines: limits.engines,
            device_memory: limits.device_memory,
            free_memory: core.frames.total().saturating_sub(core.frames.used()) << PAGE_SHIFT,
            capabilities: limits.capabilities,
            max_jobs: limits.max_jobs,
            max_spaces: limits.max_spaces,
            device_version: config::VERSION,
            address_bits: limits.address_bits,
            state: clients.state().raw(),
            resets: core.counters.resets.get() as u32,
        };
        Ok(())
    }

    fn bind(&self, bind: &Bind) -> Result {
        if bind.version != VERSION {
            return Err(EPROTO);
        }
        zero(bind.flags)?;
        let task = current!();
        let mm = task.mm().ok_or(EPERM)?;
        self.bind_to(mm, Owner::caller())
    }

    fn bind_process(&self, bind: &BindProcess) -> Result {
        if bind.version != VERSION {
            return Err(EPROTO);
        }
        zero(bind.flags)?;
        let (mm, owner) = process::traced(bind.pidfd, bind.memory)?;
        self.bind_to(&mm, owner)
    }

    /// Binds the file to the process with the address space `mm` and this owner.
    fn bind_to(&self, mm: &MmWithUser, owner: Owner) -> Result {
        let clients = self.clients.enter()?;
        let life = clients.device.core.link.queues().life();
        match clients.state() {
            DeviceState::Running => {}
            DeviceState::Suspended | DeviceState::Resetting => return Err(EAGAIN),
            DeviceState::Gone => return Err(EIO),
        }
        let task = current!();
        let user = task.mm().ok_or(EPERM)?;
        let mut bound = self.bound.lock();
        if let Some(bound) = bound.as_deref() {
            if bound.space.is_current() {
                return Err(EBUSY);
            }
            // A space of an earlier life of the device is no longer usable, but the file is still the
            // process's that has bound it, as long as that lives.
            let is_other = !core::ptr::eq(bound.user.as_raw(), user.as_raw());
            if is_other && observed(&bound.user).is_some_and(|user| has_process(&user)) {
                return Err(EPERM);
            }
        }
        let room = UniqueArc::new_uninit(GFP_KERNEL_ACCOUNT)?;
        let ends = Ends::new(self.waiters.clone())?;
        let space = self.clients.bind(mm, owner).map_err(|error| {
            // If a life of the device ends during this call, the program can try the next one.
            let is_over = clients.device.core.link.queues().life() != life
                || clients.state() == DeviceState::Resetting;
            if error == EIO && is_over {
                EAGAIN
            } else {
                error
            }
        })?;
        let fences = Fences::new(ends, bound.as_deref().map(|before| &before.fences));
        let Ok(made) = room.pin_init_with(pin_init!(Bound {
            space,
            user: ARef::from(&**user),
            fences <- fences,
        }));
        let before = bound.replace(made.into());
        drop(bound);
        // The earlier space has been ended, or is about to be, and so have its jobs.
        if let Some(before) = before {
            self.clients.leave(&before.space, || ());
        }
        Ok(())
    }

    fn submit(&self, submit: &mut Submit) -> Result {
        zero(submit.flags & !submit_flags::ALL)?;
        let is_told = submit.flags & submit_flags::EVENTFD != 0;
        if !is_told && submit.eventfd != 0 {
            return Err(EINVAL);
        }
        if !(1..=MAX_SUBMIT).contains(&submit.count) {
            return Err(EINVAL);
        }
        let bound = self.bound()?;
        let eventfd = is_told.then(|| EventFd::of_descriptor(submit.eventfd));
        let eventfd = eventfd.transpose()?;
        let zeroed = JobDescriptor::new_zeroed();
        let mut jobs = KVVec::from_elem(zeroed, submit.count as usize, GFP_KERNEL)?;
        let address = UserPtr::from_addr(usize::try_from(submit.jobs)?);
        UserSlice::new(address, size_of_val(&*jobs))
            .reader()
            .read_slice(jobs.as_mut_slice().as_mut_bytes())?;
        let clients = self.clients.enter()?;
        if bound.space.has_no_process() {
            return Err(ESRCH);
        }
        let fences = &bound.fences;
        let submitted = fences.submit(&clients, &bound.space, &jobs, eventfd)?;
        submit.first_fence = submitted.first_fence;
        submit.submitted = submitted.count;
        Ok(())
    }

    fn wait(&self, wait: &mut Wait) -> Result {
        let _clients = self.clients.enter()?;
        let bound = self.bound()?;
        let deadline = Deadline::new(wait.deadline);
        wait.result = bound.fences.wait(&bound.space, wait.fence, deadline)?;
        Ok(())
    }

    fn wait_any(&self, wait: &mut WaitAny) -> Result {
        zero(wait.flags)?;
        if wait.count > MAX_WAIT {
            return Err(EINVAL);
        }
        let bound = self.bound()?;
        let mut fences = KVec::from_elem(0_u64, wait.count as usize, GFP_KERNEL)?;
        if !fences.is_empty() {
            let address = UserPtr::from_addr(usize::try_from(wait.fences)?);
            UserSlice::new(address, size_of_val(&*fences))
                .reader()
                .read_slice(fences.as_mut_slice().as_mut_bytes())?;
        }
        let _clients = self.clients.enter()?;
        let deadline = Deadline::new(wait.deadline);
        (wait.fence, wait.result) = bound.fences.wait_any(&bound.space, &fences, deadline)?;
        Ok(())
    }

    fn cancel(&self, cancel: &Cancel) -> Result {
        zero(cancel.flags)?;
        zero(cancel.reserved)?;
        let clients = self.clients.enter()?;
        self.bound()?.fences.cancel(&clients.device, cancel.fence)
    }

    fn migrate(&self, migrate: &mut Migrate) -> Result {
        let holes = match migrate.flags {
            0 => Holes::Stay,
            migrate_flags::POPULATE => Holes::AreFilled,
            _ => return Err(EINVAL),
        };
        let range = process_range(migrate.address, migrate.bytes)?;
        let destination = Destination::from_raw(migrate.destination).ok_or(EINVAL)?;
        let _clients = self.clients.enter()?;
        let bound = self.served()?;
        let mm = observed(bound.space.mm()).ok_or(ESRCH)?;
        let pages = (range.len() >> PAGE_SHIFT) as u64;
        let space = &bound.space;
        let cause = Cause::Request;
        let progress = match (destination, holes) {
            (Destination::Device, _) => to_device(space, &mm, range, holes, Until::Signal, cause)?,
            (Destination::System, Holes::Stay) => {
                to_system(space, &mm, range, Until::Signal, cause)?
            }
            (Destination::System, Holes::AreFilled) => return Err(EINVAL),
        };
        let tally = &progress.tally;
        migrate.moved = tally.moved;
        migrate.skipped = pages.saturating_sub(tally.moved);
        migrate.no_memory = tally.no_memory;
        migrate.reached = progress.reached as u64;
        Ok(())
    }

    fn residency(&self, residency: &Residency) -> Result {
        zero(residency.flags)?;
        if !(1..=MAX_RESIDENCY_PAGES).contains(&residency.pages) {
            return Err(EINVAL);
        }
        let range = process_range(residency.address, residency.pages << PAGE_SHIFT)?;
        let space = {
            let clients = self.clients.enter()?;
            self.inspected(&clients, residency.pid)?
        };
        fill_bytes(&range, residency.states, STEP, |step, states| {
            let clients = self.clients.enter()?;
            let mm = observed(space.mm()).filter(|mm| has_process(mm));
            let mm = mm.ok_or(ESRCH)?;
            PageWalker::new(&clients, &space, &mm)?.page_states(step, states)
        })
    }

    /// The space of a process that the caller may inspect.
    fn inspected(&self, clients: &Using<'_>, pid: i32) -> Result<Arc<Space>> {
        match pid {
            ..0 => Err(EINVAL),
            0 => Ok(self.served()?.space.clone()),
            pid => {
                let spaces = &clients.spaces;
                process::with_mm_of(pid, |mm| spaces.of(mm))?.ok_or(ESRCH)
            }
        }
    }

    fn space_counters(&self, counters: &mut SpaceCounters) -> Result {
        zero(counters.flags)?;
        zero(counters.reserved)?;
        let bound = self.bound()?;
        let events = bound.space.events();
        *counters = SpaceCounters {
            flags: 0,
            reserved: 0,
            jobs: events.jobs.get(),
            faults: events.faults.get(),
            fault_pages: events.fault_pages.get(),
            invalidations: events.invalidations.get(),
            invalidations_sent: events.invalidations_sent.get(),
            pages_to_device: events.pages_to_device.get(),
            pages_to_system: events.pages_to_system.get(),
            cpu_fault_pages: events.cpu_fault_pages.get(),
        };
        Ok(())
    }

    fn counters(&self, counters: &mut Counters) -> Result {
        let clients = self.clients.enter()?;
        *counters = Counters {
            driver: clients.statistics(),
            device: clients.device_statistics()?,
        };
        Ok(())
    }
}

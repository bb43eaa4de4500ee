// SPDX-License-Identifier: GPL-2.0

//! The nodes `/dev/hmmN` and their ioctls.
//!
//! Checks what programs hand in, once, and translates to and from the rest of the
//! driver. Knows nothing of queues, nor of the kernel's memory management.
//!
//! Lock order: `Session::bound` is taken before any other lock of the driver.

use crate::{
    device::{Device, Using},
    ioctl::{call, fill_bytes, page_range, zero},
    job::Fences,
    migrate,
    mm::PAGE_SHIFT,
    node, process,
    residency::{Looker, STEP},
    space::Space,
    uapi::{
        Bind, Call, Counters, Destination, Info, Migrate, Residency, Submit, Wait,
        MAX_RESIDENCY_PAGES, MAX_SUBMIT, VERSION,
    },
    wire::{config, job::JobDescriptor},
};
use core::pin::Pin;
use kernel::{
    current,
    fs::File,
    miscdevice::{MiscDevice, MiscDeviceRegistration},
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex, UniqueArc},
    time::msecs_to_jiffies,
    uaccess::{UserPtr, UserSlice},
};
use zerocopy::{FromZeros, IntoBytes};

/// An open file.
#[pin_data]
pub(crate) struct Session {
    device: Arc<Device>,
    #[pin]
    bound: Mutex<Option<Arc<Bound>>>,
}

/// What a file has that is bound to a process.
#[pin_data]
struct Bound {
    space: Arc<Space>,
    #[pin]
    fences: Fences,
}

#[vtable]
impl MiscDevice for Session {
    type Ptr = Pin<KBox<Self>>;

    fn open(_file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        let device = node::device(misc)?;
        let session = KBox::pin_init(
            pin_init!(Self {
                device,
                bound <- new_mutex!(None, "Session::bound"),
            }),
            GFP_KERNEL,
        )?;
        session.device.opened();
        Ok(session)
    }

    fn release(session: Self::Ptr, _file: &File) {
        let bound = session.bound.lock().take();
        if let Some(bound) = bound {
            session.device.leaving(&bound.space);
            bound.space.end();
        }
        session.device.closed();
    }

    fn ioctl(session: Pin<&Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let device = session.device.enter()?;
        let session = &*session;
        match cmd {
            Info::CODE => call(arg, |info| session.info(&device, info)),
            Bind::CODE => call(arg, |bind| session.bind(bind)),
            Submit::CODE => call(arg, |submit| session.submit(&device, submit)),
            Wait::CODE => call(arg, |wait| session.wait(&device, wait)),
            Migrate::CODE => call(arg, |migrate| session.migrate(migrate)),
            Residency::CODE => call(arg, |residency| session.residency(&device, residency)),
            Counters::CODE => call(arg, |counters| session.counters(&device, counters)),
            _ => Err(ENOTTY),
        }
    }
}

impl Session {
    /// What the file is bound to, if that is the caller's process.
    fn bound(&self) -> Result<Arc<Bound>> {
        let bound = self.bound.lock().clone().ok_or(EPERM)?;
        if bound.space.is_callers() {
            Ok(bound)
        } else {
            Err(EPERM)
        }
    }

    fn info(&self, device: &Using<'_>, info: &mut Info) -> Result {
        let core = &device.core;
        let limits = &core.limits;
        *info = Info {
            version: VERSION,
            engines: limits.engines,
            device_memory: limits.device_memory,
            free_memory: (core.frames.total() - core.frames.used()) << PAGE_SHIFT,
            capabilities: limits.capabilities,
            max_jobs: limits.max_jobs,
            max_spaces: limits.max_spaces,
            device_version: config::VERSION,
            address_bits: limits.address_bits,
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
        let mut bound = self.bound.lock();
        if bound.is_some() {
            return Err(EBUSY);
        }
        let room = UniqueArc::new_uninit(GFP_KERNEL)?;
        let space = Space::new(self.device.clone(), mm, task.tgid())?;
        let Ok(made) = room.pin_init_with(pin_init!(Bound {
            space,
            fences <- Fences::new(),
        }));
        *bound = Some(made.into());
        Ok(())
    }

    fn submit(&self, device: &Using<'_>, submit: &mut Submit) -> Result {
        zero(submit.flags)?;
        zero(submit.reserved)?;
        if !(1..=MAX_SUBMIT).contains(&submit.count) {
            return Err(EINVAL);
        }
        let bound = self.bound()?;
        let zeroed = JobDescriptor::new_zeroed();
        let mut jobs = KVVec::from_elem(zeroed, submit.count as usize, GFP_KERNEL)?;
        let address = UserPtr::from_addr(usize::try_from(submit.jobs)?);
        UserSlice::new(address, size_of_val(&*jobs))
            .reader()
            .read_slice(jobs.as_mut_slice().as_mut_bytes())?;
        let submitted = bound.fences.submit(device, &bound.space, &jobs)?;
        submit.first_fence = submitted.first_fence;
        submit.submitted = submitted.count;
        Ok(())
    }

    fn wait(&self, device: &Using<'_>, wait: &mut Wait) -> Result {
        let bound = self.bound()?;
        wait.result = bound
            .fences
            .wait(device, wait.fence, jiffies(wait.timeout))?;
        Ok(())
    }

    fn migrate(&self, migrate: &mut Migrate) -> Result {
        zero(migrate.flags)?;
        let range = page_range(migrate.address, migrate.bytes)?;
        let destination = Destination::from_raw(migrate.destination).ok_or(EINVAL)?;
        let bound = self.bound()?;
        let mm = bound.space.mm().mmget_not_zero().ok_or(EPERM)?;
        let pages = (range.len() >> PAGE_SHIFT) as u64;
        let tally = match destination {
            Destination::Device => migrate::to_device(&bound.space, &mm, range)?,
            Destination::System => migrate::to_system(&bound.space, &mm, range)?,
        };
        migrate.moved = tally.moved;
        migrate.skipped = pages - tally.moved;
        migrate.no_memory = tally.no_memory;
        Ok(())
    }

    fn residency(&self, device: &Using<'_>, residency: &Residency) -> Result {
        zero(residency.flags)?;
        if !(1..=MAX_RESIDENCY_PAGES).contains(&residency.pages) {
            return Err(EINVAL);
        }
        let range = page_range(residency.address, residency.pages << PAGE_SHIFT)?;
        let space = self.inspected(device, residency.pid)?;
        let mm = space.mm().mmget_not_zero().ok_or(ESRCH)?;
        let mut looker = Looker::new(device, &space, &mm)?;
        fill_bytes(&range, residency.states, STEP, |step, states| {
            looker.look(step, states)
        })
    }

    /// The space of a process that the caller may look at.
    fn inspected(&self, device: &Using<'_>, pid: i32) -> Result<Arc<Space>> {
        match pid {
            ..0 => Err(EINVAL),
            0 => Ok(self.bound()?.space.clone()),
            pid => {
                if pid != current!().tgid() && !process::may_trace_others() {
                    return Err(EACCES);
                }
                device.core.spaces.by_pid(pid).ok_or(ESRCH)
            }
        }
    }

    fn counters(&self, device: &Using<'_>, counters: &mut Counters) -> Result {
        *counters = Counters {
            driver: device.statistics(),
            device: device.device_statistics()?,
        };
        Ok(())
    }
}

/// A timeout in jiffies, `None` if it is for ever. Fractions count as a whole.
fn jiffies(nanoseconds: i64) -> Option<usize> {
    let nanoseconds = u64::try_from(nanoseconds).ok()?;
    let milliseconds = nanoseconds.div_ceil(1_000_000);
    // Seven weeks are as good as anything longer.
    Some(msecs_to_jiffies(
        milliseconds.try_into().unwrap_or(u32::MAX),
    ))
}

//! The interface between a program in the guest and the driver: the ioctls of `/dev/hmmN`.
//!
//! Those of the nodes for the kernel's own tests are in [`dmirror`].
//!
//! Integers are native; addresses and pointers are `u64`. Every field named `reserved` or `flags`
//! must be zero unless bits are defined for it, otherwise the call fails with `EINVAL`. The size of
//! a structure is part of its ioctl number, so a caller built for another layout gets `ENOTTY`.
//!
//! | errno | meaning |
//! | --- | --- |
//! | `ENOTTY` | no such ioctl, or a structure of another size |
//! | `EFAULT` | an argument's own memory cannot be read or written |
//! | `EINVAL` | a field is out of range, not aligned, or should be zero; addresses that no process has |
//! | `EBADF` | [`Submit::eventfd`], [`BindProcess::pidfd`] or [`BindProcess::memory`] is not open, or not of that kind |
//! | `EPROTO` | [`Bind::version`] is not [`VERSION`] |
//! | `EBUSY` | the file is bound already |
//! | `EPERM` | the file is not bound, or by another process than the caller |
//! | `ENOSPC` | the device has no space left to bind to |
//! | `EAGAIN` | as many jobs as the device or the file takes have been submitted; of [`Bind`]: the device is about to be started anew, call again |
//! | `ENOENT` | no such fence, or its result has been fetched already |
//! | `ETIME` | no such job has ended in time |
//! | `EINTR` | a signal arrived whose handler does not restart calls; call again |
//! | `ESRCH` | no space on this device belongs to that process; or the process that the file is bound to has ended or executed another program |
//! | `EACCES` | the caller may not look at that process, or not write its memory |
//! | `ENOMEM` | the guest is out of memory |
//! | `ENODEV` | the device has been removed |
//! | `EIO` | the device broke the protocol or stopped answering, and what it held is lost: see [`Info::state`]; or it answered the request of this call alone with an error of its own, and nothing is lost |

use crate::wire::job::{JobDescriptor, JobReply};
use crate::wire::statistics::Statistics;

pub mod dmirror;
pub mod late;
pub mod trace;

/// The version of this interface.
pub const VERSION: u32 = 2;

/// The ioctl type byte of every call.
pub const IOCTL_TYPE: u8 = 0xD6;

/// The most devices, hence the nodes `/dev/hmm0` to `/dev/hmm15`.
pub const MAX_DEVICES: u32 = 16;

/// The most jobs that one [`Submit`] may hold.
pub const MAX_SUBMIT: u32 = 256;

/// The most fences that one [`WaitAny`] may name.
pub const MAX_WAIT: u32 = 256;

/// The most pages that one [`Residency`] may ask about.
pub const MAX_RESIDENCY_PAGES: u64 = 1 << 18;

/// An ioctl: its number within [`IOCTL_TYPE`] and the structure it passes both ways.
pub trait Call {
    /// The number.
    const NUMBER: u8;
    /// The call's name.
    const CALL: &'static str;
    /// The request code, as `_IOWR(IOCTL_TYPE, NUMBER, Self)` gives it.
    const CODE: u32;
}

/// `_IOWR(kind, number, T)` of the kernel's `asm-generic/ioctl.h`.
const fn read_write_code<T>(kind: u8, number: u8) -> u32 {
    const BOTH_WAYS: u32 = 3;
    // The size has fourteen bits in a request code.
    assert!(core::mem::size_of::<T>() < 1 << 14);
    #[allow(clippy::cast_possible_truncation)] // Just checked.
    let size = core::mem::size_of::<T>() as u32;
    BOTH_WAYS << 30 | size << 16 | u32::from_be_bytes([0, 0, kind, number])
}

macro_rules! calls {
    ($($number:literal $name:ident,)+) => {
        $( impl Call for $name {
            const NUMBER: u8 = $number;
            const CALL: &'static str = stringify!($name);
            const CODE: u32 = read_write_code::<$name>(IOCTL_TYPE, $number);
        } )+

        /// Every call: its number, its name and its request code.
        pub const CALLS: &[(u8, &str, u32)] = &[ $( ($number, $name::CALL, $name::CODE), )+ ];
    };
}

calls! {
    0 Info,
    1 Bind,
    2 Submit,
    3 Wait,
    4 Migrate,
    5 Residency,
    6 Counters,
    7 Cancel,
    8 WaitAny,
    9 BindProcess,
    10 SpaceCounters,
}

layout! {
    /// Describes the device; allowed on a file that is not bound.
    pub struct Info {
        /// Out: [`VERSION`].
        pub version: u32,
        /// Out: engines.
        pub engines: u32,
        /// Out: device memory in bytes.
        pub device_memory: u64,
        /// Out: device memory that is free now, in bytes.
        pub free_memory: u64,
        /// Out: [`capability`](crate::wire::config::capability) bits, without bits that the driver
        /// cannot use.
        pub capabilities: u64,
        /// Out: jobs that may be in flight on the device.
        pub max_jobs: u32,
        /// Out: processes that may be bound at a time.
        pub max_spaces: u32,
        /// Out: version of the device's interface.
        pub device_version: u32,
        /// Out: width of a virtual address in bits.
        pub address_bits: u32,
        /// Out: a [`DeviceState`].
        pub state: u32,
        /// Out: how often the device has been restarted after it was given up.
        pub resets: u32,
    }

    /// Binds the file to the calling process: its addresses become the device's.
    ///
    /// The space lives until the file is closed or the process ends.
    pub struct Bind {
        /// In: [`VERSION`].
        pub version: u32,
        /// In: zero.
        pub flags: u32,
    }

    /// Binds the file to another process, whose memory the caller may write: its addresses become
    /// the device's, and the caller makes the calls.
    ///
    /// The space lives until the file is closed, or until the process ends or executes another
    /// program.
    pub struct BindProcess {
        /// In: [`VERSION`].
        pub version: u32,
        /// In: zero.
        pub flags: u32,
        /// In: a pidfd of the process.
        pub pidfd: i32,
        /// In: a descriptor of the `mem` file of the same process in `/proc`, open for reading and
        /// writing.
        pub memory: i32,
    }

    /// Reads what has happened to the space that the file is bound to.
    pub struct SpaceCounters {
        /// In: zero.
        pub flags: u32,
        /// In: zero.
        pub reserved: u32,
        /// Out: jobs submitted.
        pub jobs: u64,
        /// Out: fault records received.
        pub faults: u64,
        /// Out: pages mapped on behalf of faults.
        pub fault_pages: u64,
        /// Out: notifier callbacks.
        pub invalidations: u64,
        /// Out: notifier callbacks that concerned pages mapped on the device.
        pub invalidations_sent: u64,
        /// Out: pages moved to the device.
        pub pages_to_device: u64,
        /// Out: pages moved back by request.
        pub pages_to_system: u64,
        /// Out: pages moved back because of CPU faults.
        pub cpu_fault_pages: u64,
    }

    /// Submits jobs, which may run in any order and at the same time.
    pub struct Submit {
        /// In: address of `count` jobs, each a [`JobDescriptor`].
        pub jobs: u64,
        /// In: how many, 1 to [`MAX_SUBMIT`].
        pub count: u32,
        /// In: a set of [`submit_flags`].
        pub flags: u32,
        /// Out: fence of the first job; each further job has the next number.
        pub first_fence: u64,
        /// Out: how many were submitted; fewer than asked if no more fit.
        pub submitted: u32,
        /// In: with [`submit_flags::EVENTFD`] a descriptor of an eventfd, which is incremented for
        /// each of these jobs when it ends; otherwise zero.
        pub eventfd: i32,
    }

    /// Waits until a job has ended and fetches its result, once.
    pub struct Wait {
        /// In: the job's fence.
        pub fence: u64,
        /// In: until when to wait, in nanoseconds of `CLOCK_MONOTONIC`; zero does not wait, a
        /// negative value waits for ever.
        pub deadline: i64,
        /// Out: how the job ended.
        pub result: JobReply,
    }

    /// Asks a job of this file to end early. It is no error if it has ended.
    pub struct Cancel {
        /// In: the job's fence.
        pub fence: u64,
        /// In: zero.
        pub flags: u32,
        /// In: zero.
        pub reserved: u32,
    }

    /// Waits until one of several jobs has ended and fetches its result.
    pub struct WaitAny {
        /// In: address of `count` fences, each a `u64`; ignored if `count` is zero.
        pub fences: u64,
        /// In: how many, up to [`MAX_WAIT`]; zero means all jobs of the file whose results have
        /// not been fetched.
        pub count: u32,
        /// In: zero.
        pub flags: u32,
        /// In: until when to wait, as [`Wait::deadline`].
        pub deadline: i64,
        /// Out: the fence of the job that has ended.
        pub fence: u64,
        /// Out: how it ended.
        pub result: JobReply,
    }

    /// Moves the private anonymous pages of a range of the caller's addresses.
    ///
    /// Pages that cannot move are left and counted; that is no error. A signal ends the call with
    /// what has been done.
    pub struct Migrate {
        /// In: first byte, aligned to a page.
        pub address: u64,
        /// In: how many bytes, a multiple of the page size.
        pub bytes: u64,
        /// In: a [`Destination`].
        pub destination: u32,
        /// In: [`migrate_flags`].
        pub flags: u32,
        /// Out: pages that this call has moved to the destination.
        pub moved: u64,
        /// Out: other pages of the range: they were there already, cannot move, or are not mapped.
        pub skipped: u64,
        /// Out: skipped pages for which there was no memory at the destination. Once the device is
        /// full, the call no longer tries further pages.
        pub no_memory: u64,
        /// Out: where the call ended: at the end of the range, or before it for a signal.
        pub reached: u64,
    }

    /// Reports where the pages of a range are, without touching them.
    pub struct Residency {
        /// In: zero for the file's own process, else the id of a process that is bound to
        /// this device; that needs `CAP_SYS_PTRACE` unless it is the caller.
        pub pid: i32,
        /// In: zero.
        pub flags: u32,
        /// In: first byte, aligned to a page.
        pub address: u64,
        /// In: how many pages, 1 to [`MAX_RESIDENCY_PAGES`].
        pub pages: u64,
        /// In: address of `pages` bytes, each set to a combination of [`page_state`].
        pub states: u64,
    }

    /// Reads the counters of the driver and of the device.
    pub struct Counters {
        /// Out: the driver's.
        pub driver: DriverStatistics,
        /// Out: the device's.
        pub device: Statistics,
    }

    /// The driver's counters since it was bound to the device.
    pub struct DriverStatistics {
        /// Processes that are bound now.
        pub spaces: u64,
        /// Frames of device memory that hold a page now.
        pub used_frames: u64,
        /// Frames of device memory that the driver manages.
        pub total_frames: u64,

        /// Fault records received.
        pub faults: u64,
        /// Batches in which they arrived.
        pub fault_batches: u64,
        /// Pages mapped on behalf of faults.
        pub fault_pages: u64,
        /// Range faults that had to be repeated because the process changed its mappings meanwhile.
        pub fault_retries: u64,
        /// Faults answered with terminate.
        pub faults_terminated: u64,

        /// Notifier callbacks.
        pub invalidations: u64,
        /// Notifier callbacks that concerned pages mapped on the device.
        pub invalidations_sent: u64,

        /// Pages moved to the device.
        pub pages_to_device: u64,
        /// Huge pages among these moves, counted once each.
        pub huge_to_device: u64,
        /// Pages moved back by request.
        pub pages_to_system: u64,
        /// Pages moved back because of CPU faults.
        pub cpu_fault_pages: u64,
        /// Pages moved back because the device was closed or removed.
        pub pages_evicted: u64,
        /// Huge pages among all moves back, counted once each.
        pub huge_to_system: u64,
        /// Pages that could not be moved to the device.
        pub pages_refused: u64,
        /// Pages lost because the device failed to copy them back.
        pub pages_lost: u64,

        /// Nanoseconds that migrations took to collect pages from their processes.
        pub collect_nanoseconds: u64,
        /// Nanoseconds that migrations took to allocate memory for these pages at the destination,
        /// and to send the copy lists.
        pub allocate_nanoseconds: u64,
        /// Nanoseconds that they waited for copies after that.
        pub copy_nanoseconds: u64,
        /// Nanoseconds that migrations took to exchange the memory.
        pub commit_nanoseconds: u64,
        /// Nanoseconds that they took to return the pages to their processes.
        pub finalise_nanoseconds: u64,
        /// Nanoseconds that notifier callbacks waited for the device's promise.
        pub invalidate_nanoseconds: u64,

        /// Requests sent on the control queue.
        pub control_requests: u64,
        /// Requests sent on the dma queue.
        pub dma_requests: u64,
        /// Queue interrupts handled.
        pub interrupts: u64,
        /// Kicks: notifications that were sent to the device.
        pub kicks: u64,

        /// Changes of a process's memory that waited for huge pages in migration until the
        /// driver's limit for such waits, and then continued.
        pub changes_hurried: u64,
    }
}

values! {
    /// Whether a device serves programs, and if not, why.
    pub enum DeviceState: u32 {
        /// It serves programs.
        Running = 0,
        /// The system is suspended.
        Suspended = 1,
        /// It was given up, and is about to be restarted.
        Resetting = 2,
        /// It was given up too often, or has been removed.
        Gone = 3,
    }
}

values! {
    /// Where [`Migrate`] moves pages.
    pub enum Destination: u32 {
        /// The guest's memory.
        System = 0,
        /// The device's memory.
        Device = 1,
    }
}

/// What [`Submit::flags`] may hold.
pub mod submit_flags {
    /// [`Submit::eventfd`](super::Submit::eventfd) is signalled when each job ends.
    pub const EVENTFD: u32 = 1 << 0;
    /// Every defined bit.
    pub const ALL: u32 = EVENTFD;
}

/// Options of [`Migrate`].
pub mod migrate_flags {
    /// Place pages of zeros on the device where there are none yet. Without this flag, holes remain
    /// and cost nothing.
    pub const POPULATE: u32 = 1 << 0;
}

/// The bits that [`Residency`] reports of a page.
pub mod page_state {
    /// Mask of the place: one of the next values.
    pub const PLACE: u8 = 0b11;
    /// There is no page (yet).
    pub const NONE: u8 = 0;
    /// In the guest's memory, or in another device's coherent memory.
    pub const SYSTEM: u8 = 1;
    /// In this device's memory.
    pub const DEVICE: u8 = 2;
    /// Somewhere that cannot be mapped on a device: an I/O page, a poisoned page or
    /// another device's private memory.
    pub const OTHER: u8 = 3;
    /// The process may write to it without a fault.
    pub const WRITABLE: u8 = 1 << 2;
    /// Part of a huge page.
    pub const HUGE: u8 = 1 << 3;
    /// Mapped on the device.
    pub const MAPPED: u8 = 1 << 4;
}

const _: () = assert!(core::mem::size_of::<JobDescriptor>() == 120);

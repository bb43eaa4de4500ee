//! What a program in the guest says to the driver: the ioctls of `/dev/hmmN`. Those of
//! the nodes for the kernel's own tests are in [`dmirror`].
//!
//! Integers are native; addresses and pointers are `u64`. Every field named
//! `reserved` or `flags` must be zero unless bits are defined for it, else the call
//! fails with `EINVAL`. The size of a structure is part of its ioctl number, so a
//! caller built for another layout gets `ENOTTY`.
//!
//! | errno | meaning |
//! | --- | --- |
//! | `ENOTTY` | no such ioctl, or a structure of another size |
//! | `EFAULT` | an argument's own memory cannot be read or written |
//! | `EINVAL` | a field is out of range, not aligned, wraps, or should be zero |
//! | `EPROTO` | [`Bind::version`] is not [`VERSION`] |
//! | `EBUSY` | the file is bound already |
//! | `EPERM` | the file is not bound, or to another process than the caller |
//! | `ENOSPC` | the device has no space left to bind to |
//! | `EAGAIN` | as many jobs as the device or the file takes have been submitted |
//! | `ENOENT` | no such fence, or its result has been fetched already |
//! | `ETIME` | the fence did not complete in time |
//! | `EINTR` | a signal arrived; call again |
//! | `ESRCH` | no space on this device belongs to that process |
//! | `EACCES` | the caller may not look at that process |
//! | `ENOMEM` | the guest is out of memory |
//! | `ENODEV` | the device has been removed |
//! | `EIO` | the device broke the protocol or stopped answering |

use crate::wire::job::{JobDescriptor, JobReply};
use crate::wire::statistics::Statistics;

pub mod dmirror;

/// The version of this interface.
pub const VERSION: u32 = 1;

/// The ioctl type byte of every call.
pub const IOCTL_TYPE: u8 = 0xD6;

/// The most devices, hence the nodes `/dev/hmm0` to `/dev/hmm15`.
pub const MAX_DEVICES: u32 = 16;

/// The most jobs that one [`Submit`] may hold.
pub const MAX_SUBMIT: u32 = 256;

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
}

layout! {
    /// Describes the device; may be asked of a file that is not bound.
    pub struct Info {
        /// Out: [`VERSION`].
        pub version: u32,
        /// Out: engines.
        pub engines: u32,
        /// Out: device memory in bytes.
        pub device_memory: u64,
        /// Out: device memory that is free now, in bytes.
        pub free_memory: u64,
        /// Out: [`capability`](crate::wire::config::capability) bits, without those that
        /// the driver cannot use.
        pub capabilities: u64,
        /// Out: jobs that may be in flight on the device.
        pub max_jobs: u32,
        /// Out: processes that may be bound at a time.
        pub max_spaces: u32,
        /// Out: version of the device's interface.
        pub device_version: u32,
        /// Out: width of a virtual address in bits.
        pub address_bits: u32,
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

    /// Submits jobs, which may run in any order and at the same time.
    pub struct Submit {
        /// In: address of `count` [`JobDescriptor`]s.
        pub jobs: u64,
        /// In: how many, 1 to [`MAX_SUBMIT`].
        pub count: u32,
        /// In: zero.
        pub flags: u32,
        /// Out: fence of the first job; the others follow, one more each.
        pub first_fence: u64,
        /// Out: how many were submitted; fewer than asked when there is no more room.
        pub submitted: u32,
        /// In: zero.
        pub reserved: u32,
    }

    /// Waits until a job has ended and fetches its result, once.
    pub struct Wait {
        /// In: the job's fence.
        pub fence: u64,
        /// In: how long to wait in nanoseconds; zero only looks, negative waits for ever.
        pub timeout: i64,
        /// Out: how the job ended.
        pub result: JobReply,
    }

    /// Moves the private anonymous pages of a range of the caller's addresses.
    ///
    /// Pages that cannot move stay where they are and are counted; that is no error.
    pub struct Migrate {
        /// In: first byte, aligned to a page.
        pub address: u64,
        /// In: how many bytes, a multiple of the page size.
        pub bytes: u64,
        /// In: a [`Destination`].
        pub destination: u32,
        /// In: zero.
        pub flags: u32,
        /// Out: pages that are at the destination now because they were moved.
        pub moved: u64,
        /// Out: other pages of the range: they were there already, cannot move, or are
        /// not mapped.
        pub skipped: u64,
        /// Out: pages among the skipped ones for which there was no memory at the
        /// destination.
        pub no_memory: u64,
    }

    /// Tells where the pages of a range are, without touching them.
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

    /// What the driver has done since it was bound to the device.
    pub struct DriverStatistics {
        /// Files that are bound to a process now.
        pub spaces: u64,
        /// Frames of device memory that hold a page now.
        pub used_frames: u64,
        /// Frames of device memory that the driver manages.
        pub total_frames: u64,

        /// Fault records received.
        pub faults: u64,
        /// Batches that they came in.
        pub fault_batches: u64,
        /// Pages mapped on behalf of faults.
        pub fault_pages: u64,
        /// Range faults that had to be done again because the process changed its
        /// mappings meanwhile.
        pub fault_retries: u64,
        /// Faults answered with terminate.
        pub faults_terminated: u64,

        /// Notifier callbacks.
        pub invalidations: u64,
        /// Notifier callbacks that concerned pages mapped on the device.
        pub invalidations_sent: u64,

        /// Pages moved to the device.
        pub pages_to_device: u64,
        /// Large pages among these moves, counted once each.
        pub large_to_device: u64,
        /// Pages moved back by request.
        pub pages_to_system: u64,
        /// Pages moved back because the CPU touched them.
        pub pages_touched: u64,
        /// Pages moved back because the device was closed or removed.
        pub pages_evicted: u64,
        /// Large pages among all moves back, counted once each.
        pub large_to_system: u64,
        /// Pages that could not be moved to the device.
        pub pages_refused: u64,
        /// Pages lost because the device failed to give them back.
        pub pages_lost: u64,

        /// Nanoseconds that migrations took to take pages away from their processes.
        pub collect_nanoseconds: u64,
        /// Nanoseconds that they took to find memory for these at the destination, and to send
        /// the lists of what is to be copied there.
        pub lend_nanoseconds: u64,
        /// Nanoseconds that they waited for copies when all that was done.
        pub copy_nanoseconds: u64,
        /// Nanoseconds that migrations took to exchange the memory.
        pub commit_nanoseconds: u64,
        /// Nanoseconds that they took to give the pages back to their processes.
        pub finalise_nanoseconds: u64,
        /// Nanoseconds that notifier callbacks waited for the device's promise.
        pub promise_nanoseconds: u64,

        /// Requests sent on the control queue.
        pub control_requests: u64,
        /// Requests sent on the dma queue.
        pub dma_requests: u64,
        /// Queue interrupts handled.
        pub interrupts: u64,
        /// Kicks: notifications that were sent to the device.
        pub kicks: u64,
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

/// What [`Residency`] says of a page.
pub mod page_state {
    /// Mask of the place: one of the next values.
    pub const PLACE: u8 = 0b11;
    /// Nothing is there (yet).
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
    /// Part of a large page.
    pub const LARGE: u8 = 1 << 3;
    /// Mapped on the device.
    pub const MAPPED: u8 = 1 << 4;
}

const _: () = assert!(core::mem::size_of::<JobDescriptor>() == 120);

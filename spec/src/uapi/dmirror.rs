//! The interface of the kernel's own tests of HMM: the ioctls of `/dev/hmm_dmirrorN`.
//!
//! Numbers, structure and values are those of `lib/test_hmm_uapi.h` in Linux 7.3; the meaning is in
//! `uapi.md`.

/// The ioctl type byte of every call.
pub const IOCTL_TYPE: u8 = b'H';

/// The most nodes: `/dev/hmm_dmirror0` and 1 of devices with private memory, 2 and 3 of
/// devices whose memory CPUs can address.
pub const MAX_NODES: u32 = 4;

/// The most pages that can be mapped from a node at once.
pub const MAX_MAPPED_PAGES: u64 = 4096;

/// The bit of [`DmirrorCommand::npages`] with which [`DmirrorCall::Flags`] makes one allocation
/// fail.
pub const FAIL_ALLOC: u64 = 1 << 0;

values! {
    /// The calls, by the number within [`IOCTL_TYPE`].
    pub enum DmirrorCall: u32 {
        /// The device reads a range.
        Read = 0,
        /// The device writes a range.
        Write = 1,
        /// Moves a range to device memory, and has the device read it.
        MigrateToDevice = 2,
        /// Moves a range to the guest's memory.
        MigrateToSystem = 3,
        /// Reports how pages are mapped in the process.
        Snapshot = 4,
        /// Gives the device exclusive access to a range, and has it read it.
        Exclusive = 5,
        /// Fails if the device has exclusive access to any page.
        CheckExclusive = 6,
        /// Moves everything in device memory to the guest's memory.
        Release = 7,
        /// Makes one allocation fail.
        Flags = 8,
        /// As `Read`.
        ReadUnlocked = 9,
    }
}

impl DmirrorCall {
    /// The request code, as `_IOWR` gives it.
    pub const fn code(self) -> u32 {
        super::read_write_code::<DmirrorCommand>(IOCTL_TYPE, self.raw().to_le_bytes()[0])
    }

    /// The call with this request code.
    pub const fn from_code(code: u32) -> Option<Self> {
        match Self::from_raw(code & 0xff) {
            Some(call) if call.code() == code => Some(call),
            _ => None,
        }
    }
}

layout! {
    /// The argument of every call, passed both ways.
    pub struct DmirrorCommand {
        /// In: first byte of the range, aligned to a page.
        pub addr: u64,
        /// In: address of the program's own copy of the data, or of one byte for each page.
        pub ptr: u64,
        /// In: pages in the range, or the bits of `Flags`; not zero.
        pub npages: u64,
        /// Out: pages that were read, written, moved or inspected.
        pub cpages: u64,
        /// Out: how many times the device lacked pages of the range.
        pub faults: u64,
    }
}

/// The bits that [`DmirrorCall::Snapshot`] reports of a page: a place, and any of the others.
pub mod protection {
    /// Nothing that a device can map.
    pub const ERROR: u8 = 0xff;
    /// Place: ordinary memory, or, without `READ` and `WRITE`, nothing.
    pub const NONE: u8 = 0;
    /// It can be read only.
    pub const READ: u8 = 1 << 0;
    /// It can be read and written.
    pub const WRITE: u8 = 1 << 1;
    /// One entry of the process's page table maps 2 MiB.
    pub const PMD: u8 = 1 << 2;
    /// One entry of the process's page table maps 1 GiB.
    pub const PUD: u8 = 1 << 3;
    /// Place: the page of zeros that all processes share.
    pub const ZERO: u8 = 0x10;
    /// Place: private memory of this device.
    pub const DEVICE_PRIVATE_LOCAL: u8 = 0x20;
    /// Place: private memory of another device.
    pub const DEVICE_PRIVATE_REMOTE: u8 = 0x30;
    /// Place: coherent memory of this device.
    pub const DEVICE_COHERENT_LOCAL: u8 = 0x40;
    /// Place: coherent memory of another device.
    pub const DEVICE_COHERENT_REMOTE: u8 = 0x50;
}

//! Tracepoints of the driver, below `events/virtio_hmm` of the trace file system: the numbers that
//! their fields have.
//!
//! The kernel describes each tracepoint's fields itself, in the file `format` of the event.

values! {
    /// Why pages move: the field `cause` of `virtio_hmm_migrate`.
    pub enum Cause: u32 {
        /// A program has asked for it.
        Request = 0,
        /// A job needs to write to pages that are shared after a fork, which only the kernel can
        /// copy, in system memory.
        DeviceFault = 1,
        /// A CPU has accessed them in device memory, or something in the kernel has done so for a
        /// process, for example to pin them.
        CpuFault = 2,
        /// The last file of their process was closed, or the last one of the device.
        Exit = 3,
        /// The driver is being removed from the device.
        Removal = 4,
        /// The system is about to sleep.
        Suspend = 5,
        /// The device has been reset, and what it held is lost.
        Reset = 6,
    }
}

/// The word for each cause in a trace. Those that ROCm's tools have as well are named as there
/// (`enum KFD_MIGRATE_TRIGGERS` in linux/kfd_ioctl.h).
const WORDS: [(&str, Cause); 7] = [
    ("REQUEST", Cause::Request),
    ("PAGEFAULT_GPU", Cause::DeviceFault),
    ("PAGEFAULT_CPU", Cause::CpuFault),
    ("EXIT", Cause::Exit),
    ("REMOVAL", Cause::Removal),
    ("SUSPEND", Cause::Suspend),
    ("RESET", Cause::Reset),
];

impl Cause {
    /// Every cause.
    pub fn all() -> impl Iterator<Item = Self> {
        WORDS.iter().map(|(_, cause)| *cause)
    }

    /// Its word in a trace.
    pub fn word(self) -> &'static str {
        let found = WORDS.iter().find(|(_, cause)| *cause == self);
        found.map_or("", |(word, _)| word)
    }
}

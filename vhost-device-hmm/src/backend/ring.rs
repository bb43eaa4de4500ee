//! The framework's rings, with descriptors that never block a thread.
//!
//! Kicks and interrupts are counters in a file that the front end chooses. If the file is full, or
//! another process has read it, no queue may block. If it cannot be used at all, the queue's thread
//! must not end silently, as it does in the framework.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};

use nix::fcntl::{fcntl, FcntlArg, OFlag};
use vhost_user_backend::{VringRwLock, VringStateGuard, VringStateMutGuard, VringT};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// The guest's memory, which may change at any time.
pub type GuestMemoryHandle = GuestMemoryAtomic<GuestMemoryMmap>;

/// One ring.
#[derive(Clone)]
pub struct Ring {
    ring: VringRwLock,
    /// The error that prevents kicks from being read.
    deaf: Arc<OnceLock<io::Error>>,
}

impl Ring {
    /// The framework's ring.
    pub(super) fn plain(&self) -> &VringRwLock {
        &self.ring
    }

    /// The error that prevents kicks from being read, if any.
    pub(super) fn deaf(&self) -> Option<&io::Error> {
        self.deaf.get()
    }
}

/// Makes a descriptor non-blocking.
fn do_not_wait(file: Option<File>) -> Option<File> {
    let file = file?;
    let made = fcntl(file.as_fd(), FcntlArg::F_GETFL).and_then(|flags| {
        let flags = OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK;
        fcntl(file.as_fd(), FcntlArg::F_SETFL(flags))
    });
    match made {
        Ok(_) => Some(file),
        Err(errno) => {
            log::warn!("a descriptor of the front end's is not used: {errno}");
            None
        }
    }
}

impl<'a> VringStateGuard<'a, GuestMemoryHandle> for Ring {
    type G = <VringRwLock as VringStateGuard<'a, GuestMemoryHandle>>::G;
}

impl<'a> VringStateMutGuard<'a, GuestMemoryHandle> for Ring {
    type G = <VringRwLock as VringStateMutGuard<'a, GuestMemoryHandle>>::G;
}

impl VringT<GuestMemoryHandle> for Ring {
    fn new(memory: GuestMemoryHandle, size: u16) -> Result<Self, virtio_queue::Error> {
        Ok(Self {
            ring: VringRwLock::new(memory, size)?,
            deaf: Arc::default(),
        })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, GuestMemoryHandle>>::G {
        self.ring.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, GuestMemoryHandle>>::G {
        self.ring.get_mut()
    }

    fn add_used(&self, head: u16, written: u32) -> Result<(), virtio_queue::Error> {
        self.ring.add_used(head, written)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.ring.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, virtio_queue::Error> {
        self.ring.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), virtio_queue::Error> {
        self.ring.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, virtio_queue::Error> {
        self.ring.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.ring.set_enabled(enabled);
    }

    fn set_queue_info(
        &self,
        descriptors: u64,
        available: u64,
        used: u64,
    ) -> Result<(), virtio_queue::Error> {
        self.ring.set_queue_info(descriptors, available, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.ring.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.ring.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.ring.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, virtio_queue::Error> {
        self.ring.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        self.ring.set_queue_size(size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.ring.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.ring.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        self.ring.set_kick(do_not_wait(file));
    }

    /// In the framework an error would end the queue's thread silently. Here it is stored, and the
    /// backend is called as for a kick.
    fn read_kick(&self) -> io::Result<bool> {
        let enabled = match self.ring.read_kick() {
            Ok(enabled) => enabled,
            Err(error) => {
                let nothing = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
                if nothing.contains(&error.kind()) {
                    // Another process has read the kick: there may be work all the same.
                    self.ring.get_ref().is_enabled()
                } else {
                    // The first error is enough.
                    let _ = self.deaf.set(error);
                    true
                }
            }
        };
        Ok(enabled)
    }

    fn set_call(&self, file: Option<File>) {
        self.ring.set_call(do_not_wait(file));
    }

    fn set_err(&self, file: Option<File>) {
        self.ring.set_err(file);
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Nodes in `/dev` whose files can be polled, which the kernel crate's miscellaneous devices do not
//! support yet, and the threads that poll them.
//!
//! Does not know what files are polled for.
//!
//! C header: `include/linux/poll.h`.

use crate::sys as bindings;
use core::{
    marker::PhantomData,
    ops::{BitOr, Deref},
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    container_of,
    error::to_result,
    fs::File,
    miscdevice::{MiscDevice, MiscDeviceOptions, MiscDeviceRegistration},
    prelude::*,
    static_lock_class,
    sync::{
        poll::{PollCondVarBox, PollTable},
        Arc, CondVar,
    },
    types::{ForeignOwnable, Opaque},
};

/// What a file is ready for.
#[derive(Clone, Copy)]
pub(crate) struct Ready(u32);

impl Ready {
    /// Nothing: `POLLIN` and the like are not set.
    pub(crate) const NOTHING: Self = Self(0);
    /// `POLLIN`: there is something to fetch.
    pub(crate) const FETCH: Self = Self(0x001 | 0x040);
    /// `POLLERR`.
    pub(crate) const ERROR: Self = Self(0x008);
    /// `POLLHUP`.
    pub(crate) const HUNG_UP: Self = Self(0x010);
    /// The kernel's default for files without `poll`: everything is possible at any time.
    const ALWAYS: Self = Self(0x001 | 0x004 | 0x040 | 0x100);
}

impl BitOr for Ready {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Threads that poll files, or sleep, until something changes. The last reference may be dropped in
/// interrupt context.
pub(crate) struct Waiters(PollCondVarBox);

impl Waiters {
    /// No threads.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let waiters = PollCondVarBox::new(c"Waiters", static_lock_class!())?;
        Ok(Arc::new(Self(waiters), GFP_KERNEL_ACCOUNT)?)
    }

    /// Adds a thread that polls a file.
    pub(crate) fn register(&self, file: &File, table: &PollTable<'_>) {
        table.register_wait(file, &self.0);
    }

    /// Wakes all of them. May be called in interrupt context.
    pub(crate) fn wake(&self) {
        self.0.notify_all();
    }
}

/// Lets a thread sleep among the waiters.
impl Deref for Waiters {
    type Target = CondVar;

    fn deref(&self) -> &CondVar {
        &self.0
    }
}

/// A device whose files may be polled.
pub(crate) trait Poll: MiscDevice {
    /// What a node is registered with; a file finds it by [`Registration::of`].
    type Node: Send + Sync;

    /// Returns what a file is ready for. First registers with `table` everything that signals a
    /// change of that. Must not sleep for long.
    fn poll(
        _this: <Self::Ptr as ForeignOwnable>::Borrowed<'_>,
        _file: &File,
        _table: &PollTable<'_>,
    ) -> Ready {
        Ready::ALWAYS
    }
}

/// The file operations of a device: those of the kernel crate, and `poll`.
struct Operations<T: Poll>(PhantomData<T>);

impl<T: Poll> Operations<T> {
    const ALL: bindings::file_operations = {
        let plain = MiscDeviceOptions { name: c"" }.into_raw::<T>();
        // SAFETY: It points to a static table that is never changed.
        let plain = unsafe { &*plain.fops };
        bindings::file_operations {
            poll: Some(Self::poll),
            ..*plain
        }
    };

    /// The table that all nodes have that are registered here.
    const TABLE: &'static bindings::file_operations = &Self::ALL;

    /// # Safety
    ///
    /// `file` must be an open file of a [`Registration<T>`], and `table` null or valid during
    /// the call.
    unsafe extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table,
    ) -> bindings::__poll_t {
        // SAFETY: The caller promises that the file is open. So its private data is what the kernel
        // crate's `open` has stored there, and only its `release` removes it.
        let this = unsafe { <T::Ptr as ForeignOwnable>::borrow((*file).private_data) };
        // SAFETY: The file is valid during the call, and this thread is not using its position in
        // any other way.
        let file = unsafe { File::from_raw_file(file) };
        // SAFETY: The caller promises that it is so.
        let table = unsafe { PollTable::from_raw(table) };
        T::poll(this, file, &table).0
    }
}

/// A node in `/dev`, until it is dropped. An open node is a `T`.
///
/// # Invariants
///
/// `inner` is registered. The kernel crate made it for a `T`, so its operations find what they
/// expect in it, except for the table of operations, which has one more.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: Poll> {
    node: T::Node,
    #[pin]
    inner: Opaque<bindings::miscdevice>,
    _open: PhantomData<T>,
}

// SAFETY: A device may be deregistered by another thread than the one that registered it.
unsafe impl<T: Poll> Send for Registration<T> {}
// SAFETY: A shared reference gives access to `node` alone, which is `Sync`.
unsafe impl<T: Poll> Sync for Registration<T> {}

impl<T: Poll> Registration<T> {
    /// Makes the node.
    pub(crate) fn new(name: &'static CStr, node: T::Node) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // First: the node may be opened as soon as it is registered.
            node,
            // INVARIANT: Initialised only if it has been registered.
            inner <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                let mut device = MiscDeviceOptions { name }.into_raw::<T>();
                device.fops = Operations::<T>::TABLE;
                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write(device) };
                // SAFETY: It was just written, is pinned, and is deregistered before it is freed.
                // The kernel crate's operations take it for a `MiscDeviceRegistration<T>`, which is
                // a transparent wrapper of the same type.
                to_result(unsafe { bindings::misc_register(slot) })
            }),
            _open: PhantomData,
        })
    }

    /// The value that was registered with the node that is being opened.
    ///
    /// # Errors
    ///
    /// `ENODEV` if the node was not registered by [`Self::new`].
    #[allow(dead_code)] // The sample alone needs it.
    pub(crate) fn of(device: &MiscDeviceRegistration<T>) -> Result<&T::Node> {
        let raw = device.as_raw();
        // SAFETY: The device is registered, so its operations do not change.
        let table = unsafe { (*raw).fops };
        if !core::ptr::eq(table, Operations::<T>::TABLE) {
            return Err(ENODEV);
        }
        // SAFETY: Only `new` makes devices with that table, each as the field `inner` of a
        // `Registration`. A `Registration` deregisters its device before the rest of it is dropped,
        // and deregistering waits until `device` is gone.
        let this = unsafe { &*container_of!(Opaque::cast_from(raw).cast_mut(), Self, inner) };
        Ok(&this.node)
    }
}

#[pinned_drop]
impl<T: Poll> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the invariants it is registered.
        unsafe { bindings::misc_deregister(self.inner.get()) };
    }
}

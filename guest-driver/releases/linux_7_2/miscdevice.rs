// SPDX-License-Identifier: GPL-2.0

//! Miscellaneous devices whose open files keep their module, as in Linux 7.3.
//!
//! In Linux 7.2 the table of operations names no owner: a module could be removed while one of its
//! files is open.

use core::marker::PhantomData;
use kernel::{bindings, prelude::*};

pub use kernel::miscdevice::*;

/// How a device is made.
pub struct MiscDeviceOptions {
    /// Its name.
    pub name: &'static CStr,
}

impl MiscDeviceOptions {
    /// The device, ready to be registered.
    pub const fn into_raw<T: MiscDevice>(self) -> bindings::miscdevice {
        let mut device = kernel::miscdevice::MiscDeviceOptions { name: self.name }.into_raw::<T>();
        device.fops = Operations::<T>::TABLE;
        device
    }
}

/// The file operations of a device, which name the module that contains them.
struct Operations<T: MiscDevice>(PhantomData<T>);

impl<T: MiscDevice> Operations<T> {
    const ALL: bindings::file_operations = {
        let plain = kernel::miscdevice::MiscDeviceOptions { name: c"" }.into_raw::<T>();
        // SAFETY: It points to a static table that is never changed.
        let plain = unsafe { &*plain.fops };
        bindings::file_operations {
            owner: &raw mut bindings::__this_module,
            ..*plain
        }
    };

    const TABLE: &'static bindings::file_operations = &Self::ALL;
}

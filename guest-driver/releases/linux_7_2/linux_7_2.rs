// SPDX-License-Identifier: GPL-2.0

//! The kernel crate of Linux 7.2, with what the driver uses of that of Linux 7.3 added to it.
//!
//! On Linux 7.2 the driver is compiled with this crate under the name `kernel`, so none of its
//! sources differ. What is defined here has the names and the interface that it has in Linux 7.3,
//! as far as the driver uses them, and takes precedence over what Linux 7.2 has by the same name.
//!
//! Does not know the driver.

pub mod alloc;
mod declare;
pub mod miscdevice;
pub mod module_param;
pub mod sync;
pub mod time;

pub use kernel::*;

/// The crate as it is in Linux 7.2, for macros of this one.
#[doc(hidden)]
pub use kernel as linux_7_2;

/// Error codes.
pub mod error {
    pub use kernel::error::*;

    /// The codes themselves.
    pub mod code {
        use kernel::{
            bindings,
            error::Error,
            prelude::{const_assert, size_of},
        };

        pub use kernel::error::code::*;

        const fn code(number: u32) -> Error {
            const_assert!(size_of::<Error>() == size_of::<i32>());
            assert!(number > 0 && number <= bindings::MAX_ERRNO);
            // SAFETY: `Error` has no field but a `NonZeroI32`, which is all of it, as both have the
            // same size. The number is not zero.
            //
            // INVARIANT: It was just checked to be one of an error.
            unsafe { core::mem::transmute(-(number as i32)) }
        }

        /// Timer expired.
        pub const ETIME: Error = const { code(bindings::ETIME) };
        /// Protocol error.
        pub const EPROTO: Error = const { code(bindings::EPROTO) };
        /// Operation not supported on transport endpoint.
        pub const EOPNOTSUPP: Error = const { code(bindings::EOPNOTSUPP) };
        /// Memory page has hardware error.
        pub const EHWPOISON: Error = const { code(bindings::EHWPOISON) };
    }
}

/// What most modules import.
pub mod prelude {
    pub use crate::{
        alloc::Zeroed as _,
        error::code::{EHWPOISON, EOPNOTSUPP, EPROTO, ETIME},
        module,
        time::MillisCeil as _,
    };
    pub use kernel::prelude::*;
}

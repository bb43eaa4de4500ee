// SPDX-License-Identifier: GPL-2.0

//! Vectors of zeros, without a loop that writes them.

use kernel::prelude::*;

pub use kernel::alloc::*;

/// A function that [`Vec`] has in Linux 7.3.
pub trait Zeroed: Sized {
    /// `count` elements that are zero.
    ///
    /// # Errors
    ///
    /// If there is no memory.
    fn zeroed(count: usize, flags: Flags) -> Result<Self, AllocError>;
}

impl<T: Zeroable, A: Allocator> Zeroed for Vec<T, A> {
    fn zeroed(count: usize, flags: Flags) -> Result<Self, AllocError> {
        let mut elements = Self::with_capacity(count, flags | __GFP_ZERO)?;
        // SAFETY: There is room for as many elements, and all of it is zero, as the kernel was asked
        // for that. So is an element of a `Zeroable` type.
        unsafe { elements.inc_len(count) };
        Ok(elements)
    }
}

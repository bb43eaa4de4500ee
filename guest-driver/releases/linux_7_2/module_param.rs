// SPDX-License-Identifier: GPL-2.0

//! Parameters of modules, as far as the driver has some: `u32`, and `bool`, which Linux 7.2 does not
//! have yet and for which `u8` stands here.
//!
//! The macro that declares a module refers to these names. See also [`module!`](crate::module!).

use kernel::{
    bindings,
    error::from_result,
    prelude::*,
    str::{kstrtobool, parse_int::ParseInt, BStr},
    sync::SetOnce,
};

pub use kernel::module_param::KernelParam;

/// What a parameter is declared as.
pub trait Parameter: 'static {
    /// What its value is.
    type Value: Copy;

    /// The value that a text means.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it means none.
    fn parse(text: &CStr) -> Result<Self::Value>;
}

impl Parameter for u8 {
    type Value = bool;

    fn parse(text: &CStr) -> Result<bool> {
        kstrtobool(text)
    }
}

impl Parameter for u32 {
    type Value = u32;

    fn parse(text: &CStr) -> Result<u32> {
        u32::from_str(BStr::from_bytes(text.to_bytes()))
    }
}

/// A parameter.
pub struct ModuleParamAccess<T: Parameter> {
    value: SetOnce<T::Value>,
    default: T::Value,
}

// SAFETY: A shared reference gives access to nothing but shared references to values.
unsafe impl<T: Parameter> Sync for ModuleParamAccess<T> where T::Value: Sync {}

impl<T: Parameter> ModuleParamAccess<T> {
    /// A parameter that has not been set.
    pub const fn new(default: T::Value) -> Self {
        Self {
            value: SetOnce::new(),
            default,
        }
    }

    /// Its value.
    pub fn value_ref(&self) -> &T::Value {
        self.value.as_ref().unwrap_or(&self.default)
    }

    /// What the kernel is to know it by.
    pub const fn as_void_ptr(&self) -> *mut c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

/// How a parameter is set.
const fn operations<T: Parameter>() -> bindings::kernel_param_ops {
    bindings::kernel_param_ops {
        flags: 0,
        set: Some(set::<T>),
        get: None,
        free: None,
    }
}

/// Sets a parameter; a second time fails.
///
/// # Safety
///
/// `text` must be null or a string that ends with NUL. `param` must be valid, and its argument a
/// [`ModuleParamAccess<T>`] that stays.
unsafe extern "C" fn set<T: Parameter>(
    text: *const c_char,
    param: *const bindings::kernel_param,
) -> c_int {
    if text.is_null() {
        return EINVAL.to_errno();
    }
    // SAFETY: The caller promises that it is such a string, and it is not null.
    let text = unsafe { CStr::from_char_ptr(text) };
    // SAFETY: The caller promises that `param` is valid and what its argument is.
    let access = unsafe { &*(*param).__bindgen_anon_1.arg.cast::<ModuleParamAccess<T>>() };
    from_result(|| {
        let value = T::parse(text)?;
        access.value.populate(value).then_some(0).ok_or(EEXIST)
    })
}

/// How a parameter that is declared as `u8` is set.
pub static PARAM_OPS_U8: bindings::kernel_param_ops = operations::<u8>();

/// How a parameter that is declared as `u32` is set.
pub static PARAM_OPS_U32: bindings::kernel_param_ops = operations::<u32>();

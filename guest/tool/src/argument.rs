//! Arguments that are wrong for this device or this guest.

use std::fmt;

/// An argument that can only be judged by the device, and is wrong for this one. Nothing was done.
#[derive(Debug)]
pub struct WrongArgument(pub String);

impl fmt::Display for WrongArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongArgument {}

//! Arguments that are wrong for this device or this guest.

use std::fmt;

use anyhow::{ensure, Result};
use hmm::Info;
use hmm_cli::{figure, size};

/// An argument that can only be judged by the device, and is wrong for this one. Nothing was done.
#[derive(Debug)]
pub struct WrongArgument(pub String);

impl fmt::Display for WrongArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongArgument {}

/// Checks that a device has the memory for a size in bytes; `argument` is what the user wrote before
/// it.
///
/// # Errors
///
/// [`WrongArgument`] when it has not as much; another error when not as much is free now.
pub fn must_fit(argument: &str, bytes: usize, info: &Info) -> Result<()> {
    let bytes = bytes as u64;
    if bytes > info.device_memory {
        let text = format!(
            "{argument} {}: it is more than the device has, which is {}",
            size::write(bytes),
            size::write(info.device_memory)
        );
        return Err(WrongArgument(text).into());
    }
    ensure!(
        bytes <= info.free_memory,
        "{} do not fit: the device has {} free",
        figure::bytes(bytes),
        figure::bytes(info.free_memory)
    );
    Ok(())
}

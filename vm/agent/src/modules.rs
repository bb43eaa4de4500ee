//! Loads and unloads kernel modules.
//!
//! It resolves no dependencies: the caller names the modules in load order.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use hmm_agent::protocol::MODULE_LIST;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::system::{delete_module, finit_module};

/// `MODULE_INIT_COMPRESSED_FILE` of the kernel: it decompresses the file itself.
const COMPRESSED_FILE: i32 = 4;

/// Loads the modules that the initramfs lists for this machine.
///
/// # Errors
///
/// When one of them cannot be loaded.
pub(crate) fn load_listed() -> Result<()> {
    let list = fs::read_to_string(MODULE_LIST).with_context(|| format!("reading {MODULE_LIST}"))?;
    for path in list.lines() {
        match load(Path::new(path), "") {
            // One kernel may have built in what is a module of another.
            Err(error) if error.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => {}
            other => other.with_context(|| format!("loading {path}"))?,
        }
    }
    Ok(())
}

/// Loads one module.
///
/// # Errors
///
/// What the kernel says: `EEXIST` when it is loaded, `ENOEXEC` when it was built
/// for another kernel, `ENOENT` for a missing symbol or file.
pub(crate) fn load(path: &Path, parameters: &str) -> io::Result<()> {
    let file = File::open(path)?;
    let parameters = CString::new(parameters)?;
    let compressed = path
        .extension()
        .is_some_and(|end| end == "xz" || end == "gz" || end == "zst");
    let flags = if compressed { COMPRESSED_FILE } else { 0 };
    finit_module(&file, &parameters, flags)?;
    Ok(())
}

/// Unloads one module.
///
/// # Errors
///
/// What the kernel says: `ENOENT` when it is not loaded, `EWOULDBLOCK` when it is
/// in use.
pub(crate) fn unload(name: &str) -> io::Result<()> {
    let not_blocking = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    delete_module(&CString::new(name)?, not_blocking)?;
    Ok(())
}

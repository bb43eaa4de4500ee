//! Space on disk: how much the set-up takes, and whether there is as much.
//!
//! It knows the sizes of what is prepared, and not how.

use std::path::Path;

use anyhow::{ensure, Context, Result};
use rustix::fs::statvfs;

/// What the toolbox takes, in bytes, while it is made. A third of it is gone when it is complete.
pub(crate) const TOOLBOX: u64 = 3_000_000_000;

/// What a toolbox takes that is complete, with the stock kernel's tree.
pub(crate) const TOOLBOX_AND_STOCK: u64 = 4_900_000_000;

/// What the stock kernel's tree takes.
pub(crate) const STOCK_TREE: u64 = 2_300_000_000;

/// What an earlier stock kernel takes while it is unpacked, without its tree. A third of it is gone
/// when it is complete.
pub(crate) const EARLIER_RELEASE: u64 = 1_100_000_000;

/// What the debug kernel takes.
pub(crate) const DEBUG_KERNEL: u64 = 2_700_000_000;

/// What the guest's Debian programs take while they are made. A fifth of it is gone when they are complete.
pub(crate) const USERLAND: u64 = 950_000_000;

/// What the root with a browser takes.
pub(crate) const BROWSER: u64 = 1_200_000_000;

/// Checks that there is room for `bytes` more in a directory, which need not exist yet. `what` needs
/// it.
///
/// # Errors
///
/// When there is not; the text says how to make room.
pub(crate) fn require(directory: &Path, bytes: u64, what: &str) -> Result<()> {
    check(what, directory, bytes, available(directory)?)
}

fn check(what: &str, directory: &Path, needed: u64, available: u64) -> Result<()> {
    ensure!(
        available >= needed,
        "{what} needs {} in {}, where {} are free: free some, with `cargo xtask clean` for example, \
         or let VIRTIO_HMM_CACHE name a directory on another disk",
        gigabytes(needed),
        directory.display(),
        gigabytes(available)
    );
    Ok(())
}

/// The bytes that this user may still write below a directory, which need not exist yet.
fn available(directory: &Path) -> Result<u64> {
    let there = directory.ancestors().find(|ancestor| ancestor.exists());
    let there = there.context("a path begins at the root")?;
    let file_system =
        statvfs(there).with_context(|| format!("looking at the disk of {}", there.display()))?;
    Ok(file_system.f_bavail.saturating_mul(file_system.f_frsize))
}

/// A size in gigabytes, of 10^9 bytes as disks have them, rounded down.
pub(crate) fn gigabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000_000;
    format!("{}.{} GB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_space_is_an_error_that_says_how_much_and_where() {
        let place = Path::new("/cache");
        assert!(check("the toolbox", place, 5, 5).is_ok());
        let error = check("the toolbox", place, 4_900_000_000, 1_260_000_000).unwrap_err();
        let text = error.to_string();
        for part in [
            "the toolbox needs 4.9 GB in /cache",
            "1.2 GB are free",
            "VIRTIO_HMM_CACHE",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_directory_that_is_still_missing_has_the_space_of_its_disk() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("not/yet");
        assert!(available(&missing).unwrap() > 0);
        assert!(require(&missing, u64::MAX, "all").is_err());
        assert!(!missing.exists());
    }

    #[test]
    fn sizes_are_rounded_down() {
        assert_eq!(gigabytes(4_560_000_000), "4.5 GB");
    }
}

//! Machines that have booted, for others to go on from.
//!
//! Without KVM a boot takes longer than most tests. So the first machine of a kind is stopped when its
//! agent is about to greet, and its state is kept; it and all others of the kind, in this process, begin
//! there. The state is a file without a name, so that it goes with the process.
//!
//! It does not know what a machine is made of.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

/// The state of a machine.
#[derive(Debug)]
pub(super) struct Origin(File);

impl Origin {
    /// Where it can be written and read, as long as it exists.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

/// What there is of one kind of machine: nothing before the first, and a thread that makes it holds the
/// lock.
type Kind = Arc<Mutex<Option<Arc<Origin>>>>;

static KINDS: Mutex<BTreeMap<String, Kind>> = Mutex::new(BTreeMap::new());

/// The origin of machines of this kind. If there is none, `write` boots a machine and writes its state
/// to a file in `directory`.
///
/// # Errors
///
/// As `write`; then the next caller tries again.
pub(super) fn of(
    kind: String,
    directory: &Path,
    write: impl FnOnce(&Path) -> Result<()>,
) -> Result<Arc<Origin>> {
    let mut kinds = KINDS.lock().unwrap_or_else(PoisonError::into_inner);
    let kind = Arc::clone(kinds.entry(kind).or_default());
    drop(kinds);
    let mut kind = kind.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(origin) = &*kind {
        return Ok(Arc::clone(origin));
    }
    let file = tempfile::tempfile_in(directory).context("creating a file for a machine's state")?;
    let origin = Arc::new(Origin(file));
    write(&origin.path())?;
    *kind = Some(Arc::clone(&origin));
    Ok(origin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::thread;

    #[test]
    fn machines_of_a_kind_have_one_origin() {
        let directory = tempfile::tempdir().unwrap();
        let of = |kind: &str, text: &str| {
            let write = |path: &Path| Ok(fs::write(path, text)?);
            let origin = of(format!("one origin, {kind}"), directory.path(), write).unwrap();
            fs::read_to_string(origin.path()).unwrap()
        };
        thread::scope(|scope| {
            let first = scope.spawn(|| of("a", "first"));
            let second = scope.spawn(|| of("a", "second"));
            assert_eq!(first.join().unwrap(), second.join().unwrap());
        });
        assert_eq!(of("b", "third"), "third");
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn what_failed_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let kind = || "tried again".to_owned();
        of(kind(), directory.path(), |_| anyhow::bail!("no")).unwrap_err();
        of(kind(), directory.path(), |_| Ok(())).unwrap();
    }
}

//! Archives of prepared entries, for machines that begin without a cache.
//!
//! The files of an entry belong to several users, which exist for a normal user only in a namespace
//! of its own: no other program could read them all. It does not know what the entries are for.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::setup::{host, progress};

/// Writes the entry of that name in `directory` to an archive, which is compressed as its name says.
/// Files whose paths match `without` are left out.
pub(crate) fn pack(
    directory: &Path,
    name: &str,
    without: &str,
    archive: &Path,
    log: &Path,
) -> Result<()> {
    let archive = std::path::absolute(archive)?;
    let mut command = tar("--create", &archive);
    command
        .arg("--auto-compress")
        .arg(format!("--exclude={without}"))
        .arg("--directory")
        .arg(directory)
        .arg(name);
    progress::run("writing the archive", &mut command, log)?.check()
}

/// Fills the empty directory of an entry from an archive.
pub(crate) fn unpack(archive: &Path, entry: &Path, log: &Path) -> Result<()> {
    // Absent, it would be a puzzle in the log of tar.
    std::fs::metadata(archive).with_context(|| format!("reading {}", archive.display()))?;
    let archive = std::path::absolute(archive)?;
    let mut command = tar("--extract", &archive);
    command
        .args(["--strip-components=1", "--directory"])
        .arg(entry);
    progress::run("reading the archive", &mut command, log)?.check()
}

fn tar(mode: &str, archive: &Path) -> Command {
    let mut command = host::as_root_of_own_namespace();
    command
        .args([
            "tar",
            mode,
            "--numeric-owner",
            "--same-permissions",
            "--file",
        ])
        .arg(archive);
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn an_entry_comes_back_without_what_was_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir_all(path("from/entry/root/build/driver-1")).unwrap();
        fs::write(path("from/entry/root/file"), "content").unwrap();
        fs::write(path("from/entry/root/build/driver-1/module"), "large").unwrap();
        let (archive, log) = (path("entry.tar.gz"), path("log"));
        pack(
            &path("from"),
            "entry",
            "entry/root/build/driver-*",
            &archive,
            &log,
        )
        .unwrap();
        // The first two bytes of all that gzip writes.
        assert_eq!(fs::read(&archive).unwrap()[..2], [0x1f, 0x8b]);

        fs::create_dir(path("to")).unwrap();
        unpack(&archive, &path("to"), &log).unwrap();
        let content = fs::read_to_string(path("to/root/file")).unwrap();
        assert_eq!(content, "content");
        assert!(path("to/root/build").exists());
        assert!(!path("to/root/build/driver-1").exists());
    }

    #[test]
    fn an_archive_that_is_not_there_or_broken_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let (archive, log) = (
            directory.path().join("a.tar.gz"),
            directory.path().join("log"),
        );
        let error = unpack(&archive, directory.path(), &log).unwrap_err();
        assert!(format!("{error:#}").contains("a.tar.gz"), "{error:#}");
        fs::write(&archive, "nothing of the kind").unwrap();
        assert!(unpack(&archive, directory.path(), &log).is_err());
    }
}

//! A file with enough bytes for a workload that reads one.

use std::path::{Path, PathBuf};

/// The file that a workload reads: the named one, or the kernel's image, or this program.
pub(super) fn readable_file(named: Option<&Path>) -> PathBuf {
    if let Some(path) = named {
        return path.to_owned();
    }
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let candidates = [
        PathBuf::from("/root/vmlinuz"),
        PathBuf::from(format!("/boot/vmlinuz-{release}")),
        PathBuf::from("/vmlinuz"),
    ];
    let readable = |path: &PathBuf| std::fs::File::open(path).is_ok();
    candidates
        .into_iter()
        .find(readable)
        .unwrap_or_else(|| "/proc/self/exe".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_a_file_to_read() {
        assert!(std::fs::File::open(readable_file(None)).is_ok());
        assert_eq!(readable_file(Some(Path::new("/x"))), Path::new("/x"));
    }
}

//! Where something is built for a kernel: in the toolbox, or on the host.
//!
//! It does not know what is built.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::setup::host;
use crate::setup::root::Mount;
use crate::setup::toolbox::Toolbox;

/// A place with compilers, and what it sees of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// The toolbox, in which these directories of the host are mounted where the host has them.
    Toolbox(Vec<Mount>),
    /// The host itself.
    Host,
}

impl Site {
    /// The toolbox, which sees `directories`, and does not change them. Those that are in it anyway
    /// need no mount.
    pub(crate) fn toolbox(toolbox: &Toolbox, directories: &[&Path]) -> Self {
        let mut mounts: Vec<Mount> = Vec::new();
        for directory in directories {
            let is_seen = toolbox.inside(directory).is_ok()
                || mounts
                    .iter()
                    .any(|mount| directory.starts_with(&mount.directory));
            if !is_seen {
                mounts.push(Mount::read_only(directory));
            }
        }
        Self::Toolbox(mounts)
    }

    /// The same, where a directory of the host can also be written.
    pub(crate) fn with(&self, toolbox: &Toolbox, directory: &Path) -> Self {
        match self {
            Self::Toolbox(mounts) if toolbox.inside(directory).is_err() => {
                let more = [Mount::writable(directory)];
                Self::Toolbox([mounts.as_slice(), &more].concat())
            }
            other => other.clone(),
        }
    }

    /// A path of the host, as it is called there.
    ///
    /// # Errors
    ///
    /// When it cannot be seen from there.
    pub(crate) fn path(&self, toolbox: &Toolbox, outside: &Path) -> Result<PathBuf> {
        match self {
            Self::Host => Ok(outside.to_owned()),
            Self::Toolbox(mounts) => {
                let is_mounted = |mount: &Mount| outside.starts_with(&mount.directory);
                if mounts.iter().any(is_mounted) {
                    return Ok(outside.to_owned());
                }
                toolbox.inside(outside)
            }
        }
    }

    /// A shell script that runs there, with positional arguments.
    pub(crate) fn script<I>(&self, toolbox: &Toolbox, script: &str, arguments: I) -> Command
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        match self {
            Self::Toolbox(mounts) => toolbox.script_with(mounts, script, arguments),
            Self::Host => {
                let mut command = host::without_rustup_choice("sh");
                command.args(["-eu", "-c", script, "sh"]).args(arguments);
                command
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_the_toolbox_and_those_below_another_need_no_mount() {
        let toolbox = Toolbox::at("/cache/toolbox/root".into());
        let inside = Path::new("/cache/toolbox/root/build/tree");
        let site = Site::toolbox(&toolbox, &[inside]);
        assert_eq!(site, Site::Toolbox(Vec::new()));
        assert_eq!(
            site.path(&toolbox, inside).unwrap(),
            Path::new("/build/tree")
        );

        let (source, build) = (Path::new("/home/a/linux"), Path::new("/home/a/linux/out"));
        let site = Site::toolbox(&toolbox, &[source, build]);
        assert_eq!(site, Site::Toolbox(vec![Mount::read_only(source)]));
        assert_eq!(site.path(&toolbox, build).unwrap(), build);
        assert_eq!(
            site.path(&toolbox, inside).unwrap(),
            Path::new("/build/tree")
        );
    }

    #[test]
    fn what_is_neither_in_the_toolbox_nor_mounted_has_no_path_there() {
        let toolbox = Toolbox::at("/cache/toolbox/root".into());
        let site = Site::toolbox(&toolbox, &[Path::new("/home/a/linux")]);
        assert!(site.path(&toolbox, Path::new("/home/b/linux")).is_err());
        let more = site.with(&toolbox, Path::new("/home/b"));
        let seen = more.path(&toolbox, Path::new("/home/b/linux"));
        assert_eq!(seen.unwrap(), Path::new("/home/b/linux"));
        assert_eq!(
            more.with(&toolbox, Path::new("/cache/toolbox/root/x")),
            more
        );
        let host = Site::Host.path(&toolbox, Path::new("/home/b/linux"));
        assert_eq!(host.unwrap(), Path::new("/home/b/linux"));
    }
}

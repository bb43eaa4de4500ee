//! Debian roots: directories with the packages of a release and what these need.
//!
//! It does not know what they are for.

use std::path::Path;

use anyhow::Result;

use crate::setup::{host, progress};

/// The Debian release of the toolbox, of the guest's kernel and of the guest's programs.
pub(crate) const SUITE: &str = "trixie";

/// What a root consists of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contents<'a> {
    /// What it has in any case, as mmdebstrap calls it.
    pub(crate) variant: &'a str,
    /// The packages.
    pub(crate) packages: &'a [&'a str],
    /// Files that are left out, as patterns of dpkg.
    pub(crate) without: &'a [&'a str],
    /// A shell script that completes the root, on the host, with the root as its first argument.
    pub(crate) script: Option<&'a str>,
}

/// Makes the directory `root`, which is missing. The words say what is done, for people.
pub(crate) fn make(root: &Path, contents: Contents<'_>, words: &str, log: &Path) -> Result<()> {
    let mut command = host::as_installer("mmdebstrap");
    command
        .args(["--mode=root", "--format=directory", "--architectures=amd64"])
        .arg(format!("--variant={}", contents.variant))
        .arg(format!("--include={}", contents.packages.join(",")));
    for pattern in contents.without {
        command.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    if let Some(script) = contents.script {
        command.arg(format!("--customize-hook={script}"));
    }
    for proxy in host::apt_proxies() {
        command.arg(format!("--aptopt={proxy}"));
    }
    command.arg(SUITE).arg(root).args(host::debian_mirror());
    progress::run(words, &mut command, log)?.check()
}

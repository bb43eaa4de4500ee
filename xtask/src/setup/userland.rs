//! The userland: a Debian root with programs for guests, which mount it.
//!
//! It is beside the kernels among the builds of a toolbox, and is exported and removed with it. It does
//! not know how a guest mounts it.

use std::path::PathBuf;

use anyhow::Result;

use crate::setup::cache::Recipe;
use crate::setup::debian::{self, Contents, SUITE};
use crate::setup::toolbox::Toolbox;
use crate::setup::{progress, space};

/// What tests run: interpreters, databases and others with checks of their own. What a person looks
/// into a guest with.
const PACKAGES: &[&str] = &[
    "bpftool",
    "bpftrace",
    "gdb",
    "libpython3.13-testsuite",
    "linux-perf",
    "python3",
    "python3-numpy",
    "redis-server",
    "sqlite3",
    "strace",
    "stress-ng",
    "trace-cmd",
    "zstd",
];

/// Documentation and translations, which programs do without.
const WITHOUT: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];

/// What a root has in any case: a shell and the tools that packages expect, but no package manager.
const VARIANT: &str = "essential";

/// What decides its contents.
pub(crate) fn recipe() -> Recipe {
    Recipe::new("userland")
        .with(SUITE)
        .with(VARIANT)
        .with(PACKAGES.join(","))
        .with(WITHOUT.join(","))
}

/// Its root directory, made if it is missing.
pub(crate) fn prepare(toolbox: &Toolbox) -> Result<PathBuf> {
    const WORDS: &str = "installing Debian programs for guests";
    let entry = toolbox.builds().entry(&recipe(), |partial| {
        space::require(partial, space::USERLAND, "the guest's programs")?;
        progress::announce(
            WORDS,
            &format!(
                "{} (1 to 2 minutes, and {})",
                PACKAGES.join(", "),
                space::gigabytes(space::USERLAND)
            ),
        );
        let contents = Contents {
            variant: VARIANT,
            packages: PACKAGES,
            without: WITHOUT,
            script: None,
        };
        let log = toolbox.log("userland");
        debian::make(&partial.join("root"), contents, WORDS, &log)?;
        let files = ["var/lib/dpkg/status", "usr/bin/python3"];
        Ok(files.map(|file| PathBuf::from("root").join(file)).to_vec())
    })?;
    Ok(entry.join("root"))
}

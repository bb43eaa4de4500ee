//! Userlands: Debian roots with programs for guests, which mount them.
//!
//! They are beside the kernels among the builds of a toolbox, and are exported and removed with it. It
//! does not know how a guest mounts them.

use std::path::PathBuf;

use anyhow::Result;

use crate::setup::cache::Recipe;
use crate::setup::debian::{self, Contents, SUITE};
use crate::setup::toolbox::Toolbox;
use crate::setup::{progress, space};

/// Documentation and translations, which programs do without.
const WITHOUT: [&str; 5] = [
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];

/// What a root has in any case: a shell and the tools that packages expect, but no package manager.
const VARIANT: &str = "essential";

/// The programs of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Userland {
    /// Those that tests run: interpreters, databases and others with checks of their own.
    Programs,
    /// Those by which a person looks into the guest.
    Tools,
}

impl Userland {
    const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Programs => &[
                "libpython3.13-testsuite",
                "python3",
                "python3-numpy",
                "redis-server",
                "sqlite3",
                "stress-ng",
                "zstd",
            ],
            Self::Tools => &[
                "bpftool",
                "bpftrace",
                "gdb",
                "linux-perf",
                "python3",
                "python3-numpy",
                "strace",
                "trace-cmd",
            ],
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Programs => "userland",
            Self::Tools => "userland-tools",
        }
    }

    const fn size(self) -> u64 {
        match self {
            Self::Programs => space::PROGRAMS,
            Self::Tools => space::TOOLS,
        }
    }

    /// What decides its contents.
    pub(crate) fn recipe(self) -> Recipe {
        Recipe::new(self.name())
            .with(SUITE)
            .with(VARIANT)
            .with(self.packages().join(","))
            .with(WITHOUT.join(","))
    }

    /// Its root directory, made if it is missing.
    pub(crate) fn prepare(self, toolbox: &Toolbox) -> Result<PathBuf> {
        let packages = self.packages();
        let entry = toolbox.builds().entry(&self.recipe(), |partial| {
            space::require(partial, self.size(), "the guest's programs")?;
            progress::announce(
                "installing Debian programs for guests",
                &format!(
                    "{} (1 to 2 minutes, and {})",
                    packages.join(", "),
                    space::gigabytes(self.size())
                ),
            );
            let contents = Contents {
                variant: VARIANT,
                packages,
                without: &WITHOUT,
                script: None,
            };
            debian::make(
                &partial.join("root"),
                contents,
                "installing Debian programs for guests",
                &toolbox.log(self.name()),
            )?;
            let files = ["var/lib/dpkg/status", "usr/bin/python3"];
            Ok(files.map(|file| PathBuf::from("root").join(file)).to_vec())
        })?;
        Ok(entry.join("root"))
    }
}

//! Debian's own kernels: where a release's image, modules, headers and sources are in the toolbox.
//!
//! It knows how Debian packs a kernel. It does not know how one is started, nor what is built for it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::setup::cache::Recipe;
use crate::setup::toolbox::{Toolbox, KERNEL_SERIES};
use crate::setup::{progress, space};

const UNPACK: &str = include_str!("scripts/release.sh");

/// The series before that of the toolbox, for which the driver is built, too.
pub(crate) const EARLIER_SERIES: &str = "7.2";

/// A release. All paths are seen from inside the toolbox.
#[derive(Clone, Debug)]
pub(crate) struct Release {
    /// As Debian names its source package.
    pub(crate) series: &'static str,
    /// As `uname -r` prints it.
    pub(crate) name: String,
    /// The root of the packages that only a machine needs: image and modules.
    machine: PathBuf,
    /// The root of the packages that builds need: configuration, symbols and sources.
    builds: PathBuf,
}

impl Release {
    /// That of the stock kernel, which the toolbox has.
    pub(crate) fn of_stock(toolbox: &Toolbox) -> Self {
        Self {
            series: KERNEL_SERIES,
            name: toolbox.release().to_owned(),
            machine: PathBuf::from("/image"),
            builds: PathBuf::from("/"),
        }
    }

    /// The newest of the earlier series, unpacked if it is not there yet.
    pub(crate) fn earlier(toolbox: &Toolbox) -> Result<Self> {
        let words = format!("taking Debian's Linux {EARLIER_SERIES}");
        let entry = toolbox.builds().entry(&earlier_recipe(), |partial| {
            space::require(partial, space::EARLIER_RELEASE, "an earlier kernel")?;
            progress::announce(
                &words,
                &format!(
                    "the driver must fit it, too (half a minute, {} and its tree)",
                    space::gigabytes(space::EARLIER_RELEASE)
                ),
            );
            let directory = toolbox.inside(partial)?;
            let arguments = [directory.as_os_str(), EARLIER_SERIES.as_ref()];
            let mut command = toolbox.script(UNPACK, arguments);
            progress::run(&words, &mut command, &toolbox.log("earlier-release"))?.check()?;
            let release = Self::in_entry(partial, &directory)?;
            [release.image(), release.config(), release.sources()]
                .iter()
                .map(|path| Ok(path.strip_prefix(&directory)?.to_owned()))
                .collect()
        })?;
        Self::in_entry(&entry, &toolbox.inside(&entry)?)
    }

    /// The release that was unpacked into an entry, seen from outside and from inside.
    fn in_entry(entry: &Path, inside: &Path) -> Result<Self> {
        let name = fs::read_to_string(entry.join("kernel-release"))
            .context("reading the release that was unpacked")?;
        let root = inside.join("root");
        Ok(Self {
            series: EARLIER_SERIES,
            name: name.trim().to_owned(),
            machine: root.clone(),
            builds: root,
        })
    }

    /// The directory of its modules.
    pub(crate) fn modules(&self) -> PathBuf {
        self.machine.join("usr/lib/modules").join(&self.name)
    }

    /// Its image, compressed.
    pub(crate) fn image(&self) -> PathBuf {
        self.modules().join("vmlinuz")
    }

    /// The directory of its headers.
    pub(crate) fn headers(&self) -> PathBuf {
        let name = format!("linux-headers-{}", self.name);
        self.builds.join("usr/src").join(name)
    }

    /// Its configuration.
    fn config(&self) -> PathBuf {
        self.headers().join(".config")
    }

    /// The archive of its sources.
    pub(crate) fn sources(&self) -> PathBuf {
        let name = format!("linux-source-{}.tar.xz", self.series);
        self.builds.join("usr/src").join(name)
    }
}

/// What decides the contents of the earlier release.
pub(crate) fn earlier_recipe() -> Recipe {
    Recipe::new("earlier-release")
        .with(EARLIER_SERIES)
        .with(UNPACK)
}

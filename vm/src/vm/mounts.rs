//! Directories of the host that a guest mounts: one of the user's, and a userland.
//!
//! It knows the guest's paths, and how a guest's shell mounts them; not what is in them.

use std::path::Path;

use anyhow::{ensure, Context, Result};

use super::Vm;
use crate::guest::Command;
use crate::kconfig::Options;
use crate::qemu::Share;

/// Where the guest has the user's directory.
pub const SHARED: &str = "/share";

/// Where the guest has the root of a userland, whose `/usr` it also has as its own.
pub const USERLAND: &str = "/userland";

/// The options of a kernel that can mount a directory of the host.
const NEEDS: [&str; 2] = ["NET_9P_VIRTIO", "9P_FS"];

/// Mounts what QEMU calls `$1` at `$2`, with the options `$3` besides.
const MOUNT: &str = r#"mkdir -p "$2" &&
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=262144,$3" "$1" "$2""#;

/// Gives the guest the programs of the userland `$1`, with their libraries and settings. What the
/// guest has itself comes first.
const TAKE_OVER: &str = r#"set -e
    take() { test -e "$2" || test ! -e "$1" || ln -s "$1" "$2"; }
    mkdir -p /usr
    mount -o bind "$1/usr" /usr
    take /usr/lib64 /lib64
    take /usr/bin/bash /bin/bash
    for each in "$1"/etc/*; do take "$each" "/etc/${each##*/}"; done"#;

/// What a machine mounts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mounts<'a> {
    /// A directory of the user's.
    pub(super) share: Option<&'a Path>,
    /// The root of a Debian system.
    pub(super) userland: Option<&'a Path>,
}

impl<'a> Mounts<'a> {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.share.is_none() && self.userland.is_none()
    }

    /// Checks that a kernel can mount them.
    ///
    /// # Errors
    ///
    /// When it cannot; the text has the options that it lacks.
    pub(super) fn check(&self, options: &Options) -> Result<()> {
        let lacks: Vec<_> = NEEDS.iter().filter(|one| !options.has(one)).collect();
        ensure!(
            self.is_empty() || lacks.is_empty(),
            "a directory of the host needs options that this kernel lacks: {}",
            lacks
                .iter()
                .map(|one| format!("CONFIG_{one}=y"))
                .collect::<Vec<_>>()
                .join(" ")
        );
        Ok(())
    }

    /// What QEMU must offer.
    pub(super) fn shares(&self) -> Vec<Share<'a>> {
        let share = self.share.map(|directory| Share {
            name: name(SHARED),
            directory,
            is_writable: true,
        });
        let userland = self.userland.map(|directory| Share {
            name: name(USERLAND),
            directory,
            is_writable: false,
        });
        share.into_iter().chain(userland).collect()
    }

    /// Mounts them in the guest.
    pub(super) fn mount(&self, vm: &Vm) -> Result<()> {
        let shell = |script: &str, arguments: &[&str]| -> Result<()> {
            let command = Command::new("sh").arguments(["-c", script, "sh"]);
            vm.run(command.arguments(arguments.iter().copied()))?
                .succeeded()?;
            Ok(())
        };
        if self.share.is_some() {
            shell(MOUNT, &[name(SHARED), SHARED, "rw"])
                .context("mounting the directory of the host")?;
        }
        if self.userland.is_some() {
            // Nothing changes there while the guest runs, so that its kernel may keep all it knows.
            shell(MOUNT, &[name(USERLAND), USERLAND, "ro,cache=loose"])
                .and_then(|()| shell(TAKE_OVER, &[USERLAND]))
                .context("mounting the userland")?;
        }
        Ok(())
    }
}

/// What QEMU and the guest call the directory that is mounted there.
fn name(place: &str) -> &str {
    place.trim_start_matches('/')
}

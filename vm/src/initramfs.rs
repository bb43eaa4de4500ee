//! The guest's files: one archive that the kernel unpacks at boot.
//!
//! It knows the paths in the guest and not how the guest is run.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure, Context, Result};
use cpio::newc::{trailer, Builder, ModeFileType};
use hmm_agent::protocol::MODULE_LIST;

use crate::strip::strip;

/// Where the guest finds our driver.
pub const DRIVER: &str = "/lib/modules/virtio_hmm.ko";

/// The guest's directory for the caller's files, where programs also start.
pub const HOME: &str = "/root";

const DIRECTORIES: [&str; 10] = [
    "/bin",
    "/dev",
    "/etc",
    "/lib",
    "/lib/modules",
    "/proc",
    "/root",
    "/sys",
    "/tmp",
    "/var",
];

/// QEMU puts the archive at the end of a microvm's memory, starting at a page boundary. Unless this
/// leaves the last page free, the archive overwrites the machine's ACPI tables, which are there
/// already.
const PAGE: u64 = 4096;

/// What goes into the archive.
#[derive(Clone, Debug)]
pub struct Contents<'a> {
    /// The first process.
    pub agent: &'a Path,
    /// The static busybox.
    pub busybox: &'a Path,
    /// The `hmm` command, if there is one.
    pub hmm: Option<&'a Path>,
    /// Modules that the agent loads at boot, in this order.
    pub modules: &'a [PathBuf],
    /// Our driver, which is not loaded at boot.
    pub driver: Option<&'a Path>,
    /// Files for [`HOME`].
    pub files: &'a [PathBuf],
}

impl Contents<'_> {
    /// Writes the archive.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, is no regular file or has the name of another file, or when the
    /// archive cannot be written.
    pub fn write(&self, archive: &Path) -> Result<()> {
        let out =
            File::create(archive).with_context(|| format!("creating {}", archive.display()))?;
        let mut archive = Archive(BufWriter::new(out));
        for directory in DIRECTORIES {
            archive.directory(directory)?;
        }
        archive.program("/init", self.agent)?;
        self.commands(&mut archive)?;
        self.modules(&mut archive)?;
        self.files(&mut archive)?;
        archive.bytes("/etc/passwd", b"root::0:0:root:/root:/bin/sh\n", 0o644)?;
        archive.bytes("/etc/group", b"root:x:0:\n", 0o644)?;
        archive.finish()
    }

    fn commands(&self, archive: &mut Archive) -> Result<()> {
        archive.file("/bin/busybox", self.busybox)?;
        for applet in applets(self.busybox)? {
            archive.link(&format!("/bin/{applet}"), "busybox")?;
        }
        if let Some(hmm) = self.hmm {
            archive.program("/bin/hmm", hmm)?;
        }
        Ok(())
    }

    fn modules(&self, archive: &mut Archive) -> Result<()> {
        let mut list = String::new();
        for module in self.modules {
            let path = format!("/lib/modules/{}", name_of(module)?);
            archive.file(&path, module)?;
            list.push_str(&path);
            list.push('\n');
        }
        archive.bytes(MODULE_LIST, list.as_bytes(), 0o644)?;
        if let Some(driver) = self.driver {
            archive.file(DRIVER, driver)?;
        }
        Ok(())
    }

    /// Whether a file is a program that was built together with the agent.
    fn is_ours(&self, file: &Path) -> bool {
        let is_program = fs::metadata(file)
            .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0);
        is_program && file.parent() == self.agent.parent()
    }

    fn files(&self, archive: &mut Archive) -> Result<()> {
        let mut names: Vec<&str> = Vec::new();
        for file in self.files {
            let name = name_of(file)?;
            ensure!(!names.contains(&name), "two files are called {name}");
            names.push(name);
            let path = format!("{HOME}/{name}");
            if self.is_ours(file) {
                archive.program(&path, file)?;
            } else {
                archive.file(&path, file)?;
            }
        }
        Ok(())
    }
}

fn name_of(path: &Path) -> Result<&str> {
    path.file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("{} has no name that can be used", path.display()))
}

/// The commands that this busybox provides.
fn applets(busybox: &Path) -> Result<Vec<String>> {
    let output = Command::new(busybox)
        .arg("--list")
        .output()
        .with_context(|| format!("running {}", busybox.display()))?;
    if !output.status.success() {
        bail!("{} --list failed: {}", busybox.display(), output.status);
    }
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .filter(|applet| *applet != "busybox")
        .map(str::to_owned)
        .collect())
}

struct Archive(BufWriter<File>);

impl Archive {
    fn directory(&mut self, path: &str) -> Result<()> {
        self.entry(path, ModeFileType::Directory, 0o755, &mut io::empty(), 0)
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let mut target = target.as_bytes();
        let length = target.len();
        self.entry(path, ModeFileType::Symlink, 0o777, &mut target, length)
    }

    fn bytes(&mut self, path: &str, mut contents: &[u8], mode: u32) -> Result<()> {
        let length = contents.len();
        self.entry(path, ModeFileType::Regular, mode, &mut contents, length)
    }

    /// A program of ours, without its debug information: the guest has to unpack all of it.
    fn program(&mut self, path: &str, host: &Path) -> Result<()> {
        let program = fs::read(host).with_context(|| format!("reading {}", host.display()))?;
        let stripped = strip(&program).with_context(|| format!("stripping {}", host.display()))?;
        self.bytes(path, &stripped, 0o755)
    }

    fn file(&mut self, path: &str, host: &Path) -> Result<()> {
        let add = || -> Result<()> {
            let metadata = fs::metadata(host)?;
            ensure!(metadata.is_file(), "it is not a regular file");
            let mode = metadata.permissions().mode() & 0o777;
            let length = usize::try_from(metadata.len())?;
            let mut contents = File::open(host)?;
            self.entry(path, ModeFileType::Regular, mode, &mut contents, length)
        };
        let mut add = add;
        add().with_context(|| format!("putting {} into the guest", host.display()))
    }

    fn entry(
        &mut self,
        path: &str,
        kind: ModeFileType,
        mode: u32,
        contents: &mut impl io::Read,
        length: usize,
    ) -> Result<()> {
        let length = u32::try_from(length).context("the archive holds files below 4 GiB")?;
        let mut entry = Builder::new(path.trim_start_matches('/'))
            .mode(mode)
            .set_mode_file_type(kind)
            .write(&mut self.0, length);
        let copied = io::copy(contents, &mut entry)?;
        ensure!(
            copied == u64::from(length),
            "the file changed while it was read"
        );
        entry.finish()?;
        Ok(())
    }

    /// Ends the archive and pads it to a multiple of [`PAGE`].
    fn finish(mut self) -> Result<()> {
        trailer(&mut self.0)?;
        let length = self.0.stream_position()?;
        let padding = length.next_multiple_of(PAGE) - length;
        io::copy(&mut io::repeat(0).take(padding), &mut self.0)?;
        self.0.flush()?;
        Ok(())
    }
}

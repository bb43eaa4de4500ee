//! libhmm as the builds of other programs want it: a directory like `/usr/local`, with the library,
//! its headers, `hmm.pc` and the package for Python.
//!
//! It knows where files go, and not what uses them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::setup::cargo::{Checkout, Library};

/// The directory of the headers, from the root of a tree.
pub(crate) const HEADERS: &str = "include/hmm";

/// The directory of the libraries.
pub(crate) const LIBRARIES: &str = "lib";

/// The directory for Python's search path.
pub(crate) const PYTHON: &str = "lib/hmm/python";

/// The headers in the checkout.
const SOURCES: [&str; 2] = ["include/uapi/virtio_hmm.h", "guest/c/include/hmm.h"];

/// The package in the checkout.
const PACKAGE: &str = "guest/python/hmm";

const PKG_CONFIG: &str = include_str!("../../../guest/c/hmm.pc.in");

/// A directory with all of it.
#[derive(Debug)]
pub(crate) struct Tree {
    root: PathBuf,
    checkout: PathBuf,
    library: Library,
}

impl Tree {
    /// Builds the library, and makes the directory among Cargo's output.
    pub(crate) fn make(checkout: &Checkout) -> Result<Self> {
        let tree = Self {
            root: Self::place(checkout),
            checkout: checkout.root.clone(),
            library: checkout.build_library()?,
        };
        if tree.root.exists() {
            fs::remove_dir_all(&tree.root)
                .with_context(|| format!("removing {}", tree.root.display()))?;
        }
        tree.write(&tree.root)
            .with_context(|| format!("making {}", tree.root.display()))?;
        Ok(tree)
    }

    /// Where the directory among Cargo's output is.
    pub(crate) fn place(checkout: &Checkout) -> PathBuf {
        checkout.output.join("libhmm")
    }

    /// The directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Puts the same into another directory, beside what is there. Returns its path.
    pub(crate) fn copy_to(&self, out: &Path) -> Result<PathBuf> {
        fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
        let out = fs::canonicalize(out).with_context(|| format!("finding {}", out.display()))?;
        self.write(&out)
            .with_context(|| format!("writing to {}", out.display()))?;
        Ok(out)
    }

    fn write(&self, root: &Path) -> Result<()> {
        let headers = directory(root, HEADERS)?;
        for source in SOURCES {
            copy(&self.checkout.join(source), &headers)?;
        }
        let libraries = directory(root, LIBRARIES)?;
        copy(&self.library.fixed, &libraries)?;
        let version = &self.library.version;
        let major = version.split('.').next().unwrap_or(version);
        let full = format!("libhmm.so.{version}");
        fs::copy(&self.library.shared, libraries.join(&full))?;
        for name in [&*format!("libhmm.so.{major}"), "libhmm.so"] {
            let link = libraries.join(name);
            if fs::symlink_metadata(&link).is_ok() {
                fs::remove_file(&link)?;
            }
            symlink(&full, &link)?;
        }
        let text = PKG_CONFIG
            .replace("@prefix@", &root.display().to_string())
            .replace("@version@", version);
        fs::write(directory(&libraries, "pkgconfig")?.join("hmm.pc"), text)?;

        let package = directory(root, PYTHON)?.join("hmm");
        fs::create_dir_all(&package)?;
        for entry in fs::read_dir(self.checkout.join(PACKAGE))? {
            let file = entry?.path();
            if file.is_file() {
                copy(&file, &package)?;
            }
        }
        Ok(())
    }
}

fn directory(root: &Path, name: &str) -> Result<PathBuf> {
    let path = root.join(name);
    fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    Ok(path)
}

fn copy(file: &Path, directory: &Path) -> Result<()> {
    let name = file.file_name().context("a file has a name")?;
    fs::copy(file, directory.join(name)).with_context(|| format!("copying {}", file.display()))?;
    Ok(())
}

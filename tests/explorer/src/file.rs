//! The explorer's files: JSON with a version, which is looked at before anything else, because
//! another version may have other fields.
//!
//! Does not know what the files hold.

use std::fs;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What every version has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Reads a file of this version. `kind` is what it should be, for the error.
///
/// # Errors
///
/// When it cannot be read, has another version, or is nothing of that kind.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, version: u32, kind: &str) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let stranger = || format!("{} is no {kind}", path.display());
    let Versioned { version: found } = serde_json::from_str(&text).with_context(stranger)?;
    ensure!(
        found == version,
        "{} has version {found}, not {version}",
        path.display()
    );
    serde_json::from_str(&text).with_context(stranger)
}

/// Writes a file.
///
/// # Errors
///
/// When it cannot be written.
pub(crate) fn write<T: Serialize>(path: &Path, contents: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(contents)?;
    fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
}

//! Perfetto's own definitions of its files, as its package for Python ships them: a reader of
//! timelines that knows nothing of ours.
//!
//! It does not know what is read.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::setup::cache::{Cache, Recipe};
use crate::setup::{host, progress};

/// The package and its version.
const PACKAGE: &str = "perfetto==0.59.1";

/// A file of it.
const DEFINITIONS: &str = "perfetto/protos/perfetto/trace/perfetto_trace_pb2.py";

/// The host's Python.
const PYTHON: &str = "python3";

/// Where Python finds the package, which is fetched if it is missing.
pub(crate) fn prepare(cache: &Cache) -> Result<PathBuf> {
    let recipe = Recipe::new("perfetto").with(PACKAGE);
    cache.entry(&recipe, |partial| {
        let logs = cache.logs();
        if !has_pip() {
            let reason = "to fetch Perfetto's definitions, by which a test reads timelines";
            host::install(&["python3-pip"], reason, &logs.join("host-packages.log"))?;
        }
        progress::announce(
            &format!("fetching {PACKAGE}"),
            "its definitions, by which a test reads timelines (some seconds)",
        );
        fetch(partial, &logs.join("perfetto.log"))?;
        Ok(vec![DEFINITIONS.into()])
    })
}

fn has_pip() -> bool {
    let version = Command::new(PYTHON)
        .args(["-m", "pip", "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    version.is_ok_and(|status| status.success())
}

fn fetch(directory: &Path, log: &Path) -> Result<()> {
    let mut pip = Command::new(PYTHON);
    pip.args(["-m", "pip", "install", "--no-input", "--target"])
        .arg(directory)
        .arg(PACKAGE);
    progress::run("fetching Perfetto's definitions", &mut pip, log)?.check()
}

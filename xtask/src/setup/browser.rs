//! A browser without a screen, for tests of pages: Debian's Chromium in a root of its own, and its
//! WebDriver.
//!
//! It is no part of the toolbox, because only one test needs it, and it is large. It does not know
//! what is looked at.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{bail, Context, Result};

use crate::setup::cache::{Cache, Recipe};
use crate::setup::debian::{self, Contents, SUITE};
use crate::setup::root::{Mount, Root};
use crate::setup::{host, progress, space};

const PACKAGES: &[&str] = &["chromium", "chromium-driver", "fonts-dejavu-core"];

/// What no browser reads.
const WITHOUT: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
];

/// A place for the pages, and the name by which the driver reaches its browsers.
const SCRIPT: &str = "mkdir \"$1/pages\"; echo '127.0.0.1 localhost' >\"$1/etc/hosts\"";

/// Where the pages are, seen from inside.
pub(crate) const PAGES: &str = "/pages";

/// A root with the browser.
#[derive(Debug)]
pub(crate) struct Browser {
    root: Root,
}

/// A WebDriver that runs. It ends with this value, and its browsers with it.
#[derive(Debug)]
pub(crate) struct Driver {
    process: Child,
    /// The address of its service.
    pub(crate) address: String,
    /// It may go on to write.
    output: BufReader<ChildStdout>,
}

impl Browser {
    /// The one of this cache, made if it is missing.
    pub(crate) fn prepare(cache: &Cache) -> Result<Self> {
        let logs = cache.logs();
        let recipe = Recipe::new("browser")
            .with(SUITE)
            .with(PACKAGES.join(","))
            .with(WITHOUT.join(","))
            .with(SCRIPT);
        let entry = cache.entry(&recipe, |partial| {
            host::install_missing_packages(&logs.join("host-packages.log"))?;
            host::check_namespaces()?;
            space::require(cache.directory(), space::BROWSER, "the browser")?;
            progress::announce(
                "making a root with a browser",
                &format!(
                    "Debian's Chromium, which the test of the book needs (about 2 minutes, and {})",
                    space::gigabytes(space::BROWSER)
                ),
            );
            let root = partial.join("root");
            let log = logs.join("browser.log");
            let contents = Contents {
                variant: "minbase",
                packages: PACKAGES,
                without: WITHOUT,
                script: Some(SCRIPT),
            };
            debian::make(&root, contents, "making a root with a browser", &log)?;
            let files = ["root/usr/bin/chromedriver", "root/usr/bin/chromium"];
            Ok(files.map(PathBuf::from).to_vec())
        })?;
        Ok(Self {
            root: Root::at(entry.join("root")),
        })
    }

    /// Starts a WebDriver whose browsers see a directory of the host as [`PAGES`].
    pub(crate) fn start(&self, pages: &Path) -> Result<Driver> {
        let mounts = [Mount::read_only_at(pages, Path::new(PAGES))];
        let mut process = self
            .root
            .service(&mounts, "exec chromedriver --port=0", [""; 0])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the browser")?;
        let output = process.stdout.take().context("the output is a pipe")?;
        let mut driver = Driver {
            process,
            address: String::new(),
            output: BufReader::new(output),
        };
        let mut line = String::new();
        while driver
            .output
            .read_line(&mut line)
            .context("reading chromedriver's output")?
            > 0
        {
            if let Some(port) = port(line.trim_end()) {
                driver.address = format!("http://127.0.0.1:{port}");
                return Ok(driver);
            }
            line.clear();
        }
        bail!("chromedriver has ended before it was ready")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It may have ended already; nothing else can be done about it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The port that chromedriver says that it listens on.
fn port(line: &str) -> Option<u16> {
    let (_, port) = line.split_once("was started successfully on port ")?;
    port.trim_end_matches('.').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_in_what_the_driver_says() {
        let line = "ChromeDriver was started successfully on port 37651.";
        assert_eq!(port(line), Some(37651));
        assert_eq!(port("Starting ChromeDriver 148 on port 0"), None);
    }
}

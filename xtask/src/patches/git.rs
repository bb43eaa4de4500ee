//! Writes patches, and applies them.
//!
//! It knows git and nothing of what is in the patches.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};

use crate::patches::assemble::Files;

/// The branch of the series. Its description is the cover letter.
const BRANCH: &str = "series";

/// The person that signs off a patch: a name and an address, as git writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Person {
    name: String,
    address: String,
}

impl Person {
    /// From `NAME <ADDRESS>`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let parts = text
            .strip_suffix('>')
            .and_then(|text| text.split_once(" <"));
        match parts {
            Some((name, address)) if !name.trim().is_empty() && address.contains('@') => Ok(Self {
                name: name.trim().to_owned(),
                address: address.to_owned(),
            }),
            _ => Err("a person is NAME <ADDRESS>".to_owned()),
        }
    }

    /// A stand-in where it does not matter.
    pub(super) fn maintainer() -> Self {
        Self {
            name: "A Maintainer".to_owned(),
            address: "maintainer@example.org".to_owned(),
        }
    }

    /// The person that git knows as its user in a directory.
    pub(super) fn of_git(directory: &Path) -> Result<Self> {
        let value = |key: &str| {
            let output = Command::new("git")
                .args(["config", key])
                .current_dir(directory)
                .stdin(Stdio::null())
                .output()
                .context("starting git")?;
            let text = String::from_utf8(output.stdout)?.trim().to_owned();
            if text.is_empty() {
                bail!("git has no {key}: set it, or give --signoff 'NAME <ADDRESS>'");
            }
            Ok(text)
        };
        Ok(Self {
            name: value("user.name")?,
            address: value("user.email")?,
        })
    }
}

/// A repository of our own.
#[derive(Debug)]
pub(super) struct Repository {
    directory: PathBuf,
    person: Person,
}

impl Repository {
    /// A new repository in a directory, with a first commit of some of its files.
    pub(super) fn new<'f>(
        directory: &Path,
        person: Person,
        files: impl IntoIterator<Item = &'f String>,
    ) -> Result<Self> {
        let repository = Self {
            directory: directory.to_owned(),
            person,
        };
        repository.git(["init", "--quiet", "--initial-branch", BRANCH])?;
        let mut add = repository.command();
        add.args(["add", "--force", "--"]).args(files);
        run(&mut add)?;
        repository.git(["commit", "--quiet", "--allow-empty", "--message", "Linux"])?;
        repository.git(["tag", "linux"])?;
        Ok(repository)
    }

    /// Commits files as they are now.
    pub(super) fn commit(&self, files: &Files, title: &str, body: &str) -> Result<()> {
        write(&self.directory, files)?;
        self.git(["add", "--all"])?;
        let message = format!("{title}\n\n{body}");
        self.git(["commit", "--quiet", "--signoff", "--message", &message])
    }

    /// Writes all commits but the first one as patches, with a cover letter.
    pub(super) fn format(&self, cover_letter: &str, output: &Path) -> Result<()> {
        let key = format!("branch.{BRANCH}.description");
        self.git(["config", &key, cover_letter])?;
        let mut command = self.command();
        command
            .args(["format-patch", "--quiet", "--cover-letter", "--zero-commit"])
            .arg("--cover-from-description=subject")
            .arg("--output-directory")
            .arg(output)
            .arg(format!("linux..{BRANCH}"));
        run(&mut command)
    }

    /// Applies patches as a maintainer would.
    pub(super) fn apply(&self, patches: &[PathBuf]) -> Result<()> {
        let mut command = self.command();
        command
            .args(["am", "--quiet", "--whitespace=error-all"])
            .args(patches);
        run(&mut command)
    }

    fn git<I: IntoIterator<Item: AsRef<OsStr>>>(&self, arguments: I) -> Result<()> {
        run(self.command().args(arguments))
    }

    /// Git without what its user has configured: the patches must not depend on that.
    fn command(&self) -> Command {
        let Person { name, address } = &self.person;
        let mut command = Command::new("git");
        command
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .envs([("GIT_AUTHOR_NAME", name), ("GIT_COMMITTER_NAME", name)])
            .envs([
                ("GIT_AUTHOR_EMAIL", address),
                ("GIT_COMMITTER_EMAIL", address),
            ]);
        for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            command.env_remove(variable);
        }
        command
    }
}

/// Writes files below a directory.
pub(super) fn write(directory: &Path, files: &Files) -> Result<()> {
    for (path, content) in files {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().context("a file has a directory")?)?;
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().context("starting git")?;
    if !output.status.success() {
        bail!(
            "{command:?} failed:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

//! The checkout from Cargo's view: its directories, and the programs that it builds.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{bail, Context, Result};
use cargo_metadata::{Message, MetadataCommand};
use hmm_cli::remark;

/// The target of the guest's programs. It is named even if it is the host's, so that its flags do
/// not reach build scripts and macros.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The package of the library for C.
const LIBRARY: &str = "hmm-c";

/// The directories of the sources and of the output.
#[derive(Debug)]
pub(crate) struct Checkout {
    /// The root of the workspace.
    pub(crate) root: PathBuf,
    /// Our directory among Cargo's output.
    pub(crate) output: PathBuf,
}

/// The programs that run on the host and in the guest.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) daemon: PathBuf,
    pub(crate) agent: PathBuf,
    pub(crate) hmm: PathBuf,
}

/// What the programs are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A person's machine.
    Machine,
    /// The same, with what looks into it.
    Tools,
    /// Measurements and searches, which have programs of their own in the guest.
    Measurements,
    /// Tests, which have Debian's programs, too.
    Tests,
}

/// The packages whose programs are in every guest.
const OF_EVERY_GUEST: [&str; 2] = ["hmm-agent", "hmm-tool"];

/// The packages whose programs only tests and measurements use.
const OF_TESTS: [&str; 3] = ["hmm-hostile", "hmm-contract", "hmm-workloads"];

/// The example that tests run.
const EXAMPLE: &str = "hmm-tour";

impl Purpose {
    /// The packages that it needs in the guest.
    fn packages(self) -> Vec<&'static str> {
        match self {
            Self::Machine | Self::Tools => OF_EVERY_GUEST.to_vec(),
            Self::Measurements => [&OF_EVERY_GUEST[..], &OF_TESTS].concat(),
            Self::Tests => [&OF_EVERY_GUEST[..], &OF_TESTS, &[EXAMPLE]].concat(),
        }
    }

    /// Whether it needs libhmm.
    pub(crate) fn needs_library(self) -> bool {
        self == Self::Tests
    }

    /// Whether it needs Debian's programs in the guest.
    pub(crate) fn needs_userland(self) -> bool {
        matches!(self, Self::Tools | Self::Tests)
    }
}

/// The library for C, as Cargo builds it.
#[derive(Debug)]
pub(crate) struct Library {
    /// For programs that contain it.
    pub(crate) fixed: PathBuf,
    /// For programs that are linked with it when they start.
    pub(crate) shared: PathBuf,
    /// Its version.
    pub(crate) version: String,
}

impl Checkout {
    /// The checkout that this program was built from.
    pub(crate) fn locate() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let metadata = MetadataCommand::new()
            .manifest_path(manifest)
            .no_deps()
            .exec()
            .context("asking Cargo about the workspace")?;
        let output = metadata
            .target_directory
            .join("virtio-hmm")
            .into_std_path_buf();
        std::fs::create_dir_all(&output)
            .with_context(|| format!("creating {}", output.display()))?;
        Ok(Self {
            root: metadata.workspace_root.into_std_path_buf(),
            output,
        })
    }

    /// A Cargo command that runs at the root of the workspace.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root);
        command
    }

    /// Builds the daemon and the guest's programs. Those of the tests are beside the agent.
    pub(crate) fn build_programs(&self, purpose: Purpose) -> Result<Programs> {
        let mut daemon = self.cargo();
        daemon.args([
            "build",
            "--release",
            "--package",
            "vhost-device-hmm",
            "--bins",
        ]);
        let daemon = take(&mut build(&mut daemon)?.programs, "vhost-device-hmm")?;

        let mut flags = std::env::var_os("RUSTFLAGS").unwrap_or_default();
        flags.push(" -C target-feature=+crt-static");
        let mut guest = self.cargo();
        guest
            .args(["build", "--release", "--target", GUEST_TARGET, "--bins"])
            .args(
                purpose
                    .packages()
                    .into_iter()
                    .flat_map(|package| ["--package", package]),
            )
            .env("RUSTFLAGS", flags);
        let mut guest = build(&mut guest)?.programs;
        Ok(Programs {
            daemon,
            agent: take(&mut guest, "hmm-agent")?,
            hmm: take(&mut guest, "hmm")?,
        })
    }

    /// Builds libhmm for programs in the guest, which has the host's architecture and at least its
    /// version of the C library.
    pub(crate) fn build_library(&self) -> Result<Library> {
        let mut cargo = self.cargo();
        cargo.args(["build", "--release", "--package", LIBRARY, "--lib"]);
        let built = build(&mut cargo)?;
        let file = |name: &str| {
            let mut files = built.libraries.iter();
            files
                .find(|file| file.ends_with(name))
                .cloned()
                .with_context(|| format!("the package {LIBRARY} makes no {name}"))
        };
        Ok(Library {
            fixed: file("libhmm.a")?,
            shared: file("libhmm.so")?,
            // All packages have the version of the workspace, as this one.
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }
}

/// What `cargo build` has built.
#[derive(Debug, Default)]
struct Built {
    /// Executables by name.
    programs: BTreeMap<String, PathBuf>,
    /// Libraries for other languages.
    libraries: Vec<PathBuf>,
}

/// Runs `cargo build`.
fn build(command: &mut Command) -> Result<Built> {
    if io::stderr().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = command
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    let remarks = child.stderr.take().context("cargo's remarks are a pipe")?;
    let passing_on = thread::spawn(move || pass_on(remarks));
    let output = child.stdout.take().context("cargo's output is a pipe")?;
    let mut built = Built::default();
    for message in Message::parse_stream(BufReader::new(output)) {
        if let Message::CompilerArtifact(artifact) = message.context("reading cargo's output")? {
            if let Some(path) = artifact.executable {
                let path = path.into_std_path_buf();
                built.programs.insert(artifact.target.name, path);
            } else if artifact.target.is_cdylib() {
                let files = artifact.filenames.into_iter();
                built.libraries.extend(files.map(Into::into));
            }
        }
    }
    passing_on.join().expect("printing does not panic");
    if !child.wait()?.success() {
        bail!("the programs do not build; the compiler's messages are above");
    }
    Ok(built)
}

/// Prints what Cargo says as it says it, but not that it is finished: most of the time it had
/// nothing to do, and then it says nothing else.
fn pass_on(remarks: impl Read) {
    let lines = BufReader::new(remarks).split(b'\n');
    for line in lines.map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        if !is_the_end(&line) {
            remark!("{line}");
        }
    }
}

/// Whether Cargo says in this line, perhaps in colour, that it has finished.
fn is_the_end(line: &str) -> bool {
    let text = line.trim_start_matches(|c: char| !c.is_ascii_alphabetic() || c == 'm');
    text.starts_with("Finished")
}

fn take(executables: &mut BTreeMap<String, PathBuf>, name: &str) -> Result<PathBuf> {
    executables
        .remove(name)
        .with_context(|| format!("the workspace builds no program called {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_persons_machine_needs_no_program_of_the_tests() {
        let of_tests = |package: &&str| OF_TESTS.contains(package);
        assert_eq!(
            Purpose::Machine
                .packages()
                .iter()
                .filter(|p| of_tests(p))
                .count(),
            0
        );
        assert_eq!(
            Purpose::Tests
                .packages()
                .iter()
                .filter(|p| of_tests(p))
                .count(),
            3
        );
    }

    #[test]
    fn only_the_last_word_of_cargo_is_left_out() {
        assert!(is_the_end(
            "    Finished `release` profile [optimized] target(s) in 0.09s"
        ));
        let coloured = "\u{1b}[1m\u{1b}[92m    Finished\u{1b}[0m `release` profile";
        assert!(is_the_end(coloured), "in colour");
        assert!(!is_the_end("   Compiling hmm v0.1.0"));
        assert!(!is_the_end("warning: unused variable: `Finished`"));
        assert!(!is_the_end(""));
    }
}

//! The checkout from Cargo's view: its directories, and the programs that it builds.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};
use cargo_metadata::{Message, MetadataCommand};

/// The target of the guest's programs. It is named even if it is the host's, so that its flags do
/// not reach build scripts and macros.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

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
    pub(crate) fn build_programs(&self) -> Result<Programs> {
        let mut daemon = self.cargo();
        daemon.args([
            "build",
            "--release",
            "--package",
            "vhost-device-hmm",
            "--bins",
        ]);
        let daemon = take(&mut build(&mut daemon)?, "vhost-device-hmm")?;

        let mut flags = std::env::var_os("RUSTFLAGS").unwrap_or_default();
        flags.push(" -C target-feature=+crt-static");
        let mut guest = self.cargo();
        guest
            .args(["build", "--release", "--target", GUEST_TARGET, "--bins"])
            .args([
                "--package",
                "hmm-agent",
                "--package",
                "hmm-tool",
                "--package",
                "hmm-hostile",
                "--package",
                "hmm-contract",
                "--package",
                "hmm-workloads",
            ])
            .env("RUSTFLAGS", flags);
        let mut guest = build(&mut guest)?;
        Ok(Programs {
            daemon,
            agent: take(&mut guest, "hmm-agent")?,
            hmm: take(&mut guest, "hmm")?,
        })
    }
}

/// Runs `cargo build` and returns the executables by name.
fn build(command: &mut Command) -> Result<BTreeMap<String, PathBuf>> {
    let mut child = command
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    let output = child.stdout.take().context("cargo's output is a pipe")?;
    let mut executables = BTreeMap::new();
    for message in Message::parse_stream(BufReader::new(output)) {
        if let Message::CompilerArtifact(artifact) = message.context("reading cargo's output")? {
            if let Some(path) = artifact.executable {
                executables.insert(artifact.target.name, path.into_std_path_buf());
            }
        }
    }
    if !child.wait()?.success() {
        bail!("the programs do not build; the compiler's messages are above");
    }
    Ok(executables)
}

fn take(executables: &mut BTreeMap<String, PathBuf>, name: &str) -> Result<PathBuf> {
    executables
        .remove(name)
        .with_context(|| format!("the workspace builds no program called {name}"))
}

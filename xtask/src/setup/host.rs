//! The host: its packages, its mirror, and our user id.
//!
//! It does not know what the packages are for.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};

use crate::setup::progress;

/// A program and the Debian package that contains it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Need {
    program: &'static str,
    package: &'static str,
}

/// The needs of every user.
const NEEDS: &[Need] = &[
    Need {
        program: "mmdebstrap",
        package: "mmdebstrap",
    },
    Need {
        program: "unshare",
        package: "util-linux",
    },
];

/// The further needs of a normal user, to own a root directory with files of several users.
const NEEDS_OF_A_USER: &[Need] = &[Need {
    program: "newuidmap",
    package: "uidmap",
}];

/// The keys that sign Debian's archive; separate because they are no program.
const KEYRING: Need = Need {
    program: "/usr/share/keyrings/debian-archive-keyring.gpg",
    package: "debian-archive-keyring",
};

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Installs the missing host packages, or says how to install them.
pub(crate) fn install_missing_packages(log: &Path) -> Result<()> {
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    let reason = "to make the root directory that holds compilers, kernel sources and QEMU";
    install(&missing, reason, log)
}

/// Installs packages that this machine lacks, or says how to install them. `reason` is why.
pub(crate) fn install(packages: &[&str], reason: &str, log: &Path) -> Result<()> {
    let names = packages.join(" ");
    if find_program("apt-get").is_none() {
        bail!("this machine lacks {names}; install them with your package manager and try again");
    }
    if !is_root() {
        bail!("this machine lacks {names}; run `sudo apt-get install {names}` and try again");
    }
    progress::announce(&format!("installing {names} on this machine"), reason);
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    // In CI, package lists are usually stale or absent.
    progress::run("apt-get update", &mut apt(&["update"]), log)?.check()?;
    let mut install = apt(&["install", "-y", "--no-install-recommends"]);
    progress::run("apt-get install", install.args(packages), log)?.check()
}

fn missing_packages() -> Vec<&'static str> {
    let of_a_user = if is_root() { &[][..] } else { NEEDS_OF_A_USER };
    NEEDS
        .iter()
        .chain(of_a_user)
        .chain([&KEYRING])
        .filter(|need| find_program(need.program).is_none())
        .map(|need| need.package)
        .collect()
}

/// The path of a program, as a shell would find it, also in the administrators' directories.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// The Debian mirror of this machine, if it is a Debian machine.
///
/// `None` leaves the choice to mmdebstrap.
pub(crate) fn debian_mirror() -> Option<String> {
    let output = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(ORIGIN) $(LABEL) $(REPO_URI)",
            "Created-By: Packages",
        ])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    mirror_in(&String::from_utf8_lossy(&output.stdout))
}

/// The first repository of Debian itself; its security archive has another label.
fn mirror_in(targets: &str) -> Option<String> {
    targets
        .lines()
        .find_map(|line| line.strip_prefix("Debian Debian "))
        .map(|uri| uri.trim().trim_end_matches('/').to_owned())
}

/// The proxies in this machine's apt configuration, as `key "value"` options.
pub(crate) fn apt_proxies() -> Vec<String> {
    ["Acquire::http::Proxy", "Acquire::https::Proxy"]
        .into_iter()
        .filter_map(|key| {
            let output = Command::new("apt-config")
                .args(["shell", "value", key])
                .output()
                .ok()?;
            let text = String::from_utf8(output.stdout).ok()?;
            let value = text
                .trim()
                .strip_prefix("value='")?
                .strip_suffix('\'')?
                .to_owned();
            Some(format!("{key} \"{value}\""))
        })
        .collect()
}

/// Starts a command as root in its own mount namespace. A normal user becomes root over the
/// subordinate ids.
///
/// The caller adds the program and its arguments.
pub(crate) fn as_root_of_own_namespace() -> Command {
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["--map-root-user", "--map-auto"]);
    }
    command.args(["--mount", "--"]);
    command
}

/// The same in a process namespace of its own, too: all that it starts ends with it.
pub(crate) fn as_root_of_own_processes() -> Command {
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["--map-root-user", "--map-auto"]);
    }
    command.args(["--mount", "--mount-proc", "--pid", "--fork", "--kill-child"]);
    command.arg("--");
    command
}

/// Starts `program` as a user that may install a Debian system: root. A normal user becomes root
/// over the subordinate ids, in its own process namespace, because otherwise procfs cannot be
/// mounted.
///
/// mmdebstrap can do that by itself, but it maps the ids differently: outside, its files would not
/// belong to the user.
pub(crate) fn as_installer(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--map-auto", "--mount", "--mount-proc"])
        .args(["--pid", "--fork", "--kill-child", "--", program]);
    command
}

/// Starts a program of the host as if not from Cargo: rustup tells what it starts which toolchain
/// Cargo was, and a kernel's tree may want another one.
pub(crate) fn without_rustup_choice(program: &str) -> Command {
    let mut command = Command::new(program);
    for variable in [
        "RUSTUP_TOOLCHAIN",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTDOC",
        "RUSTFLAGS",
        "CARGO",
    ] {
        command.env_remove(variable);
    }
    command
}

/// Checks that we may do what [`as_root_of_own_namespace`] needs.
pub(crate) fn check_namespaces() -> Result<()> {
    let allowed = as_root_of_own_namespace()
        .arg("true")
        .stdin(Stdio::null())
        .output()
        .context("starting unshare")?;
    if allowed.status.success() {
        return Ok(());
    }
    let refusal = String::from_utf8_lossy(&allowed.stderr).trim().to_owned();
    if is_root() {
        bail!(
            "root may not make the mount namespace that the toolbox needs here ({refusal}): \
             in a container, give it the capability CAP_SYS_ADMIN"
        );
    }
    bail!(
        "this user cannot make the user namespace that the toolbox needs ({refusal}): give the \
         user a range in /etc/subuid and /etc/subgid and allow unprivileged user namespaces, \
         or run as root"
    )
}

/// Removes a directory and everything below it. It is no error if it does not exist.
///
/// It stays within one file system: an interrupted build may have left another one mounted there.
pub(crate) fn remove_tree(directory: &Path) -> Result<()> {
    if !directory.try_exists()? {
        return Ok(());
    }
    let removed = as_root_of_own_namespace()
        .args(["rm", "-rf", "--one-file-system", "--"])
        .arg(directory)
        .output()
        .context("starting rm")?;
    if !removed.status.success() {
        bail!(
            "cannot remove {}: {}",
            directory.display(),
            String::from_utf8_lossy(&removed.stderr).trim()
        );
    }
    Ok(())
}

/// How many compilers to run at once.
pub(crate) fn parallelism() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_debians_own_and_not_its_security_archive() {
        let targets = "Debian Debian-Security http://security.example/debian-security/\n\
                       Node Node http://node.example/\n\
                       Debian Debian http://mirror.example/debian/\n";
        assert_eq!(
            mirror_in(targets).as_deref(),
            Some("http://mirror.example/debian")
        );
    }

    #[test]
    fn another_distribution_offers_no_mirror() {
        assert_eq!(
            mirror_in("Ubuntu Ubuntu http://mirror.example/ubuntu/\n"),
            None
        );
    }

    #[test]
    fn a_tree_is_removed_and_an_absent_one_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        remove_tree(&tree).unwrap();
        assert!(directory.path().exists());
    }
}

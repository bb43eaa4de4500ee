//! The compilers that built a kernel: which they were, and where the same ones are.
//!
//! It knows how a kernel's configuration names them, and nothing of what is built.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use hmm_vm::kconfig::Options;

use crate::setup::host;
use crate::setup::site::Site;
use crate::setup::toolbox::Toolbox;

/// The compilers of a kernel, as its configuration names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compilers {
    /// The first line of the C compiler's `--version`.
    c: String,
    /// The same of the Rust compiler.
    rust: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Gcc,
    /// With its major version, and whether its own linker and tools were used too.
    Clang {
        major: Option<u32>,
        tools: bool,
    },
}

/// A place without the same compilers.
#[derive(Debug, PartialEq)]
struct Others {
    place: &'static str,
    /// What it has under these names, if anything.
    found: Vec<(String, Option<String>)>,
}

impl Compilers {
    /// The compilers of a kernel with these options.
    ///
    /// # Errors
    ///
    /// When the options name none, as those of a kernel that was only configured in part.
    pub(crate) fn of(options: &Options) -> Result<Self> {
        let text = |name: &str| {
            options
                .value(name)
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
                .with_context(|| format!("its .config does not say CONFIG_{name}"))
        };
        let kind = if options.has("CC_IS_CLANG") {
            let version = options.value("CLANG_VERSION");
            Kind::Clang {
                // 190107 is 19.1.7.
                major: version.and_then(|v| Some(v.parse::<u32>().ok()? / 10_000)),
                tools: options.has("LD_IS_LLD"),
            }
        } else {
            Kind::Gcc
        };
        Ok(Self {
            c: text("CC_VERSION_TEXT")?,
            rust: text("RUSTC_VERSION_TEXT")?,
            kind,
        })
    }

    /// Where the same compilers are: on the host if it has them, else in the toolbox, which sees
    /// `mounts`. Returns what `make` must be told besides.
    ///
    /// # Errors
    ///
    /// When neither has them; the text says what each has instead.
    pub(crate) fn locate(
        &self,
        toolbox: &Toolbox,
        tree: &Path,
        mounts: &[&Path],
    ) -> Result<(Site, Vec<String>)> {
        let on_host = self.arguments("this machine", &|program| {
            let mut command = host::without_rustup_choice(program);
            first_line(command.arg("--version").current_dir(tree))
        });
        let others = match on_host {
            Ok(mut arguments) => {
                arguments.extend(rustc_of_host(tree));
                return Ok((Site::Host, arguments));
            }
            Err(others) => others,
        };
        let in_toolbox = self.arguments("the toolbox", &|program| {
            first_line(&mut toolbox.script("exec \"$1\" --version", [program]))
        });
        match in_toolbox {
            Ok(arguments) => Ok((Site::toolbox(toolbox, mounts), arguments)),
            Err(in_toolbox) => Err(anyhow::anyhow!(
                "no module can be built for the kernel: only the compilers that built a kernel \
                 can read its Rust crates.\n{self}{others}{in_toolbox}Install the same ones here, \
                 or build the kernel again with those of the toolbox: see `cargo xtask toolbox \
                 --help`"
            )),
        }
    }

    /// What `make` must be told where `version` says the first line that a program prints of its
    /// version.
    fn arguments(
        &self,
        place: &'static str,
        version: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Vec<String>, Others> {
        let mut found = Vec::new();
        let mut is = |program: &str, expected: Option<&str>| {
            let version = version(program);
            let is =
                version.is_some() && expected.is_none_or(|text| version.as_deref() == Some(text));
            found.push((program.to_owned(), version));
            is
        };
        let rust = is("rustc", Some(&self.rust));
        let tools = is("bindgen", None) && is("make", None);
        let c = self.candidates().into_iter().find(|(program, linker, _)| {
            is(program, Some(&self.c)) && linker.as_ref().is_none_or(|linker| is(linker, None))
        });
        match c {
            Some((_, _, arguments)) if rust && tools => Ok(arguments),
            _ => Err(Others { place, found }),
        }
    }

    /// The C compilers that may be the one: a program, its linker if that must be there too, and
    /// what `make` must be told.
    fn candidates(&self) -> Vec<(String, Option<String>, Vec<String>)> {
        match self.kind {
            Kind::Gcc => {
                // gcc's version begins with the name that it was called by.
                let name = self.c.split_whitespace().next().unwrap_or("gcc");
                let arguments = match name {
                    "gcc" => Vec::new(),
                    other => vec![format!("CC={other}")],
                };
                vec![(name.to_owned(), None, arguments)]
            }
            Kind::Clang { major, tools } => {
                let suffixes = [Some(String::new()), major.map(|major| format!("-{major}"))];
                let candidate = |suffix: String| {
                    let program = format!("clang{suffix}");
                    let (linker, argument) = match (tools, suffix.is_empty()) {
                        (true, true) => (Some("ld.lld".to_owned()), "LLVM=1".to_owned()),
                        (true, false) => {
                            (Some(format!("ld.lld{suffix}")), format!("LLVM={suffix}"))
                        }
                        (false, _) => (None, format!("CC={program}")),
                    };
                    (program, linker, vec![argument])
                };
                suffixes.into_iter().flatten().map(candidate).collect()
            }
        }
    }
}

impl fmt::Display for Compilers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "    it was built by: {}; {}", self.c, self.rust)
    }
}

impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found: Vec<_> = self
            .found
            .iter()
            .map(|(program, version)| match version {
                Some(version) => version.clone(),
                None => format!("no {program}"),
            })
            .collect();
        writeln!(f, "    {} has: {}", self.place, found.join("; "))
    }
}

/// The first line of a command's output. `None` if it cannot be run, fails or prints nothing.
fn first_line(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next()?.trim_end().to_owned();
    (output.status.success() && !line.is_empty()).then_some(line)
}

/// Names the Rust tools of the host by their paths. Where rustup chooses a toolchain by the
/// directory, what holds in the kernel's tree need not hold where the module is built.
fn rustc_of_host(tree: &Path) -> Vec<String> {
    let mut command = host::without_rustup_choice("rustc");
    command.args(["--print", "sysroot"]).current_dir(tree);
    let Some(sysroot) = first_line(&mut command) else {
        return Vec::new();
    };
    let programs = [
        ("RUSTC", "rustc"),
        ("RUSTDOC", "rustdoc"),
        ("CLIPPY_DRIVER", "clippy-driver"),
    ];
    programs
        .into_iter()
        .map(|(variable, program)| (variable, Path::new(&sysroot).join("bin").join(program)))
        .filter(|(_, program)| program.is_file())
        .map(|(variable, program)| format!("{variable}={}", program.display()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GCC: &str = "gcc (Debian 14.2.0-19) 14.2.0";
    const CLANG: &str = "Debian clang version 19.1.7 (3+b1)";
    const RUSTC: &str = "rustc 1.85.1 (4eb161250 2025-03-15) (built from a source tarball)";

    fn compilers(more: &str) -> Compilers {
        let text = format!("CONFIG_RUSTC_VERSION_TEXT=\"{RUSTC}\"\n{more}");
        Compilers::of(&Options::parse(&text)).unwrap()
    }

    fn gcc(text: &str) -> Compilers {
        compilers(&format!(
            "CONFIG_CC_IS_GCC=y\nCONFIG_CC_VERSION_TEXT=\"{text}\"\n"
        ))
    }

    fn clang(more: &str) -> Compilers {
        compilers(&format!(
            "CONFIG_CC_IS_CLANG=y\nCONFIG_CLANG_VERSION=190107\n\
             CONFIG_CC_VERSION_TEXT=\"{CLANG}\"\n{more}"
        ))
    }

    /// A place with these programs, and with make, bindgen and a linker.
    fn place<'a>(programs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |program| {
            let always = ["make", "bindgen"].contains(&program);
            let version = programs.iter().find(|(name, _)| *name == program);
            version
                .map(|(_, version)| (*version).to_owned())
                .or_else(|| always.then(|| format!("{program} 4")))
        }
    }

    #[test]
    fn the_same_compilers_are_used() {
        let debian = place(&[
            ("gcc", GCC),
            ("rustc", RUSTC),
            ("clang", CLANG),
            ("ld.lld", "19"),
        ]);
        assert_eq!(gcc(GCC).arguments("here", &debian), Ok(vec![]));
        let llvm = clang("CONFIG_LD_IS_LLD=y\n");
        assert_eq!(llvm.arguments("here", &debian), Ok(vec!["LLVM=1".into()]));
        let mixed = clang("CONFIG_LD_IS_BFD=y\n");
        assert_eq!(
            mixed.arguments("here", &debian),
            Ok(vec!["CC=clang".into()])
        );
    }

    #[test]
    fn compilers_may_have_their_version_in_their_name() {
        let text = "gcc-14 (Ubuntu 14.2.0-4) 14.2.0";
        let ubuntu = [("gcc-14", text), ("rustc", RUSTC)];
        let told = gcc(text).arguments("here", &place(&ubuntu));
        assert_eq!(told, Ok(vec!["CC=gcc-14".into()]));

        let programs = [
            ("clang", "clang version 20.1.0"),
            ("clang-19", CLANG),
            ("ld.lld-19", "19"),
            ("rustc", RUSTC),
        ];
        let told = clang("CONFIG_LD_IS_LLD=y\n").arguments("here", &place(&programs));
        assert_eq!(told, Ok(vec!["LLVM=-19".into()]));
    }

    #[test]
    fn other_compilers_are_named_and_not_used() {
        let other = "gcc (Debian 12.2.0-14+deb12u1) 12.2.0";
        let here = [("gcc", other), ("rustc", RUSTC)];
        let error = gcc(GCC).arguments("here", &place(&here));
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("here has:") && error.contains(other),
            "{error}"
        );

        let here = place(&[
            ("gcc", GCC),
            ("rustc", "rustc 1.95.0 (59807616e 2026-04-14)"),
        ]);
        let error = gcc(GCC).arguments("here", &here).unwrap_err().to_string();
        assert!(error.contains("rustc 1.95.0"), "{error}");

        let here = place(&[("gcc", GCC)]);
        let error = gcc(GCC).arguments("here", &here).unwrap_err().to_string();
        assert!(error.contains("no rustc"), "{error}");
    }

    #[test]
    fn llvm_without_its_linker_is_not_used() {
        let here = place(&[("clang", CLANG), ("rustc", RUSTC)]);
        let error = clang("CONFIG_LD_IS_LLD=y\n").arguments("here", &here);
        assert!(error.unwrap_err().to_string().contains("no ld.lld"));
    }

    #[test]
    fn a_configuration_without_compilers_is_an_error_that_says_so() {
        let error = Compilers::of(&Options::parse("CONFIG_RUST=y\n")).unwrap_err();
        assert!(
            error.to_string().contains("CONFIG_CC_VERSION_TEXT"),
            "{error}"
        );
        let text = "CONFIG_CC_VERSION_TEXT=\"gcc\"\nCONFIG_RUSTC_VERSION_TEXT=\"\"\n";
        let error = Compilers::of(&Options::parse(text)).unwrap_err();
        assert!(
            error.to_string().contains("CONFIG_RUSTC_VERSION_TEXT"),
            "{error}"
        );
    }
}

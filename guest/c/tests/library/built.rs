//! The library as a user builds it: Cargo does not build it for tests, which cannot link it.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

/// The files that Cargo makes of this package.
pub(crate) struct Libraries {
    /// `libhmm.a`.
    pub(crate) fixed: PathBuf,
    /// `libhmm.so`.
    pub(crate) shared: PathBuf,
}

/// The files, built if they are not up to date.
pub(crate) fn libraries() -> &'static Libraries {
    static BUILT: OnceLock<Libraries> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--package", env!("CARGO_PKG_NAME")]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        cargo.arg("--message-format=json-render-diagnostics");
        let output = succeeded(&mut cargo);
        let text = String::from_utf8(output.stdout).unwrap();
        let messages = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let files: Vec<PathBuf> = messages
            .filter(|message: &Value| {
                let kinds = message["target"]["crate_types"].as_array();
                kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "cdylib"))
            })
            .flat_map(|message| message["filenames"].as_array().unwrap().clone())
            .map(|file| file.as_str().unwrap().into())
            .collect();
        let file = |name: &str| {
            let found = files.iter().find(|file| file.ends_with(name));
            found
                .unwrap_or_else(|| panic!("no {name} in {files:?}"))
                .clone()
        };
        Libraries {
            fixed: file("libhmm.a"),
            shared: file("libhmm.so"),
        }
    })
}

/// The output of a command, which must succeed.
pub(crate) fn succeeded(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    output
}

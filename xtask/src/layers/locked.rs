//! Tests the locked dependencies: which compiler they need, and under which licences they come.
//!
//! The lock file decides what everybody builds, so that these are the versions that count.

use std::path::Path;

use cargo_metadata::{Metadata, MetadataCommand, Package};
use serde::Deserialize;
use spdx::{Expression, LicenseReq, ParseMode};

/// The part of `deny.toml` that is tested here, too.
#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
    exceptions: Vec<LicenceException>,
}

/// A package that may have other licences.
#[derive(Deserialize)]
struct LicenceException {
    #[serde(rename = "crate")]
    package: String,
    allow: Vec<String>,
}

/// The workspace and all that it is built from, on Linux.
fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .other_options(
            ["--locked", "--filter-platform", "x86_64-unknown-linux-gnu"].map(Into::into),
        )
        .exec()
        .unwrap()
}

fn is_ours(metadata: &Metadata, package: &Package) -> bool {
    metadata.workspace_members.contains(&package.id)
}

#[test]
fn no_dependency_needs_a_newer_compiler_than_is_stated() {
    let metadata = metadata();
    let stated = |name: &str| {
        let mut packages = metadata.packages.iter();
        let package = packages.find(|package| *package.name == name).unwrap();
        package.rust_version.clone().unwrap()
    };
    let stated = stated(env!("CARGO_PKG_NAME"));
    let newer: Vec<_> = metadata
        .packages
        .iter()
        .filter(|package| package.rust_version.as_ref() > Some(&stated))
        .map(|package| format!("{} {}", package.name, package.version))
        .collect();
    assert!(newer.is_empty(), "rust-version is {stated}; {newer:?}");
    // Otherwise the least compiler is a claim that nothing supports.
    let some = metadata
        .packages
        .iter()
        .filter(|package| !is_ours(&metadata, package) && package.rust_version.is_some());
    assert!(some.count() > 10);
}

#[test]
fn the_readme_names_the_compiler_that_is_stated() {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = std::fs::read_to_string(checkout.join("README.md")).unwrap();
    let stated = env!("CARGO_PKG_RUST_VERSION");
    assert!(readme.contains(&format!("Rust {stated}")), "{stated}");
}

#[test]
fn every_dependency_comes_under_a_licence_that_is_allowed() {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(checkout.join("deny.toml")).unwrap();
    let deny: Deny = toml::from_str(&text).unwrap();
    let licences = deny.licenses;
    let metadata = metadata();
    let foreign = metadata.packages.iter();
    let foreign = foreign.filter(|package| !is_ours(&metadata, package));
    let refused: Vec<_> = foreign
        .filter(|package| {
            let mut exceptions = licences.exceptions.iter();
            let exception = exceptions.find(|exception| *package.name == exception.package);
            let allow = exception.map_or(&licences.allow, |exception| &exception.allow);
            !is_allowed(package.license.as_deref(), allow)
        })
        .map(|package| format!("{}: {:?}", package.name, package.license))
        .collect();
    assert!(refused.is_empty(), "{refused:?}");
}

/// Whether a licence leaves a choice of terms that are all allowed.
fn is_allowed(licence: Option<&str>, allow: &[String]) -> bool {
    let Some(licence) = licence else {
        return false;
    };
    let expression = Expression::parse_mode(licence, ParseMode::LAX);
    let is_known = |term: &LicenseReq| allow.iter().any(|name| *name == term.to_string());
    expression.is_ok_and(|expression| expression.evaluate(is_known))
}

#[test]
fn a_choice_is_allowed_and_an_obligation_is_not() {
    let allow = ["MIT".to_owned()];
    for (licence, allowed) in [
        ("MIT", true),
        ("MIT OR GPL-3.0-only", true),
        ("MIT/Apache-2.0", true),
        ("MIT AND GPL-3.0-only", false),
        ("GPL-3.0-only", false),
        ("nothing that is known", false),
    ] {
        assert_eq!(is_allowed(Some(licence), &allow), allowed, "{licence}");
    }
    assert!(!is_allowed(None, &allow), "no licence allows nothing");
}

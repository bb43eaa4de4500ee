//! Which definitions a program needs, in the order of the headers.
//!
//! It is all of `spec/src/uapi/mod.rs`, and a part of `spec/src/wire`. It knows nothing of the
//! languages in which they are written.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use syn::Type;

use crate::names::Names;
use crate::source::{Definitions, Enumeration, Structure};

/// Bits of their own module: the module, and what other languages put before their names.
pub(crate) const BITS: [(&str, &str); 5] = [
    ("capability", "CAPABILITY"),
    ("submit_flags", "SUBMIT"),
    ("migrate_flags", "MIGRATE"),
    ("page_state", "PAGE"),
    ("rights", "RIGHT"),
];

/// The sets of values that a program meets.
pub(crate) const ENUMERATIONS: [&str; 5] =
    ["DeviceState", "Destination", "Element", "Status", "Reason"];

/// The structures of `wire` that a program meets.
const OF_WIRE: [&str; 3] = ["JobDescriptor", "JobReply", "Statistics"];

/// The set of all operations, which the source writes as structures.
pub(crate) const OPERATION: &str = "Operation";

/// How the documentation in a language refers to a definition.
pub(crate) trait References {
    /// To a constant, with what is put before its name.
    fn constant(&self, words: &[&str]) -> String;
    /// To all constants with this before their names.
    fn constants(&self, prefix: &str) -> String;
    /// To a set of values.
    fn enumeration(&self, name: &str) -> String;
    /// To one of its values.
    fn value(&self, enumeration: &str, name: &str) -> String;
    /// To a structure.
    fn structure(&self, name: &str) -> String;
    /// To one of its fields.
    fn field(&self, structure: &str, name: &str) -> String;
}

/// The references to all definitions, by their names in Rust.
pub(crate) fn names(definitions: &Definitions, language: &dyn References) -> Result<Names> {
    let mut names = Names::default();
    let uapi = definitions.module("uapi")?;
    for it in &uapi.constants {
        names.insert(&it.name, language.constant(&[&it.name]));
    }
    for (module, prefix) in BITS {
        names.insert(module, language.constants(prefix));
        for it in &definitions.module(module)?.constants {
            let reference = language.constant(&[prefix, &it.name]);
            names.insert(&format!("{module}::{}", it.name), reference);
        }
    }
    for name in ENUMERATIONS {
        names.insert(name, language.enumeration(name));
        for value in &enumeration(definitions, name)?.values {
            let reference = language.value(name, &value.name);
            if name == "Element" {
                // Operations name the types of elements alone.
                names.insert(&value.name, reference.clone());
            }
            names.insert(&format!("{name}::{}", value.name), reference);
        }
    }
    // What the device tells the driver there, the driver tells programs here.
    let capabilities = language.field("Info", "capabilities");
    names.insert("Config::capabilities", capabilities);
    names.insert(OPERATION, language.enumeration(OPERATION));
    for it in structures(definitions)? {
        names.insert(&it.name, language.structure(&it.name));
        for field in &it.fields {
            let reference = language.field(&it.name, &field.name);
            names.insert(&format!("{}::{}", it.name, field.name), reference);
        }
    }
    Ok(names)
}

/// A set of values by name.
pub(crate) fn enumeration<'a>(definitions: &'a Definitions, name: &str) -> Result<&'a Enumeration> {
    let mut all = definitions.enumerations();
    all.find(|it| it.name == name)
        .with_context(|| format!("there is no enumeration {name}"))
}

/// The structures, each after those that it holds.
pub(crate) fn structures(definitions: &Definitions) -> Result<Vec<&Structure>> {
    fn add<'a>(
        name: &str,
        all: &[&'a Structure],
        done: &mut BTreeSet<String>,
        order: &mut Vec<&'a Structure>,
    ) -> Result<()> {
        let structure = all
            .iter()
            .find(|it| it.name == name)
            .with_context(|| format!("there is no structure {name}"))?;
        if !done.insert(name.to_owned()) {
            return Ok(());
        }
        for field in &structure.fields {
            let inner = rust_name(&field.kind).unwrap_or_default();
            if all.iter().any(|it| it.name == inner) {
                add(&inner, all, done, order)?;
            }
        }
        order.push(structure);
        Ok(())
    }

    let all: Vec<_> = definitions.structures().collect();
    let of_uapi = &definitions.module("uapi")?.structures;
    let wanted = of_uapi.iter().map(|it| it.name.as_str());
    let (mut done, mut order) = (BTreeSet::new(), Vec::new());
    for name in OF_WIRE.into_iter().chain(wanted) {
        add(name, &all, &mut done, &mut order)?;
    }
    Ok(order)
}

/// The name of a type that is a plain name.
pub(crate) fn rust_name(kind: &Type) -> Option<String> {
    match kind {
        Type::Path(path) => path.path.get_ident().map(ToString::to_string),
        _ => None,
    }
}

//! Counts the definitions in the source, so that `interface.rs` cannot forget any.
//!
//! Reads the source as text: structures, enumerations and constants by name. It knows
//! nothing of their values.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use syn::{Item, ItemConst, Type, Visibility};

/// The names that the source defines.
#[derive(Default)]
pub(crate) struct Census {
    pub(crate) structures: BTreeSet<String>,
    pub(crate) enumerations: BTreeSet<String>,
    /// Public numbers: module and name.
    pub(crate) constants: BTreeSet<(String, String)>,
    /// The errors that the documentation of `uapi` names, in order.
    pub(crate) errors: Vec<String>,
}

impl Census {
    /// Counts all source files of this crate.
    pub(crate) fn of_the_source() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut census = Self::default();
        for path in files(&root) {
            let text = fs::read_to_string(&path).expect("a source file can be read");
            let file = syn::parse_file(&text).expect("a source file is Rust");
            let stem = if path.ends_with("mod.rs") {
                path.parent()
            } else {
                Some(path.as_path())
            };
            let module = stem
                .and_then(Path::file_stem)
                .expect("a source file has a name");
            census.items(&module.to_string_lossy(), file.items);
            if path.ends_with("uapi/mod.rs") {
                census.errors = errors(&text);
            }
        }
        census
    }

    fn items(&mut self, module: &str, items: Vec<Item>) {
        for item in items {
            match item {
                Item::Mod(inner) => {
                    if let Some((_, items)) = inner.content {
                        self.items(&inner.ident.to_string(), items);
                    }
                }
                Item::Const(constant) if is_public_number(&constant) => {
                    self.constants
                        .insert((module.to_owned(), constant.ident.to_string()));
                }
                Item::Macro(call) if call.mac.path.is_ident("layout") => {
                    let body = call.mac.parse_body::<syn::File>().expect("structures");
                    self.structures
                        .extend(body.items.iter().filter_map(|item| match item {
                            Item::Struct(structure) => Some(structure.ident.to_string()),
                            _ => None,
                        }));
                }
                Item::Macro(call) if call.mac.path.is_ident("values") => {
                    let words = call.mac.tokens.into_iter().map(|token| token.to_string());
                    let mut name = words.skip_while(|word| word != "enum").skip(1);
                    self.enumerations.extend(name.next());
                }
                _ => {}
            }
        }
    }
}

/// The Rust files in a folder and below it.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the source folder can be read") {
        let path = entry.expect("the source folder can be read").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn is_public_number(constant: &ItemConst) -> bool {
    let is_public = matches!(constant.vis, Visibility::Public(_));
    is_public && !matches!(*constant.ty, Type::Reference(_))
}

fn errors(text: &str) -> Vec<String> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! | `"));
    rows.filter_map(|row| row.split_once('`'))
        .map(|(name, _)| name.to_owned())
        .collect()
}

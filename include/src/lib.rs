//! The definitions of this project for other languages, generated from those in Rust.
//!
//! [`source`] reads the definitions in `spec/src` with their documentation, as text; [`uapi`] writes
//! them as a header in the style of the kernel's, [`python`] as a module of Python. [`library`] makes
//! the header of libhmm from its functions. `cargo xtask headers` writes the files. A test
//! says when one of them is stale, and others compare what a C compiler and Python make of them with
//! what the crate says of itself.

use std::path::{Path, PathBuf};

use anyhow::Result;

mod comment;
mod expression;
pub mod library;
mod names;
pub mod python;
mod selection;
pub mod source;
pub mod uapi;

pub use names::snake;

/// The command that writes the headers.
pub const REFRESH: &str = "cargo xtask headers";

/// A generated file of the checkout, and what belongs into it.
#[derive(Debug)]
pub struct Generated {
    /// Where it is.
    pub path: PathBuf,
    /// What it must hold.
    pub text: String,
}

/// Every generated file, as it must be.
///
/// # Errors
///
/// When the definitions cannot be read, or have what the other languages cannot express.
pub fn all() -> Result<Vec<Generated>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let definitions = source::Definitions::read(&root.join("spec/src"))?;
    Ok(vec![
        Generated {
            path: root.join("include/uapi/virtio_hmm.h"),
            text: uapi::write(&definitions)?,
        },
        Generated {
            path: root.join("guest/c/include/hmm.h"),
            text: library::write(&root.join("guest/c/src"))?,
        },
        Generated {
            path: root.join("guest/python/hmm/_uapi.py"),
            text: python::write(&definitions)?,
        },
    ])
}

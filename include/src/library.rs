//! The header of libhmm, `hmm.h`, which cbindgen makes from the crate in `guest/c`.
//!
//! Its functions and their documentation come from the source; the structures that cross to the
//! driver are those of `virtio_hmm.h`.

use std::path::Path;

use anyhow::{Context, Result};
use cbindgen::{Builder, Config, DocumentationStyle, Language, Style};

use crate::names::tag;
use crate::REFRESH;

/// The structures of `virtio_hmm.h` that functions take.
const OF_UAPI: [&str; 4] = ["Info", "Counters", "JobDescriptor", "JobReply"];

/// The types of the crate, and their names in C.
const TYPES: [(&str, &str); 2] = [
    ("HmmDevice", "hmm_device"),
    ("HmmMigration", "hmm_migration"),
];

const TOP: &str = "\
/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */";

const INTRODUCTION: &str = "
/**
 * DOC: libhmm, for programs that use a virtio-hmm accelerator
 *
 * The accelerator works on the program's own addresses: any pointer that is
 * valid in the process is valid on the device. Nothing is registered, pinned or
 * copied beforehand.
 *
 * A function that can fail returns a negative errno, and leaves the variable
 * errno alone. Each function's documentation has the values that it returns;
 * any of them returns -EFAULT for a pointer that must not be NULL. Functions
 * may be called from any thread. A signal interrupts hmm_wait() and
 * hmm_wait_any() alone, with -EINTR.
 *
 * Structures that are called virtio_hmm_* are those of the driver, in
 * virtio_hmm.h. Those of jobs and their replies are little-endian.
 */";

/// Writes the header.
///
/// # Errors
///
/// When the source cannot be read, or has what cbindgen cannot express in C.
pub fn write(crate_source: &Path) -> Result<String> {
    let mut config = Config {
        language: Language::C,
        style: Style::Tag,
        header: Some(TOP.to_owned()),
        autogen_warning: Some(format!(
            "/* Generated from guest/c/src by \"{REFRESH}\"; do not edit. */"
        )),
        include_guard: Some("HMM_H".to_owned()),
        no_includes: true,
        after_includes: Some(format!(
            "#include <stddef.h>\n#include <stdint.h>\n\n#include <virtio_hmm.h>\n{INTRODUCTION}"
        )),
        cpp_compat: true,
        documentation_style: DocumentationStyle::Doxy,
        usize_is_size_t: true,
        tab_width: 8,
        line_length: 80,
        ..Config::default()
    };
    for name in OF_UAPI {
        let name_in_c = format!("struct {}", tag(name));
        config.export.rename.insert(name.to_owned(), name_in_c);
    }
    for (name, name_in_c) in TYPES {
        config
            .export
            .rename
            .insert(name.to_owned(), name_in_c.to_owned());
    }
    // From there, cbindgen finds the modules by itself.
    let bindings = Builder::new()
        .with_config(config)
        .with_src(crate_source.join("lib.rs"))
        .generate()
        .with_context(|| format!("reading the functions in {}", crate_source.display()))?;
    let mut text = Vec::new();
    bindings.write(&mut text);
    String::from_utf8(text).context("cbindgen writes text")
}

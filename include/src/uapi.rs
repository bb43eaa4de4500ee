//! The header of the ioctls, `virtio_hmm.h`, in the style of the kernel's uapi headers.
//!
//! It has all of `spec/src/uapi/mod.rs`, and of `spec/src/wire` what a program needs.

use std::fmt::Write;

use anyhow::{Context, Result};
use syn::Type;

use crate::comment::{paragraphs, plain, translate, Comment};
use crate::expression::expression;
use crate::names::{constant, tag, Names};
use crate::selection::{
    enumeration, names, rust_name, structures, References, BITS, ENUMERATIONS, OPERATION,
};
use crate::source::{Constant, Definitions, Doc, Enumeration, Field, Module, Operation, Structure};
use crate::REFRESH;

/// The module that is no part of this header, nor the paragraphs about it.
const ELSEWHERE: &str = "[`dmirror`]";

const TOP: &str = "\
/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
";

/// Writes the header.
///
/// # Errors
///
/// When a definition has a type or an expression that C lacks, or its documentation refers to what
/// the header does not have.
pub fn write(definitions: &Definitions) -> Result<String> {
    let names = names(definitions, &KernelDoc)?;
    let writer = Writer {
        definitions,
        names,
        text: TOP.to_owned(),
    };
    writer.header()
}

/// The marks of the kernel's documentation tools.
struct KernelDoc;

impl References for KernelDoc {
    fn constant(&self, words: &[&str]) -> String {
        format!("%{}", constant(words))
    }

    fn constants(&self, prefix: &str) -> String {
        format!("{}_*", constant(&[prefix]))
    }

    fn enumeration(&self, name: &str) -> String {
        format!("&enum {}", tag(name))
    }

    fn value(&self, enumeration: &str, name: &str) -> String {
        self.constant(&[enumeration, name])
    }

    fn structure(&self, name: &str) -> String {
        format!("&struct {}", tag(name))
    }

    fn field(&self, structure: &str, name: &str) -> String {
        format!("&{}.{name}", tag(structure))
    }
}

struct Writer<'a> {
    definitions: &'a Definitions,
    names: Names,
    text: String,
}

impl Writer<'_> {
    fn header(mut self) -> Result<String> {
        let uapi = self.definitions.module("uapi")?;
        self.top(uapi)?;
        for it in &uapi.constants {
            self.constant(it, &[])?;
        }
        let job = &self.definitions.module("job")?.constants;
        for it in job {
            self.constant(it, &[])?;
        }
        for (name, prefix) in BITS {
            self.bits(name, prefix)?;
        }
        for name in ENUMERATIONS {
            self.enumeration(enumeration(self.definitions, name)?)?;
        }
        self.operations()?;
        for it in structures(self.definitions)? {
            self.structure(it)?;
        }
        self.calls(uapi)?;
        self.text.push_str("\n#endif /* _UAPI_VIRTIO_HMM_H */\n");
        Ok(self.text)
    }

    /// What the whole header is, and its beginning.
    fn top(&mut self, uapi: &Module) -> Result<()> {
        let mut comment = Comment::new("");
        comment.add(
            "",
            "",
            "DOC: virtio-hmm, an accelerator that follows the pointers of a process",
        );
        let is_row = |line: &String| line.starts_with('|');
        for lines in uapi.doc.split(String::is_empty) {
            if lines.is_empty() || lines.iter().any(|line| line.contains(ELSEWHERE)) {
                continue;
            }
            if !lines.iter().all(is_row) {
                comment.paragraphs(&paragraphs(lines, &self.names, &[])?);
                continue;
            }
            comment.gap().add("", "", "A call that fails sets errno:");
            // After the title and the line below it.
            for line in lines.iter().skip(2) {
                let (name, meaning) = line
                    .trim_matches('|')
                    .split_once('|')
                    .with_context(|| format!("a row has two cells: {line}"))?;
                let name = translate(name.trim(), &self.names, &[])?;
                let meaning = translate(meaning.trim(), &self.names, &[])?;
                comment
                    .gap()
                    .add("", "", &name)
                    .add("    ", "    ", &meaning);
            }
        }
        let comment = comment.end();
        write!(
            self.text,
            "/* Generated from spec/src by \"{REFRESH}\"; do not edit. */\n\
             #ifndef _UAPI_VIRTIO_HMM_H\n\
             #define _UAPI_VIRTIO_HMM_H\n\
             \n\
             #include <linux/ioctl.h>\n\
             #include <linux/types.h>\n\
             \n\
             {comment}"
        )?;
        Ok(())
    }

    fn constant(&mut self, it: &Constant, prefix: &[&str]) -> Result<()> {
        // What follows the first paragraph is for the device's and the driver's developers.
        let first = it.doc.split(String::is_empty).next().unwrap_or_default();
        let doc = paragraphs(first, &self.names, &[])?.join(" ");
        let value = value(it, prefix).with_context(|| format!("the value of {}", it.name))?;
        write!(self.text, "\n{}", plain(&doc))?;
        self.define(&constant(&[prefix, &[&it.name]].concat()), &value)
    }

    fn define(&mut self, name: &str, value: &str) -> Result<()> {
        let tabs = "\t".repeat((40_usize.saturating_sub(8 + name.len())).div_ceil(8).max(1));
        let parts = value.matches(" | ").count();
        if parts > 1 {
            let value = value.replace(" | ", " | \\\n\t ");
            writeln!(self.text, "#define {name} \\\n\t{value}")?;
        } else {
            writeln!(self.text, "#define {name}{tabs}{value}")?;
        }
        Ok(())
    }

    /// The constants of a module that are bits of one number.
    fn bits(&mut self, name: &str, prefix: &str) -> Result<()> {
        let module = self.definitions.module(name)?;
        let title = paragraphs(&module.doc, &self.names, &[])?.join(" ");
        write!(self.text, "\n{}", plain(&title))?;
        for it in &module.constants {
            self.constant(it, &[prefix])?;
        }
        Ok(())
    }

    fn enumeration(&mut self, it: &Enumeration) -> Result<()> {
        let doc = paragraphs(&it.doc, &self.names, &[])?;
        let mut comment = self.described("enum", &it.name, &doc);
        let mut body = String::new();
        for value in &it.values {
            let name = constant(&[&it.name, &value.name]);
            let doc = paragraphs(&value.doc, &self.names, &[])?.join(" ");
            comment.add(&format!("@{name}: "), "    ", &doc);
            writeln!(body, "\t{name} = {},", value.number)?;
        }
        comment.paragraphs(doc.get(1..).unwrap_or_default());
        let tag = tag(&it.name);
        write!(self.text, "\n{}enum {tag} {{\n{body}}};\n", comment.end())?;
        Ok(())
    }

    fn operations(&mut self) -> Result<()> {
        let module = self.definitions.module("operation")?;
        let descriptor = self.names.link("JobDescriptor::operation")?;
        let title = format!("What a job does: {descriptor}, with its arguments in order.");
        let mut comment = self.described("enum", OPERATION, &[title]);
        let notes = self.notes_on_operations(&module.doc)?;
        comment.paragraphs(&notes);
        let mut body = String::new();
        for it in &module.operations {
            self.operation(it, &mut body)?;
        }
        let tag = tag(OPERATION);
        write!(self.text, "\n{}enum {tag} {{\n{body}}};\n", comment.end())?;
        Ok(())
    }

    /// What the module says of all operations: its last paragraph. Those before are about its types.
    fn notes_on_operations(&self, doc: &Doc) -> Result<Vec<String>> {
        let last = doc.split(String::is_empty).next_back().unwrap_or_default();
        paragraphs(last, &self.names, &[])
    }

    fn operation(&self, it: &Operation, body: &mut String) -> Result<()> {
        let name = constant(&[OPERATION, &it.name]);
        let mut comment = Comment::new("\t");
        let doc = paragraphs(&it.doc, &self.names, &[])?;
        comment.add(&format!("@{name}: "), "", &doc.join(" "));
        comment.gap();
        for (index, argument) in it.arguments.iter().enumerate() {
            let doc = paragraphs(&argument.doc, &self.names, &[])?.join(" ");
            let kind = argument_type(&argument.kind, &self.names)?;
            comment.add(
                &format!("{index}. ``{}``{kind}: ", argument.name),
                "   ",
                &doc,
            );
        }
        if !body.is_empty() {
            body.push('\n');
        }
        writeln!(body, "{}\t{name} = {},", comment.end(), it.code)?;
        Ok(())
    }

    fn structure(&mut self, it: &Structure) -> Result<()> {
        let fields: Vec<_> = it.fields.iter().map(|field| field.name.as_str()).collect();
        let doc = paragraphs(&it.doc, &self.names, &fields)?;
        let mut comment = self.described("struct", &it.name, &doc);
        let mut body = String::new();
        for field in &it.fields {
            let doc = paragraphs(&field.doc, &self.names, &fields)?.join(" ");
            comment.add(&format!("@{}: ", field.name), "    ", &doc);
            writeln!(body, "\t{};", declaration(field)?)?;
        }
        comment.paragraphs(doc.get(1..).unwrap_or_default());
        let tag = tag(&it.name);
        write!(self.text, "\n{}struct {tag} {{\n{body}}};\n", comment.end())?;
        Ok(())
    }

    /// A comment that begins with a definition's name and the first paragraph about it.
    fn described(&self, keyword: &str, name: &str, doc: &[String]) -> Comment {
        let mut comment = Comment::new("");
        let brief = doc.first().map_or("", |first| first.trim_end_matches('.'));
        comment.add(&format!("{keyword} {} - ", tag(name)), "    ", brief);
        comment
    }

    fn calls(&mut self, uapi: &Module) -> Result<()> {
        let what = "The calls. Each passes its structure both ways.";
        write!(self.text, "\n{}", plain(what))?;
        for (number, name) in &uapi.calls {
            let name = name.to_string();
            let kind = constant(&["IOCTL_TYPE"]);
            let value = format!("_IOWR({kind}, {number}, struct {})", tag(&name));
            self.define(&constant(&["IOC", &name]), &value)?;
        }
        Ok(())
    }
}

/// A field as C declares it.
fn declaration(field: &Field) -> Result<String> {
    let name = &field.name;
    let text = match &field.kind {
        Type::Array(array) => {
            let length = expression(&array.len, &|name| constant(&[name]), "")?;
            format!("{} {name}[{length}]", c_type(&array.elem)?)
        }
        kind => format!("{} {name}", c_type(kind)?),
    };
    Ok(text)
}

fn c_type(kind: &Type) -> Result<String> {
    let name = rust_name(kind).context("a field is a number, a structure or an array of them")?;
    Ok(match name.as_str() {
        "U16" => "__le16".to_owned(),
        "U32" => "__le32".to_owned(),
        "U64" => "__le64".to_owned(),
        "u8" | "u16" | "u32" | "u64" => format!("__{name}"),
        "i32" | "i64" => format!("__s{}", &name[1..]),
        structure => format!("struct {}", tag(structure)),
    })
}

/// What documentation says of an argument that is not a plain number of 64 bits.
fn argument_type(kind: &Type, names: &Names) -> Result<String> {
    let name = rust_name(kind).context("an argument has a simple type")?;
    Ok(match name.as_str() {
        "u64" => String::new(),
        "f32" => " (the bits of a float)".to_owned(),
        "f64" => " (the bits of a double)".to_owned(),
        other => format!(" ({})", names.link(other)?),
    })
}

/// The value of a constant in C, in parentheses if it is more than one word.
fn value(it: &Constant, prefix: &[&str]) -> Result<String> {
    let suffix = match rust_name(&it.kind).as_deref() {
        Some("u64") => "ULL",
        Some("u32") => "U",
        _ => "",
    };
    let name = |name: &str| constant(&[prefix, &[name]].concat());
    let value = expression(&it.value, &name, suffix)?;
    let is_word = !value.contains(' ');
    Ok(if is_word { value } else { format!("({value})") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value_of(text: &str) -> Result<String> {
        let constant: syn::ItemConst = syn::parse_str(text).unwrap();
        let constant = Constant {
            doc: Doc::new(),
            name: constant.ident.to_string(),
            kind: *constant.ty,
            value: *constant.expr,
        };
        value(&constant, &["PAGE"])
    }

    #[test]
    fn a_value_has_its_type() {
        let cases = [
            ("const A: u32 = 16;", "16U"),
            ("const A: u64 = 1 << 18;", "(1ULL << 18)"),
            ("const A: u8 = 0b11;", "0x3"),
            (
                "const A: u32 = READ | WRITE;",
                "(VIRTIO_HMM_PAGE_READ | VIRTIO_HMM_PAGE_WRITE)",
            ),
        ];
        for (rust, c) in cases {
            assert_eq!(value_of(rust).unwrap(), c, "{rust}");
        }
    }

    #[test]
    fn a_field_of_a_type_that_c_lacks_is_an_error() {
        let field = |text| Field {
            doc: Doc::new(),
            name: "it".to_owned(),
            kind: syn::parse_str(text).unwrap(),
        };
        assert_eq!(declaration(&field("i64")).unwrap(), "__s64 it");
        assert_eq!(declaration(&field("[U64; 4]")).unwrap(), "__le64 it[4]");
        assert_eq!(
            declaration(&field("[U64; MAX_ARGUMENTS]")).unwrap(),
            "__le64 it[VIRTIO_HMM_MAX_ARGUMENTS]"
        );
        assert!(declaration(&field("(u8, u8)")).is_err());
        assert!(declaration(&field("&'static str")).is_err());
    }
}

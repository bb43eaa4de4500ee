//! The definitions as a module of Python, `_uapi.py`: structures of ctypes, enumerations and numbers.

use std::fmt::Write;

use anyhow::{Context, Result};
use syn::Type;

use crate::comment::{paragraphs, wrap};
use crate::expression::expression;
use crate::names::{snake, Names};
use crate::selection::{
    enumeration, names, rust_name, structures, References, BITS, ENUMERATIONS, OPERATION,
};
use crate::source::{Constant, Definitions, Enumeration, Structure};
use crate::REFRESH;

/// The greatest width of a line.
const WIDTH: usize = 100;

/// Writes the module.
///
/// # Errors
///
/// When a definition has a type or an expression that Python lacks, or its documentation refers to
/// what the module does not have.
pub fn write(definitions: &Definitions) -> Result<String> {
    let names = names(definitions, &Plain)?;
    let writer = Writer {
        definitions,
        names,
        text: String::new(),
    };
    writer.module()
}

/// Names as a reader of Python knows them.
struct Plain;

impl References for Plain {
    fn constant(&self, words: &[&str]) -> String {
        capitals(words)
    }

    fn constants(&self, prefix: &str) -> String {
        format!("{prefix}_*")
    }

    fn enumeration(&self, name: &str) -> String {
        name.to_owned()
    }

    fn value(&self, enumeration: &str, name: &str) -> String {
        format!("{enumeration}.{}", capitals(&[name]))
    }

    fn structure(&self, name: &str) -> String {
        name.to_owned()
    }

    fn field(&self, structure: &str, name: &str) -> String {
        format!("{structure}.{name}")
    }
}

fn capitals(words: &[&str]) -> String {
    let words: Vec<_> = words.iter().map(|word| snake(word)).collect();
    words.join("_").to_uppercase()
}

struct Writer<'a> {
    definitions: &'a Definitions,
    names: Names,
    text: String,
}

impl Writer<'_> {
    fn module(mut self) -> Result<String> {
        write!(
            self.text,
            "# Generated from spec/src by \"{REFRESH}\"; do not edit.\n\
             \"\"\"The interface between a program and the driver: its structures and numbers.\n\n\
             It knows layouts and values, and calls nothing.\n\"\"\"\n\n\
             from __future__ import annotations\n\n\
             import ctypes\n\
             import enum\n\n"
        )?;
        for it in &self.definitions.module("uapi")?.constants {
            self.constant(it, &[])?;
        }
        for it in &self.definitions.module("job")?.constants {
            self.constant(it, &[])?;
        }
        for (module, prefix) in BITS {
            for it in &self.definitions.module(module)?.constants {
                self.constant(it, &[prefix])?;
            }
        }
        for name in ENUMERATIONS {
            self.enumeration(enumeration(self.definitions, name)?)?;
        }
        self.operations()?;
        for it in structures(self.definitions)? {
            self.structure(it)?;
        }
        Ok(self.text)
    }

    fn constant(&mut self, it: &Constant, prefix: &[&str]) -> Result<()> {
        let first = it.doc.split(String::is_empty).next().unwrap_or_default();
        self.comment("", first)?;
        let name = |name: &str| capitals(&[prefix, &[name]].concat());
        let value = expression(&it.value, &name, "")
            .with_context(|| format!("the value of {}", it.name))?;
        writeln!(self.text, "{} = {value}", name(&it.name))?;
        Ok(())
    }

    fn enumeration(&mut self, it: &Enumeration) -> Result<()> {
        write!(self.text, "\n\nclass {}(enum.IntEnum):\n", it.name)?;
        self.docstring(&it.doc)?;
        for value in &it.values {
            self.comment("    ", &value.doc)?;
            writeln!(
                self.text,
                "    {} = {}",
                capitals(&[&value.name]),
                value.number
            )?;
        }
        Ok(())
    }

    fn operations(&mut self) -> Result<()> {
        let operations = &self.definitions.module("operation")?.operations;
        let doc = ["What a job does.".to_owned()];
        write!(self.text, "\n\nclass {OPERATION}(enum.IntEnum):\n")?;
        self.docstring(&doc)?;
        for it in operations {
            self.comment("    ", &it.doc)?;
            writeln!(self.text, "    {} = {}", capitals(&[&it.name]), it.code)?;
        }
        write!(
            self.text,
            "\n\n#: The arguments of each operation in order: name and type.\n\
             ARGUMENTS: dict[Operation, tuple[tuple[str, str], ...]] = {{\n"
        )?;
        for it in operations {
            writeln!(self.text, "    {OPERATION}.{}: (", capitals(&[&it.name]))?;
            for argument in &it.arguments {
                let kind = rust_name(&argument.kind).context("an argument has a simple type")?;
                writeln!(self.text, "        (\"{}\", \"{kind}\"),", argument.name)?;
            }
            self.text.push_str("    ),\n");
        }
        self.text.push_str("}\n");
        Ok(())
    }

    fn structure(&mut self, it: &Structure) -> Result<()> {
        // The structures of jobs and counters come from the device, whose order of bytes is fixed.
        let is_little = it.fields.iter().any(|field| is_little_endian(&field.kind));
        let base = match is_little {
            true => "LittleEndianStructure",
            false => "Structure",
        };
        write!(self.text, "\n\nclass {}(ctypes.{base}):\n", it.name)?;
        self.docstring(&it.doc)?;
        for field in &it.fields {
            self.comment("    ", &field.doc)?;
            let python = match &field.kind {
                Type::Array(_) => "ctypes.Array[ctypes.c_uint64]".to_owned(),
                kind => match rust_name(kind) {
                    Some(name) if is_structure(&name) => name,
                    _ => "int".to_owned(),
                },
            };
            writeln!(self.text, "    {}: {python}", field.name)?;
        }
        self.text.push_str("    _fields_ = [\n");
        for field in &it.fields {
            writeln!(
                self.text,
                "        (\"{}\", {}),",
                field.name,
                ctype(&field.kind)?
            )?;
        }
        self.text.push_str("    ]\n");
        Ok(())
    }

    /// A comment that documentation tools read, before what it is about.
    fn comment(&mut self, indent: &str, doc: &[String]) -> Result<()> {
        let text = paragraphs(doc, &self.names, &[])?.join(" ");
        self.wrapped(&format!("{indent}#: "), &text)
    }

    fn docstring(&mut self, doc: &[String]) -> Result<()> {
        let paragraphs = paragraphs(doc, &self.names, &[])?;
        let is_short = paragraphs.len() == 1 && paragraphs[0].len() + 10 <= WIDTH;
        let first = paragraphs.first().map_or("", String::as_str);
        if is_short {
            write!(self.text, "    \"\"\"{first}\"\"\"\n\n")?;
            return Ok(());
        }
        self.wrapped_after("    \"\"\"", "    ", first)?;
        for paragraph in paragraphs.iter().skip(1) {
            self.text.push('\n');
            self.wrapped("    ", paragraph)?;
        }
        self.text.push_str("    \"\"\"\n\n");
        Ok(())
    }

    fn wrapped(&mut self, start: &str, text: &str) -> Result<()> {
        self.wrapped_after(start, start, text)
    }

    fn wrapped_after(&mut self, first: &str, rest: &str, text: &str) -> Result<()> {
        // The marks of C's documentation mean nothing here.
        let text = text.replace("``", "\"").replace('%', "");
        self.text.push_str(&wrap(&text, first, rest, WIDTH));
        Ok(())
    }
}

fn is_little_endian(kind: &Type) -> bool {
    match kind {
        Type::Array(array) => is_little_endian(&array.elem),
        kind => rust_name(kind).is_some_and(|name| matches!(&*name, "U16" | "U32" | "U64")),
    }
}

/// Whether a type's name is that of a structure, and not of a number.
fn is_structure(name: &str) -> bool {
    number(name).is_none()
}

/// The type of ctypes for a number.
fn number(name: &str) -> Option<&'static str> {
    Some(match name {
        "u8" => "ctypes.c_uint8",
        "u16" | "U16" => "ctypes.c_uint16",
        "u32" | "U32" => "ctypes.c_uint32",
        "u64" | "U64" => "ctypes.c_uint64",
        "i32" => "ctypes.c_int32",
        "i64" => "ctypes.c_int64",
        _ => return None,
    })
}

fn ctype(kind: &Type) -> Result<String> {
    if let Type::Array(array) = kind {
        let length = expression(&array.len, &|name| capitals(&[name]), "")?;
        return Ok(format!("{} * {length}", ctype(&array.elem)?));
    }
    let name = rust_name(kind).context("a field is a number, a structure or an array of them")?;
    Ok(number(&name).map_or(name, str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_become_those_of_ctypes() {
        let of = |text| ctype(&syn::parse_str(text).unwrap());
        assert_eq!(of("i64").unwrap(), "ctypes.c_int64");
        assert_eq!(
            of("[U64; MAX_ARGUMENTS]").unwrap(),
            "ctypes.c_uint64 * MAX_ARGUMENTS"
        );
        assert_eq!(of("JobReply").unwrap(), "JobReply");
        assert!(of("(u8, u8)").is_err());
    }

    #[test]
    fn the_order_of_bytes_is_that_of_the_fields() {
        let of = |text| is_little_endian(&syn::parse_str(text).unwrap());
        assert!(of("U32") && of("[U64; 4]"));
        assert!(!of("u32") && !of("JobReply"));
    }
}

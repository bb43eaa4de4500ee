//! The definitions of the crate `virtio-hmm-spec`, read from its source with their documentation.
//!
//! It knows the macros that define them, and nothing of C.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use syn::parse::{Parse, ParseStream};
use syn::{braced, Attribute, Expr, Ident, Item, Lit, LitInt, Meta, Token, Type, Visibility};

/// The files that are read: the module's name, and its file below the source directory.
const FILES: [(&str, &str); 8] = [
    ("uapi", "uapi/mod.rs"),
    ("wire", "wire/mod.rs"),
    ("command", "wire/command.rs"),
    ("config", "wire/config.rs"),
    ("fault", "wire/fault.rs"),
    ("job", "wire/job.rs"),
    ("operation", "wire/operation.rs"),
    ("statistics", "wire/statistics.rs"),
];

/// The lines of a documentation comment.
pub type Doc = Vec<String>;

/// What a source file, or an inline module, defines.
#[derive(Debug, Default)]
pub struct Module {
    /// Its own documentation.
    pub doc: Doc,
    /// Its public constants that are numbers, in order.
    pub constants: Vec<Constant>,
    /// Its structures with a fixed layout, in order.
    pub structures: Vec<Structure>,
    /// Its sets of values, in order.
    pub enumerations: Vec<Enumeration>,
    /// What a job can do, in order.
    pub operations: Vec<Operation>,
    /// The numbers and the structures of ioctls.
    pub calls: Vec<(LitInt, Ident)>,
}

/// A constant.
#[derive(Debug)]
pub struct Constant {
    /// What it is.
    pub doc: Doc,
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: Type,
    /// Its value as in the source.
    pub value: Expr,
}

/// A field of a structure, or an argument of an operation.
#[derive(Debug)]
pub struct Field {
    /// What it is.
    pub doc: Doc,
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: Type,
}

/// A structure.
#[derive(Debug)]
pub struct Structure {
    /// What it is.
    pub doc: Doc,
    /// Its name.
    pub name: String,
    /// Its fields in order.
    pub fields: Vec<Field>,
}

/// A set of values.
#[derive(Debug)]
pub struct Enumeration {
    /// What it is.
    pub doc: Doc,
    /// Its name.
    pub name: String,
    /// Its values in order.
    pub values: Vec<Value>,
}

/// A named value.
#[derive(Debug)]
pub struct Value {
    /// What it means.
    pub doc: Doc,
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: LitInt,
}

/// What a job can do.
#[derive(Debug)]
pub struct Operation {
    /// What it does.
    pub doc: Doc,
    /// Its code.
    pub code: LitInt,
    /// Its name.
    pub name: String,
    /// Its arguments in order.
    pub arguments: Vec<Field>,
}

/// The modules by name; those within files, too.
#[derive(Debug)]
pub struct Definitions(BTreeMap<String, Module>);

impl Definitions {
    /// Reads the source directory of the crate.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or a definition is not as the macros want it.
    pub fn read(source: &Path) -> Result<Self> {
        let mut modules = BTreeMap::new();
        for (name, file) in FILES {
            let path = source.join(file);
            let text =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            read_text(name, &text, &mut modules)
                .with_context(|| format!("reading the definitions in {}", path.display()))?;
        }
        Ok(Self(modules))
    }

    /// A module.
    ///
    /// # Errors
    ///
    /// When there is none of this name.
    pub fn module(&self, name: &str) -> Result<&Module> {
        self.0
            .get(name)
            .with_context(|| format!("the specification's crate has no module {name}"))
    }

    /// Every structure.
    pub fn structures(&self) -> impl Iterator<Item = &Structure> {
        self.0.values().flat_map(|module| &module.structures)
    }

    /// Every set of values.
    pub fn enumerations(&self) -> impl Iterator<Item = &Enumeration> {
        self.0.values().flat_map(|module| &module.enumerations)
    }
}

fn read_text(name: &str, text: &str, modules: &mut BTreeMap<String, Module>) -> Result<()> {
    let file = syn::parse_file(text)?;
    let module = Module::of(&file.attrs, file.items, modules)?;
    modules.insert(name.to_owned(), module);
    Ok(())
}

impl Module {
    fn of(
        attributes: &[Attribute],
        items: Vec<Item>,
        modules: &mut BTreeMap<String, Module>,
    ) -> Result<Self> {
        let mut module = Self {
            doc: doc(attributes),
            ..Self::default()
        };
        for item in items {
            match item {
                Item::Mod(inner) => {
                    if let Some((_, items)) = inner.content {
                        let content = Self::of(&inner.attrs, items, modules)?;
                        modules.insert(inner.ident.to_string(), content);
                    }
                }
                Item::Const(constant)
                    if matches!(constant.vis, Visibility::Public(_))
                        && !matches!(*constant.ty, Type::Reference(_)) =>
                {
                    module.constants.push(Constant {
                        doc: doc(&constant.attrs),
                        name: constant.ident.to_string(),
                        kind: *constant.ty,
                        value: *constant.expr,
                    });
                }
                Item::Macro(call) if call.mac.path.is_ident("layout") => {
                    module
                        .structures
                        .extend(structures(call.mac.parse_body()?)?);
                }
                Item::Macro(call) if call.mac.path.is_ident("values") => {
                    module.enumerations.push(call.mac.parse_body()?);
                }
                Item::Macro(call) if call.mac.path.is_ident("operations") => {
                    let List(operations) = call.mac.parse_body()?;
                    module.operations = operations;
                }
                Item::Macro(call) if call.mac.path.is_ident("calls") => {
                    let List(calls) = call.mac.parse_body()?;
                    module.calls = calls
                        .into_iter()
                        .map(|Call(code, name)| (code, name))
                        .collect();
                }
                _ => {}
            }
        }
        Ok(module)
    }
}

fn structures(body: syn::File) -> Result<Vec<Structure>> {
    let structures = body.items.into_iter().map(|item| {
        let Item::Struct(structure) = item else {
            anyhow::bail!("layout! holds something that is no structure");
        };
        let fields = structure.fields.into_iter().map(|field| {
            Ok(Field {
                doc: doc(&field.attrs),
                name: field.ident.context("a field has a name")?.to_string(),
                kind: field.ty,
            })
        });
        Ok(Structure {
            doc: doc(&structure.attrs),
            name: structure.ident.to_string(),
            fields: fields.collect::<Result<_>>()?,
        })
    });
    structures.collect()
}

/// Items one after the other, until the end.
struct List<T>(Vec<T>);

impl<T: Parse> Parse for List<T> {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut items = Vec::new();
        while !input.is_empty() {
            items.push(input.parse()?);
        }
        Ok(Self(items))
    }
}

/// `0 Info,`
struct Call(LitInt, Ident);

impl Parse for Call {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let call = Self(input.parse()?, input.parse()?);
        input.parse::<Token![,]>()?;
        Ok(call)
    }
}

/// `pub enum Name: u32 { Value = 1, }`
impl Parse for Enumeration {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let attributes = input.call(Attribute::parse_outer)?;
        input.parse::<Token![pub]>()?;
        input.parse::<Token![enum]>()?;
        let name: Ident = input.parse()?;
        input.parse::<Token![:]>()?;
        input.parse::<Type>()?;
        let values;
        braced!(values in input);
        let List(values) = values.parse()?;
        Ok(Self {
            doc: doc(&attributes),
            name: name.to_string(),
            values,
        })
    }
}

/// `Value = 1,`
impl Parse for Value {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let attributes = input.call(Attribute::parse_outer)?;
        let name: Ident = input.parse()?;
        input.parse::<Token![=]>()?;
        let number = input.parse()?;
        input.parse::<Token![,]>()?;
        Ok(Self {
            doc: doc(&attributes),
            name: name.to_string(),
            number,
        })
    }
}

/// `1 Fill { destination: u64, }`
impl Parse for Operation {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let attributes = input.call(Attribute::parse_outer)?;
        let code = input.parse()?;
        let name: Ident = input.parse()?;
        let arguments;
        braced!(arguments in input);
        let List(arguments) = arguments.parse()?;
        Ok(Self {
            doc: doc(&attributes),
            code,
            name: name.to_string(),
            arguments,
        })
    }
}

/// `argument: u64,`
impl Parse for Field {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let attributes = input.call(Attribute::parse_outer)?;
        let name: Ident = input.parse()?;
        input.parse::<Token![:]>()?;
        let kind = input.parse()?;
        input.parse::<Token![,]>()?;
        Ok(Self {
            doc: doc(&attributes),
            name: name.to_string(),
            kind,
        })
    }
}

/// The lines of documentation among attributes.
fn doc(attributes: &[Attribute]) -> Doc {
    let lines = attributes.iter().filter_map(|attribute| {
        let Meta::NameValue(pair) = &attribute.meta else {
            return None;
        };
        let Expr::Lit(literal) = &pair.value else {
            return None;
        };
        match &literal.lit {
            Lit::Str(text) if pair.path.is_ident("doc") => Some(text.value().trim().to_owned()),
            _ => None,
        }
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_macro_gives_its_definitions_with_their_words() {
        let text = r#"
            //! A module.
            calls! { 0 Ask, 7 Tell, }
            layout! {
                /// A question.
                pub struct Ask { /// What.
                    pub what: u32, pub more: [U64; 4], }
            }
            values! { /// An answer.
                pub enum Answer: u32 { /// Yes.
                    Yes = 1, /// No.
                    No = 2, } }
            operations! { /// Does it.
                3 Do { /// Where.
                    at: u64, kind: Answer, } }
            /// A limit.
            pub const MOST: u32 = 1 << 4;
            pub const NAMES: &[&str] = &[];
            const PRIVATE: u32 = 3;
            pub mod bits { /// One.
                pub const ONE: u8 = 0b1; }
        "#;
        let mut modules = BTreeMap::new();
        read_text("it", text, &mut modules).unwrap();
        let definitions = Definitions(modules);
        let it = definitions.module("it").unwrap();
        assert_eq!(it.doc, ["A module."]);
        let calls: Vec<_> = it
            .calls
            .iter()
            .map(|(number, name)| format!("{number} {name}"))
            .collect();
        assert_eq!(calls, ["0 Ask", "7 Tell"]);
        assert_eq!(it.structures[0].doc, ["A question."]);
        assert_eq!(it.structures[0].fields[0].doc, ["What."]);
        assert_eq!(it.structures[0].fields[1].name, "more");
        assert_eq!(it.enumerations[0].values[1].doc, ["No."]);
        assert_eq!(it.enumerations[0].values[1].number.base10_digits(), "2");
        assert_eq!(it.operations[0].code.base10_digits(), "3");
        assert_eq!(it.operations[0].arguments[1].name, "kind");
        let constants: Vec<_> = it.constants.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(
            constants,
            ["MOST"],
            "numbers that are public, and no others"
        );
        assert_eq!(definitions.module("bits").unwrap().constants[0].name, "ONE");
        assert!(definitions.module("other").is_err());
    }

    #[test]
    fn a_definition_in_another_form_is_an_error() {
        for text in [
            "layout! { fn f() {} }",
            "calls! { Ask 0, }",
            "values! { enum A { B = 1, } }",
        ] {
            let result = read_text("it", text, &mut BTreeMap::new());
            assert!(result.is_err(), "{text}");
        }
    }
}

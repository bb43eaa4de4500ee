//! The values of constants, as C and Python write them: numbers, names, `<<` and `|`.

use anyhow::{bail, Context, Result};
use syn::{BinOp, Expr, Lit};

/// An expression in the other language. `name` is what a constant is called there; `suffix` follows
/// each number, for its type.
pub(crate) fn expression(
    value: &Expr,
    name: &dyn Fn(&str) -> String,
    suffix: &str,
) -> Result<String> {
    let part = |value: &Expr| expression(value, name, suffix);
    Ok(match value {
        Expr::Lit(literal) => match &literal.lit {
            // Before C23, C has no binary numbers.
            Lit::Int(number) if number.to_string().starts_with("0b") => {
                format!("{:#x}{suffix}", number.base10_parse::<u64>()?)
            }
            Lit::Int(number) => format!("{number}{suffix}"),
            _ => bail!("the literal is no number"),
        },
        Expr::Binary(binary) => {
            // What is moved has a type, the distance needs none.
            let (left, right) = (part(&binary.left)?, &binary.right);
            match binary.op {
                BinOp::Shl(_) => format!("{left} << {}", expression(right, name, "")?),
                BinOp::BitOr(_) => format!("{left} | {}", part(right)?),
                _ => bail!("an operator that is neither << nor |"),
            }
        }
        Expr::Path(path) => {
            let constant = path.path.get_ident();
            name(&constant.context("a constant has a plain name")?.to_string())
        }
        _ => bail!("an expression that is neither a number, a name nor made of these"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, suffix: &str) -> Result<String> {
        let name = |name: &str| format!("PAGE_{name}");
        expression(&syn::parse_str(text).unwrap(), &name, suffix)
    }

    #[test]
    fn a_value_keeps_its_form() {
        assert_eq!(of("16", "U").unwrap(), "16U");
        assert_eq!(of("1 << 18", "ULL").unwrap(), "1ULL << 18");
        assert_eq!(of("0b11", "").unwrap(), "0x3");
        assert_eq!(of("0xD6", "").unwrap(), "0xD6");
        assert_eq!(of("READ | WRITE", "U").unwrap(), "PAGE_READ | PAGE_WRITE");
    }

    #[test]
    fn what_the_other_language_lacks_is_an_error() {
        for text in ["f(3)", "1 + 2", "1.0", "a::B"] {
            assert!(of(text, "").is_err(), "{text}");
        }
    }
}

//! Sizes on a command line.

/// A number with an optional suffix K, M or G.
///
/// # Errors
///
/// When it is no number, or zero, or too large.
pub fn parse(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: usize = digits
        .parse()
        .map_err(|_| "not a number such as 64M".to_owned())?;
    match number.checked_mul(1 << shift) {
        Some(0) => Err("it must be at least one".into()),
        Some(size) => Ok(size),
        None => Err("too large".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes_and_are_never_zero() {
        assert_eq!(parse("7"), Ok(7));
        assert_eq!(parse("2k"), Ok(2048));
        assert_eq!(parse("3G"), Ok(3 << 30));
        for wrong in ["", "K", "0", "-1", "1T", "99999999999G"] {
            assert!(parse(wrong).is_err(), "{wrong} was taken for a size");
        }
    }
}

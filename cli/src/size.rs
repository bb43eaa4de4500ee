//! Sizes on a command line.

use parse_size::{Config, Error};

/// The suffixes, the largest first, with their powers of two.
const SUFFIXES: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];

/// A number with an optional suffix K, M, G or T, each a power of 1024: `4096`, `64M`, `1.5G`.
///
/// # Errors
///
/// When it is no such number, or zero, or too large for the type.
pub fn parse<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let size = Config::new()
        .with_binary()
        .parse_size(text)
        .map_err(|error| match error {
            Error::PosOverflow => "it is too large".to_owned(),
            _ => "a size is a number such as 4096, 64M or 1.5G; K, M, G and T are powers of 1024"
                .to_owned(),
        })?;
    if size == 0 {
        return Err("it must be more than zero".to_owned());
    }
    T::try_from(size).map_err(|_| "it is too large".to_owned())
}

/// A size as [`parse`] reads it, exact, with the largest suffix that leaves a whole number.
#[must_use]
pub fn write(size: u64) -> String {
    let suffix = SUFFIXES
        .into_iter()
        .find(|(_, shift)| size != 0 && size % (1 << shift) == 0);
    match suffix {
        Some((suffix, shift)) => format!("{}{suffix}", size >> shift),
        None => size.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024_in_either_case() {
        let sizes = [
            ("7", 7),
            ("4096", 4096),
            ("2k", 2 << 10),
            ("64M", 64 << 20),
            ("1g", 1 << 30),
            ("4T", 4 << 40),
            ("1.5G", 3 << 29),
            ("2GiB", 2 << 30),
            ("2GB", 2 << 30),
        ];
        for (text, size) in sizes {
            assert_eq!(parse::<u64>(text), Ok(size), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in ["", "K", "-1", "many", "1X", "99999999999999999999", "17E"] {
            let error = parse::<u64>(text).unwrap_err();
            assert!(
                error.contains("64M") || error.contains("too large"),
                "{text}: {error}"
            );
        }
        assert!(parse::<u64>("0").is_err(), "nothing is no size");
        assert!(parse::<u32>("4G").is_err(), "the type is too small");
    }

    #[test]
    fn a_size_is_read_as_it_is_written() {
        for size in [1, 1000, 1024, 3 << 20, (1 << 30) + 1, 5 << 40] {
            assert_eq!(parse::<u64>(&write(size)), Ok(size));
        }
        assert_eq!(write(64 << 20), "64M");
        assert_eq!(write(1536 << 20), "1536M");
        assert_eq!(write(0), "0");
    }
}

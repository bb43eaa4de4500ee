//! What the configuration space says and is not so, on purpose: a driver must refuse a device that
//! it cannot use, and ignore what it does not know.
//!
//! It does not know what such a device does afterwards: it does what it always does.

use std::fmt;
use std::str::FromStr;

use virtio_hmm_spec::wire::config::Config;
use zerocopy::little_endian::{U32, U64};

/// A field of the configuration space with another value than the device's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misreport {
    /// [`Config::magic`].
    Magic(u32),
    /// [`Config::version`].
    Version(u32),
    /// [`Config::capabilities`]: these bits are set as well.
    Capabilities(u64),
}

impl Misreport {
    /// Changes the field.
    pub fn apply(self, config: &mut Config) {
        match self {
            Self::Magic(magic) => config.magic = U32::new(magic),
            Self::Version(version) => config.version = U32::new(version),
            Self::Capabilities(bits) => config.capabilities |= U64::new(bits),
        }
    }
}

/// Why a text is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use magic=N, version=N or capabilities=N; N is a number, with 0x if it is hexadecimal")]
pub struct Unclear;

impl FromStr for Misreport {
    type Err = Unclear;

    fn from_str(text: &str) -> Result<Self, Unclear> {
        let (field, value) = text.split_once('=').ok_or(Unclear)?;
        let value = match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => value.parse(),
        };
        let value = value.map_err(|_| Unclear)?;
        let short = || u32::try_from(value).map_err(|_| Unclear);
        Ok(match field {
            "magic" => Self::Magic(short()?),
            "version" => Self::Version(short()?),
            "capabilities" => Self::Capabilities(value),
            _ => return Err(Unclear),
        })
    }
}

impl fmt::Display for Misreport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(magic) => write!(f, "magic={magic:#x}"),
            Self::Version(version) => write!(f, "version={version}"),
            Self::Capabilities(bits) => write!(f, "capabilities={bits:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn a_text_is_one_field_and_its_value() {
        for text in [
            "magic=0x5a5a5a5a",
            "version=2",
            "capabilities=0x8000000000000000",
        ] {
            assert_eq!(text.parse::<Misreport>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "version",
            "version=",
            "version=-1",
            "magic=0x1_0",
            "engines=1",
        ] {
            assert_eq!(text.parse::<Misreport>(), Err(Unclear), "{text}");
        }
        assert_eq!("magic=0x100000000".parse::<Misreport>(), Err(Unclear));
    }

    #[test]
    fn a_misreport_changes_its_field_only() {
        let mut config = Config::new_zeroed();
        config.capabilities = U64::new(1);
        Misreport::Capabilities(1 << 63).apply(&mut config);
        assert_eq!(config.capabilities.get(), 1 | 1 << 63);
        Misreport::Version(7).apply(&mut config);
        assert_eq!((config.version.get(), config.magic.get()), (7, 0));
    }
}

//! A stock kernel's image without its compression, as QEMU can start it directly (PVH).
//!
//! An emulated processor needs 2 to 3 s to decompress the image, each time that a machine starts.
//! Without the image's own first steps, the kernel does not switch to page tables of five levels: the
//! stock kernel's tests run on four, those of the debug kernel on five.
//! This file knows the header of a bzImage (the kernel's `Documentation/arch/x86/boot.rst`).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};

use crate::setup::cache::Recipe;
use crate::setup::progress;
use crate::setup::release::Release;
use crate::setup::toolbox::Toolbox;

/// Decompresses a part of a file. `zstd` ignores what `tail` cannot write any more.
const DECOMPRESS: &str =
    "tail -c \"+$(($3 + 1))\" \"$1\" | head -c \"$4\" | zstd -dc > \"$2/vmlinux\"";

/// How a payload begins that Zstandard has compressed (RFC 8878).
const ZSTANDARD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The first bytes of an executable.
const ELF: &[u8] = b"\x7fELF";

/// The image, decompressed if it is not there yet.
pub(crate) fn prepare(toolbox: &Toolbox, release: &Release) -> Result<PathBuf> {
    let packed = toolbox.path(release.image());
    let recipe = Recipe::new("boot-image")
        .with(&release.name)
        .with(DECOMPRESS);
    let entry = toolbox.builds().entry(&recipe, |partial| {
        let image = fs::read(&packed).with_context(|| format!("reading {}", packed.display()))?;
        let payload = Payload::of(&image)
            .with_context(|| format!("{} is not an image as expected", packed.display()))?;
        let (source, target) = (toolbox.inside(&packed)?, toolbox.inside(partial)?);
        let (offset, length) = (payload.offset.to_string(), payload.length.to_string());
        let arguments = [
            source.as_os_str(),
            target.as_os_str(),
            offset.as_ref(),
            length.as_ref(),
        ];
        progress::run(
            "decompressing a stock kernel",
            &mut toolbox.script(DECOMPRESS, arguments),
            &toolbox.log("boot-image"),
        )?
        .check()?;
        check(&partial.join("vmlinux"))?;
        Ok(vec!["vmlinux".into()])
    })?;
    Ok(entry.join("vmlinux"))
}

/// Where the compressed kernel is in an image, in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Payload {
    offset: usize,
    length: usize,
}

impl Payload {
    /// Reads the header of an image.
    fn of(image: &[u8]) -> Result<Self> {
        let number = |offset: usize| -> Result<usize> {
            let bytes = image.get(offset..offset + 4).context("it is too short")?;
            Ok(u32::from_le_bytes(bytes.try_into()?).try_into()?)
        };
        ensure!(
            image.get(0x202..0x206) == Some(b"HdrS"),
            "it is not a bzImage"
        );
        // The sectors of the code for real mode, without the boot sector.
        let sectors = match image.get(0x1f1) {
            Some(0) | None => 4,
            Some(&sectors) => usize::from(sectors),
        };
        let offset = (sectors + 1) * 512 + number(0x248)?;
        // The kernel's build appends the size of what is compressed.
        let length = number(0x24c)?.checked_sub(4).context("it has no payload")?;
        let payload = offset
            .checked_add(length)
            .and_then(|end| image.get(offset..end));
        let payload = payload.context("its payload is cut off")?;
        ensure!(
            payload.starts_with(&ZSTANDARD),
            "its payload is not compressed by Zstandard"
        );
        Ok(Self { offset, length })
    }
}

/// Ensures that a pipe whose first program failed is noticed.
fn check(kernel: &Path) -> Result<()> {
    let bytes = fs::read(kernel).with_context(|| format!("reading {}", kernel.display()))?;
    ensure!(bytes.starts_with(ELF), "what was decompressed is no kernel");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image with one sector of real-mode code and this payload.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 16];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn a_payload_is_where_the_header_says() {
        let payload = [&ZSTANDARD[..], b"kernel", b"size"].concat();
        let expected = Payload {
            offset: 1040,
            length: 10,
        };
        assert_eq!(Payload::of(&image(&payload)).unwrap(), expected);
    }

    #[test]
    fn an_image_of_another_kind_is_refused() {
        let payload = [&ZSTANDARD[..], b"kernel", b"size"].concat();
        let whole = image(&payload);
        for (bytes, reason) in [
            (&whole[..whole.len() - 5], "cut off"),
            (&whole[..0x24e], "too short"),
            (&whole[..0x1f0], "not a bzImage"),
            (&image(b"\x1f\x8b\x08\x00gzip")[..], "Zstandard"),
            (&image(b"")[..], "no payload"),
        ] {
            let error = format!("{:#}", Payload::of(bytes).unwrap_err());
            assert!(error.contains(reason), "{reason}: {error}");
        }
    }
}

//! A kernel that the user has built: its tree, its image, and what can be read from them.
//!
//! All that a tree must have is checked here, before anything is built for it. It does not know
//! what the options mean, nor where the tree's compilers are.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use hmm_vm::kconfig::Options;
use sha2::{Digest, Sha256};

use crate::setup::cache;
use crate::setup::compilers::Compilers;
use crate::setup::needs;

const CONFIG: &str = ".config";
const RELEASE: &str = "include/config/kernel.release";
const SYMBOLS: &str = "Module.symvers";
const CRATES: [&str; 3] = [
    "rust/libcore.rmeta",
    "rust/libkernel.rmeta",
    "rust/libzerocopy.rmeta",
];
const IMAGE: &str = "arch/x86/boot/bzImage";

/// Where a kernel is that the user has built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// The directory in which it was built.
    pub(crate) tree: PathBuf,
    /// Its image, if that is not the tree's own.
    pub(crate) image: Option<PathBuf>,
}

/// A built kernel, of which everything is there that a machine and a module need.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    /// The directory in which it was built.
    pub(crate) directory: PathBuf,
    /// The directory of its sources, which may be the same.
    pub(crate) source: PathBuf,
    /// The bootable image.
    pub(crate) image: PathBuf,
    /// The release, as `uname -r` prints it.
    pub(crate) release: String,
    pub(crate) options: Options,
    pub(crate) compilers: Compilers,
    /// Modules that were built for trees with the same identity fit this one.
    pub(crate) identity: String,
}

impl Location {
    /// The kernel at a path: of the directory in which it was built, or `IMAGE,DIRECTORY`.
    ///
    /// # Errors
    ///
    /// When there is no such directory or no such image.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let whole = Path::new(text);
        if whole.is_dir() {
            return Ok(Self {
                tree: whole.to_owned(),
                image: None,
            });
        }
        let Some((image, tree)) = text.split_once(',') else {
            return Err(match whole.is_file() {
                true => format!(
                    "an image alone is not enough to build a driver for; add its build directory: \
                     {text},DIRECTORY"
                ),
                false => "it is stock, debug, or the directory of a built kernel, and there is no \
                          such directory"
                    .to_owned(),
            });
        };
        let (image, tree) = (Path::new(image), Path::new(tree));
        if !image.is_file() {
            return Err(format!("there is no image {}", image.display()));
        }
        if !tree.is_dir() {
            return Err(format!("there is no directory {}", tree.display()));
        }
        Ok(Self {
            tree: tree.to_owned(),
            image: Some(image.to_owned()),
        })
    }

    /// The directory without symbolic links, from the root on.
    ///
    /// # Errors
    ///
    /// When it has gone.
    pub(crate) fn directory(&self) -> Result<PathBuf> {
        self.tree
            .canonicalize()
            .with_context(|| format!("looking for {}", self.tree.display()))
    }
}

impl Tree {
    /// Reads and checks a tree.
    ///
    /// # Errors
    ///
    /// When it is no built kernel, when something of it is missing, or when it lacks options; the
    /// text names all that is missing, and says what to do.
    pub(crate) fn open(location: &Location) -> Result<Self> {
        let directory = location.directory()?;
        let context = || format!("the kernel in {}", directory.display());
        Self::read(&directory, location.image.as_deref()).with_context(context)
    }

    fn read(directory: &Path, image: Option<&Path>) -> Result<Self> {
        ensure!(
            directory.join(CONFIG).is_file(),
            "it has no .config: that is no directory in which a kernel was built"
        );
        let options = Options::read(&directory.join(CONFIG))?;
        ensure!(
            options.has("X86_64"),
            "it is for another processor: the machines are x86-64"
        );
        needs::check(&options)?;
        let source = directory.join("source");
        let source = match source.is_dir() {
            true => source
                .canonicalize()
                .context("following the link `source`")?,
            false => directory.to_owned(),
        };
        check_pieces(directory, &source, &options, image.is_none())?;
        let release = fs::read_to_string(directory.join(RELEASE))
            .with_context(|| format!("reading {RELEASE}"))?
            .trim()
            .to_owned();
        let is_name = |c: char| c.is_ascii_graphic() && c != '/';
        ensure!(
            !release.is_empty() && release.chars().all(is_name),
            "{RELEASE} does not say a release but {release:?}"
        );
        let image = match image {
            None => directory.join(IMAGE),
            Some(image) => std::path::absolute(image)?,
        };
        let booted = image_release(&image)?;
        ensure!(
            booted == release,
            "the image {} is Linux {booted}, and the tree was built as {release}: a module fits the \
             image of its own build alone. Build both again (`make bzImage modules`), or name \
             the image's own build directory",
            image.display()
        );
        Ok(Self {
            identity: identity(directory, &release)?,
            compilers: Compilers::of(&options)?,
            directory: directory.to_owned(),
            source,
            image,
            release,
            options,
        })
    }
}

/// Checks that all files are there that a build leaves.
fn check_pieces(
    directory: &Path,
    source: &Path,
    options: &Options,
    needs_image: bool,
) -> Result<()> {
    let mut pieces = vec![
        (RELEASE, "any `make` writes it"),
        ("include/generated/autoconf.h", "any `make` writes it"),
        (
            SYMBOLS,
            "`make modules` writes it, also for a kernel without modules of its own",
        ),
        ("scripts/mod/modpost", "`make modules_prepare` builds it"),
    ];
    let crates = "`make modules_prepare` builds it; `make rustavailable` says what that lacks";
    pieces.extend(CRATES.iter().take(2).map(|path| (*path, crates)));
    pieces.push((
        CRATES[2],
        "the driver needs the crate zerocopy, as Linux 7.3 has it",
    ));
    if options.has("OBJTOOL") {
        pieces.push(("tools/objtool/objtool", "`make modules_prepare` builds it"));
    }
    if needs_image {
        pieces.push((
            IMAGE,
            "`make bzImage` builds it; or name another image: --kernel IMAGE,DIRECTORY",
        ));
    }
    let mut missing = String::new();
    for (path, how) in pieces {
        if !directory.join(path).is_file() {
            // Writing to a string cannot fail.
            let _ = write!(missing, "\n    {path}: {how}");
        }
    }
    if !source.join("Makefile").is_file() || !source.join("mm/migrate_device.c").is_file() {
        let source = source.display();
        let _ = write!(
            missing,
            "\n    the kernel's sources in {source}: the driver's build and the kernel's own tests \
             need them"
        );
    }
    ensure!(
        missing.is_empty(),
        "the kernel is not built; missing are:{missing}"
    );
    Ok(())
}

/// What tells a kernel from another for which modules are built. A change of a header alone is
/// none: the kernel's build follows those.
fn identity(directory: &Path, release: &str) -> Result<String> {
    let mut hasher = Sha256::new();
    hasher.update(directory.as_os_str().as_bytes());
    hasher.update(release);
    for path in [CONFIG, SYMBOLS].iter().chain(&CRATES) {
        let path = directory.join(path);
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    Ok(cache::hex(&hasher.finalize()))
}

/// The release that the header of an image says (`Documentation/arch/x86/boot.rst`).
fn image_release(image: &Path) -> Result<String> {
    const MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
    /// Where a number of two bytes says where the text is, counted from [`BASE`].
    const POINTER: usize = 0x20e;
    const BASE: usize = 0x200;
    /// The text is in the part of the image that runs in real mode.
    const MOST: u64 = 64 << 10;
    let mut header = Vec::new();
    File::open(image)
        .and_then(|file| file.take(MOST).read_to_end(&mut header))
        .with_context(|| format!("reading {}", image.display()))?;
    let release = || {
        let magic = header.get(MAGIC.0..MAGIC.0 + MAGIC.1.len())?;
        let pointer = header.get(POINTER..POINTER + 2)?;
        let place = BASE + usize::from(u16::from_le_bytes(pointer.try_into().ok()?));
        let text = header.get(place..)?.split(|&byte| byte == 0).next()?;
        let release = std::str::from_utf8(text).ok()?.split_whitespace().next()?;
        (magic == MAGIC.1).then(|| release.to_owned())
    };
    match release() {
        Some(release) => Ok(release),
        None => bail!(
            "{} is no image of a kernel for x86-64 (bzImage)",
            image.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST_RELEASE: &str = "7.3.0-rc1-mine+";

    /// A directory with all that the build of a kernel leaves, as far as it is looked at.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new() -> Self {
            let fake = Self(tempfile::tempdir().unwrap());
            let device = include_str!("../../../tests/guest/device.config");
            let options = "CONFIG_X86_64=y\nCONFIG_HMM_MIRROR=y\nCONFIG_OBJTOOL=y\n\
                           CONFIG_CC_IS_GCC=y\nCONFIG_CC_VERSION_TEXT=\"gcc 14\"\n\
                           CONFIG_RUSTC_VERSION_TEXT=\"rustc 1.85.1\"\n";
            fake.write(CONFIG, format!("{device}{options}"));
            fake.write(RELEASE, format!("{TEST_RELEASE}\n"));
            let empty = [
                "include/generated/autoconf.h",
                SYMBOLS,
                "scripts/mod/modpost",
                "tools/objtool/objtool",
                "Makefile",
                "mm/migrate_device.c",
            ];
            for path in empty.iter().chain(&CRATES) {
                fake.write(path, "");
            }
            fake.write(IMAGE, image(TEST_RELEASE));
            fake
        }

        fn path(&self) -> &Path {
            self.0.path()
        }

        fn write(&self, path: &str, content: impl AsRef<[u8]>) {
            let path = self.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn replace(&self, path: &str, from: &str, to: &str) {
            let text = fs::read_to_string(self.path().join(path)).unwrap();
            assert!(text.contains(from), "{path} has no {from}");
            self.write(path, text.replace(from, to));
        }

        fn remove(&self, path: &str) {
            fs::remove_file(self.path().join(path)).unwrap();
        }

        fn location(&self) -> Location {
            Location::parse(self.path().to_str().unwrap()).unwrap()
        }

        fn open(&self) -> Result<Tree> {
            Tree::open(&self.location())
        }

        fn error(&self) -> String {
            format!("{:#}", self.open().unwrap_err())
        }
    }

    /// The beginning of an image that says this release.
    fn image(release: &str) -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image.truncate(0x300);
        image.extend(format!("{release} (a@b) #1 SMP\0").bytes());
        image
    }

    #[test]
    fn a_built_tree_says_all_by_itself() {
        let fake = Fake::new();
        let tree = fake.open().unwrap();
        assert_eq!(tree.release, TEST_RELEASE);
        assert_eq!(tree.directory, fake.path().canonicalize().unwrap());
        assert_eq!(tree.source, tree.directory);
        assert_eq!(tree.image, tree.directory.join(IMAGE));
        assert!(tree.options.has("DEVICE_PRIVATE"));
    }

    #[test]
    fn a_tree_that_was_built_elsewhere_than_its_sources_says_where_they_are() {
        let (fake, sources) = (Fake::new(), tempfile::tempdir().unwrap());
        fake.remove("Makefile");
        fake.remove("mm/migrate_device.c");
        assert!(fake.error().contains("sources"), "{}", fake.error());
        std::os::unix::fs::symlink(sources.path(), fake.path().join("source")).unwrap();
        assert!(fake.error().contains("sources"), "{}", fake.error());
        fs::create_dir(sources.path().join("mm")).unwrap();
        for file in ["Makefile", "mm/migrate_device.c"] {
            fs::write(sources.path().join(file), "").unwrap();
        }
        assert_eq!(
            fake.open().unwrap().source,
            sources.path().canonicalize().unwrap()
        );
    }

    #[test]
    fn each_missing_piece_is_named_with_what_makes_it() {
        for (path, how) in [
            (RELEASE, "make"),
            ("include/generated/autoconf.h", "make"),
            (SYMBOLS, "make modules"),
            ("scripts/mod/modpost", "make modules_prepare"),
            ("tools/objtool/objtool", "make modules_prepare"),
            (CRATES[0], "make rustavailable"),
            (CRATES[1], "make rustavailable"),
            (CRATES[2], "7.3"),
            (IMAGE, "IMAGE,DIRECTORY"),
        ] {
            let fake = Fake::new();
            fake.remove(path);
            let error = fake.error();
            assert!(error.contains(&format!("\n    {path}: ")), "{error}");
            assert!(error.contains(how), "{error}");
            let others = error.matches("\n    ").count();
            assert_eq!(others, 1, "nothing else is missing: {error}");
        }
    }

    #[test]
    fn all_missing_pieces_are_in_one_error() {
        let fake = Fake::new();
        for path in [SYMBOLS, IMAGE, CRATES[1]] {
            fake.remove(path);
        }
        let error = fake.error();
        for path in [SYMBOLS, IMAGE, CRATES[1]] {
            assert!(error.contains(path), "{error}");
        }
    }

    #[test]
    fn objtool_is_needed_only_by_a_kernel_that_uses_it() {
        let fake = Fake::new();
        fake.remove("tools/objtool/objtool");
        fake.replace(CONFIG, "CONFIG_OBJTOOL=y\n", "");
        fake.open().unwrap();
    }

    #[test]
    fn options_come_before_what_they_would_have_built() {
        let fake = Fake::new();
        fake.replace(CONFIG, "CONFIG_RUST=y\n", "");
        fake.remove(CRATES[1]);
        let error = fake.error();
        assert!(error.contains("    CONFIG_RUST=y\n"), "{error}");
        assert!(!error.contains(CRATES[1]), "{error}");
    }

    #[test]
    fn a_directory_without_a_configuration_is_no_kernel() {
        let fake = Fake::new();
        fake.remove(CONFIG);
        assert!(fake.error().contains("no .config"), "{}", fake.error());
    }

    #[test]
    fn a_kernel_for_another_processor_is_refused() {
        let fake = Fake::new();
        fake.replace(CONFIG, "CONFIG_X86_64=y", "CONFIG_ARM64=y");
        assert!(fake.error().contains("x86-64"), "{}", fake.error());
    }

    #[test]
    fn an_image_of_another_build_is_refused() {
        let fake = Fake::new();
        fake.write(IMAGE, image("7.3.0-rc2"));
        let error = fake.error();
        assert!(
            error.contains("7.3.0-rc2") && error.contains(TEST_RELEASE),
            "{error}"
        );
        fake.write(IMAGE, "MZ and nothing else");
        assert!(fake.error().contains("bzImage"), "{}", fake.error());
    }

    #[test]
    fn an_image_may_lie_elsewhere() {
        let (fake, elsewhere) = (Fake::new(), tempfile::tempdir().unwrap());
        fake.remove(IMAGE);
        let path = elsewhere.path().join("vmlinuz");
        fs::write(&path, image(TEST_RELEASE)).unwrap();
        let text = format!("{},{}", path.display(), fake.path().display());
        let location = Location::parse(&text).unwrap();
        assert_eq!(Tree::open(&location).unwrap().image, path);

        let error = Location::parse(path.to_str().unwrap()).unwrap_err();
        assert!(error.contains(",DIRECTORY"), "{error}");
        let error = Location::parse(&format!("{},/nowhere", path.display())).unwrap_err();
        assert!(error.contains("/nowhere"), "{error}");
        let error = Location::parse(&format!("/nowhere,{}", fake.path().display())).unwrap_err();
        assert!(error.contains("image /nowhere"), "{error}");
        assert!(Location::parse("stick")
            .unwrap_err()
            .contains("stock, debug"));
    }

    #[test]
    fn a_release_that_is_no_name_is_refused() {
        let fake = Fake::new();
        for release in ["", "a/b", "two words"] {
            fake.write(RELEASE, release);
            assert!(fake.error().contains(RELEASE), "{}", fake.error());
        }
    }

    #[test]
    fn what_modules_are_built_from_is_the_identity() {
        let fake = Fake::new();
        let first = fake.open().unwrap().identity;
        fake.write("mm/migrate_device.c", "a change");
        assert_eq!(fake.open().unwrap().identity, first);
        for path in [SYMBOLS, CRATES[1]] {
            let before = fake.open().unwrap().identity;
            fake.write(path, "a change");
            assert_ne!(fake.open().unwrap().identity, before, "{path}");
        }
        let before = fake.open().unwrap().identity;
        fake.replace(CONFIG, "CONFIG_ZRAM=y", "CONFIG_ZRAM=m");
        assert_ne!(fake.open().unwrap().identity, before);
        assert_ne!(
            Fake::new().open().unwrap().identity,
            first,
            "of another directory"
        );
    }
}

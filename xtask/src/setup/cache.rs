//! A directory of prepared entries, each named by its recipe.
//!
//! An entry is built in `NAME-KEY.partial` and renamed when it is complete. Its stamp lists key
//! files with size and digest, which are verified on every use. The age of `NAME-KEY.lock` tells
//! when it was last used. It knows nothing of the entries' contents.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{bail, Context, Result};
use hmm_cli::remark;
use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::setup::host;

const STAMP: &str = "stamp.json";
const PARTIAL: &str = "partial";

/// A directory of entries.
#[derive(Debug)]
pub(crate) struct Cache {
    directory: PathBuf,
}

/// The recipe of an entry. Two recipes with one key make the same entry.
#[derive(Debug)]
pub(crate) struct Recipe {
    name: &'static str,
    ingredients: Sha256,
}

/// The proof that an entry is complete.
#[derive(Debug, Serialize, Deserialize)]
struct Stamp {
    files: Vec<KeyFile>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct KeyFile {
    path: PathBuf,
    bytes: u64,
    sha256: String,
}

/// An entry, complete or not.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its name, which is also its directory's.
    pub(crate) name: String,
    /// Its directory.
    pub(crate) path: PathBuf,
    /// When it was used last.
    pub(crate) used: SystemTime,
}

/// An exclusive lock on a file, released when dropped or when the process ends.
#[derive(Debug)]
#[must_use = "the lock is held only as long as this value lives"]
pub(crate) struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child that another thread is about to start has it
        // open, too, for a moment. If this fails, the lock ends with the child's copy.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

impl Recipe {
    /// An empty recipe for an entry called `name`.
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            ingredients: Sha256::new(),
        }
    }

    /// Adds an ingredient: text that determines the entry's contents.
    pub(crate) fn with(mut self, ingredient: impl AsRef<[u8]>) -> Self {
        let ingredient = ingredient.as_ref();
        // The length distinguishes ("ab", "c") from ("a", "bc").
        self.ingredients
            .update((ingredient.len() as u64).to_le_bytes());
        self.ingredients.update(ingredient);
        self
    }

    /// The name of the entry that this recipe makes.
    pub(crate) fn entry_name(&self) -> String {
        let digest = hex(&self.ingredients.clone().finalize());
        format!("{}-{}", self.name, &digest[..12])
    }
}

impl Cache {
    /// The user's cache: `$VIRTIO_HMM_CACHE`, else `$XDG_CACHE_HOME/virtio-hmm`,
    /// else `~/.cache/virtio-hmm`.
    pub(crate) fn of_user() -> Result<Self> {
        let variable = |name| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let directory = variable("VIRTIO_HMM_CACHE")
            .or_else(|| variable("XDG_CACHE_HOME").map(|d| d.join("virtio-hmm")))
            .or_else(|| variable("HOME").map(|d| d.join(".cache/virtio-hmm")))
            .context("no place for the cache: set HOME or VIRTIO_HMM_CACHE")?;
        Ok(Self::at(std::path::absolute(directory)?))
    }

    /// A cache in `directory`, which is created with the first lock.
    pub(crate) fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The directory of the entries.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The complete entry that `recipe` describes. It is built if it is missing or damaged.
    ///
    /// `build` fills an empty directory and returns the files (relative to it) whose integrity
    /// stands for that of the entry. Two runs never build the same entry at the same time: the
    /// second one waits and reuses it.
    ///
    /// A cache that cannot be written has only complete entries, or the error says what it lacks.
    pub(crate) fn entry(
        &self,
        recipe: &Recipe,
        build: impl FnOnce(&Path) -> Result<Vec<PathBuf>>,
    ) -> Result<PathBuf> {
        let entry = self.directory.join(recipe.entry_name());
        if !self.is_writable() {
            Stamp::verify(&entry).with_context(|| {
                format!(
                    "the cache {} cannot be written, and its {} is not whole: complete it where it \
                     can be written, with `cargo xtask setup` for example",
                    self.directory.display(),
                    recipe.entry_name()
                )
            })?;
            return Ok(entry);
        }
        let _lock = self.lock(&recipe.entry_name())?;
        match Stamp::verify(&entry) {
            Ok(()) => return Ok(entry),
            Err(broken) if entry.exists() => {
                remark!(
                    "note: {} is not whole ({broken:#}); building it again",
                    entry.display()
                );
                host::remove_tree(&entry)?;
            }
            Err(_) => {}
        }
        self.sweep()?;
        let partial = self
            .directory
            .join(format!("{}.{PARTIAL}", recipe.entry_name()));
        host::remove_tree(&partial)?;
        fs::create_dir(&partial).with_context(|| format!("creating {}", partial.display()))?;
        let key_files = build(&partial)?;
        Stamp::of(&partial, key_files)?.write(&partial)?;
        fs::rename(&partial, &entry).with_context(|| format!("completing {}", entry.display()))?;
        Ok(entry)
    }

    /// Whether we can write it, or make it. What we cannot write no other run of ours changes.
    pub(crate) fn is_writable(&self) -> bool {
        let writable = rustix::fs::access(&self.directory, rustix::fs::Access::WRITE_OK);
        !matches!(writable, Err(Errno::ROFS | Errno::ACCESS | Errno::PERM))
    }

    /// Where long steps keep their output.
    pub(crate) fn logs(&self) -> PathBuf {
        if self.is_writable() {
            return self.directory.join("logs");
        }
        let user = rustix::process::geteuid();
        std::env::temp_dir().join(format!("virtio-hmm-logs-{}", user.as_raw()))
    }

    /// Whether there is a complete entry that `recipe` describes.
    pub(crate) fn has(&self, recipe: &Recipe) -> bool {
        Stamp::verify(&self.directory.join(recipe.entry_name())).is_ok()
    }

    /// Removes what interrupted runs left unfinished, unless it is being built now.
    fn sweep(&self) -> Result<()> {
        for found in fs::read_dir(&self.directory)? {
            let path = found?.path();
            if path.extension() != Some(OsStr::new(PARTIAL)) {
                continue;
            }
            let lock = File::options()
                .write(true)
                .open(path.with_extension("lock"));
            // A run that builds the entry holds its lock, and so do we for the one that we are
            // about to build.
            if lock.is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok())
            {
                host::remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// Removes the entry that `recipe` describes, if there is one.
    pub(crate) fn forget(&self, recipe: &Recipe) -> Result<()> {
        let _lock = self.lock(&recipe.entry_name())?;
        host::remove_tree(&self.directory.join(recipe.entry_name()))
    }

    /// Waits for the lock called `name` in this cache.
    pub(crate) fn lock(&self, name: &str) -> Result<Lock> {
        fs::create_dir_all(&self.directory)
            .with_context(|| format!("creating the cache {}", self.directory.display()))?;
        let path = self.directory.join(format!("{name}.lock"));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            remark!("note: waiting for another run that prepares {name}");
            flock(&file, FlockOperation::LockExclusive)
                .with_context(|| format!("locking {}", path.display()))?;
        }
        // Taking the lock counts as a use.
        file.set_modified(SystemTime::now())
            .with_context(|| format!("dating {}", path.display()))?;
        Ok(Lock { file })
    }

    /// The entries, by name.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        if !self.directory.try_exists()? {
            return Ok(entries);
        }
        for found in fs::read_dir(&self.directory)
            .with_context(|| format!("reading {}", self.directory.display()))?
        {
            let path = found?.path();
            // An unfinished entry has another name than its lock.
            let lock = lock_of(&path);
            if !path.is_dir() || !lock.is_file() {
                continue;
            }
            let name = path.file_name().context("an entry has a name")?;
            entries.push(Entry {
                name: name.to_string_lossy().into_owned(),
                used: fs::metadata(&lock)?.modified()?,
                path,
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }
}

impl Entry {
    /// Removes the entry unless it is in use. Returns whether it is gone.
    pub(crate) fn remove(&self) -> Result<bool> {
        let path = lock_of(&self.path);
        let lock = File::options()
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(false);
        }
        // The lock stays: another run may be waiting for it.
        host::remove_tree(&self.path)?;
        Ok(true)
    }
}

/// The lock of the entry in that directory.
fn lock_of(entry: &Path) -> PathBuf {
    let mut lock = entry.as_os_str().to_owned();
    lock.push(".lock");
    lock.into()
}

impl Stamp {
    fn of(entry: &Path, files: Vec<PathBuf>) -> Result<Self> {
        if files.is_empty() {
            bail!("{} has no key files", entry.display());
        }
        let files = files
            .into_iter()
            .map(|path| KeyFile::of(entry, path))
            .collect::<Result<_>>()?;
        Ok(Self { files })
    }

    fn write(&self, entry: &Path) -> Result<()> {
        let path = entry.join(STAMP);
        fs::write(&path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("writing {}", path.display()))
    }

    fn verify(entry: &Path) -> Result<()> {
        let text = fs::read(entry.join(STAMP)).context("no stamp")?;
        let stamp: Self = serde_json::from_slice(&text).context("unreadable stamp")?;
        for expected in stamp.files {
            let found = KeyFile::of(entry, expected.path.clone())?;
            if found != expected {
                bail!("{} has changed", expected.path.display());
            }
        }
        Ok(())
    }
}

impl KeyFile {
    fn of(entry: &Path, path: PathBuf) -> Result<Self> {
        let file = entry.join(&path);
        let (bytes, sha256) =
            digest(&file).with_context(|| format!("{} is missing", file.display()))?;
        Ok(Self {
            path,
            bytes,
            sha256,
        })
    }
}

/// Size and SHA-256 of a file.
pub(crate) fn digest(file: &Path) -> io::Result<(u64, String)> {
    let mut hasher = Sha256::new();
    let mut reader = BufReader::with_capacity(1 << 20, File::open(file)?);
    let mut bytes = 0;
    loop {
        let piece = reader.fill_buf()?;
        if piece.is_empty() {
            return Ok((bytes, hex(&hasher.finalize())));
        }
        hasher.update(piece);
        let length = piece.len();
        bytes += length as u64;
        reader.consume(length);
    }
}

/// Bytes as text, two digits each.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    struct Fixture {
        cache: Cache,
        built: Cell<u32>,
        _directory: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            Self {
                cache: Cache::at(directory.path().join("cache")),
                built: Cell::new(0),
                _directory: directory,
            }
        }

        fn entry(&self, content: &str) -> Result<PathBuf> {
            self.cache
                .entry(&Recipe::new("thing").with(content), |partial| {
                    self.built.set(self.built.get() + 1);
                    assert_eq!(fs::read_dir(partial)?.count(), 0, "starts empty");
                    fs::write(partial.join("file"), content)?;
                    Ok(vec!["file".into()])
                })
        }
    }

    #[test]
    fn a_whole_entry_is_built_once() {
        let fixture = Fixture::new();
        let first = fixture.entry("a").unwrap();
        let second = fixture.entry("a").unwrap();
        assert_eq!(first, second);
        assert_eq!(fixture.built.get(), 1);
        assert_eq!(fs::read_to_string(first.join("file")).unwrap(), "a");
    }

    #[test]
    fn a_look_at_a_cache_does_not_make_it() {
        let fixture = Fixture::new();
        assert!(fixture.cache.entries().unwrap().is_empty());
        assert!(!fixture.cache.has(&Recipe::new("thing")));
        assert!(!fixture.cache.directory().exists());
        fixture.entry("a").unwrap();
        assert!(fixture.cache.has(&Recipe::new("thing").with("a")));
        assert!(!fixture.cache.has(&Recipe::new("thing").with("b")));
    }

    #[test]
    fn other_ingredients_make_another_entry() {
        let fixture = Fixture::new();
        assert_ne!(fixture.entry("a").unwrap(), fixture.entry("b").unwrap());
        let joined = Recipe::new("thing").with("ab").with("c").entry_name();
        assert_ne!(
            joined,
            Recipe::new("thing").with("a").with("bc").entry_name()
        );
    }

    #[test]
    fn a_changed_truncated_or_unstamped_entry_is_built_again() {
        let breakages: [fn(&Path); 4] = [
            |entry| fs::write(entry.join("file"), "x").unwrap(),
            |entry| fs::write(entry.join("file"), "").unwrap(),
            |entry| fs::remove_file(entry.join("file")).unwrap(),
            |entry| fs::write(entry.join(STAMP), "{\"files\":[").unwrap(),
        ];
        for breakage in breakages {
            let fixture = Fixture::new();
            breakage(&fixture.entry("a").unwrap());
            let entry = fixture.entry("a").unwrap();
            assert_eq!(fixture.built.get(), 2);
            assert_eq!(fs::read_to_string(entry.join("file")).unwrap(), "a");
        }
    }

    #[test]
    fn a_failed_build_leaves_no_entry_and_the_next_starts_afresh() {
        let fixture = Fixture::new();
        let recipe = Recipe::new("thing").with("a");
        let failed = fixture.cache.entry(&recipe, |partial| {
            fs::write(partial.join("half"), "written")?;
            bail!("interrupted")
        });
        assert!(failed.is_err());
        assert!(!fixture.cache.directory().join(recipe.entry_name()).exists());
        fixture.entry("a").unwrap();
        assert_eq!(fixture.built.get(), 1);
    }

    /// Names the cache to the test below when it runs where that cannot be written.
    const READ_ONLY: &str = "VIRTIO_HMM_TEST_OF_READ_ONLY_CACHE";

    #[test]
    fn a_cache_that_cannot_be_written_gives_what_it_has_and_names_what_it_lacks() {
        let Some(directory) = std::env::var_os(READ_ONLY) else {
            return run_again_where_the_cache_is_read_only();
        };
        let cache = Cache::at(directory.into());
        assert!(!cache.is_writable());
        assert!(!cache.logs().starts_with(cache.directory()));
        let entry = |content: &str| {
            cache.entry(&Recipe::new("thing").with(content), |_| {
                panic!("nothing is built here")
            })
        };
        let file = entry("a").unwrap().join("file");
        assert_eq!(fs::read_to_string(file).unwrap(), "a");
        let error = format!("{:#}", entry("b").unwrap_err());
        assert!(error.contains("cannot be written"), "{error}");
        assert!(error.contains("thing-"), "{error}");
    }

    fn run_again_where_the_cache_is_read_only() {
        const MOUNT_AND_RUN: &str = "mount --bind \"$1\" \"$1\"; \
             mount -o remount,bind,ro \"$1\"; \
             exec \"$2\" --exact --nocapture \
             setup::cache::tests::a_cache_that_cannot_be_written_gives_what_it_has_and_names_what_it_lacks";
        let fixture = Fixture::new();
        fixture.entry("a").unwrap();
        let output = host::as_root_of_own_namespace()
            .args(["sh", "-euc", MOUNT_AND_RUN, "sh"])
            .arg(fixture.cache.directory())
            .arg(std::env::current_exe().unwrap())
            .env(READ_ONLY, fixture.cache.directory())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}{errors}");
        assert!(text.contains("1 passed"), "{text}{errors}");
    }

    #[test]
    fn what_an_interrupted_run_left_is_removed_but_not_what_another_builds_now() {
        let fixture = Fixture::new();
        for name in ["abandoned", "busy"] {
            drop(fixture.cache.lock(name).unwrap());
            fs::create_dir(fixture.cache.directory().join(name).with_extension(PARTIAL)).unwrap();
        }
        let _building = fixture.cache.lock("busy").unwrap();
        fixture.entry("a").unwrap();
        assert!(!fixture.cache.directory().join("abandoned.partial").exists());
        assert!(fixture.cache.directory().join("busy.partial").exists());
    }

    #[test]
    fn an_entry_is_as_old_as_its_last_use_and_goes_unless_it_is_in_use() {
        let fixture = Fixture::new();
        let entry = fixture.entry("a").unwrap();
        let name = entry.file_name().unwrap().to_str().unwrap();
        let lock = File::options().write(true).open(lock_of(&entry)).unwrap();
        lock.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        fs::create_dir(fixture.cache.directory().join("logs")).unwrap();

        let only = |cache: &Cache| {
            let mut entries = cache.entries().unwrap();
            assert_eq!(entries.len(), 1, "{entries:?}");
            entries.remove(0)
        };
        assert_eq!(only(&fixture.cache).used, SystemTime::UNIX_EPOCH);
        fixture.entry("a").unwrap();
        assert_ne!(only(&fixture.cache).used, SystemTime::UNIX_EPOCH);

        let in_use = fixture.cache.lock(name).unwrap();
        assert!(!only(&fixture.cache).remove().unwrap());
        assert!(entry.exists());
        drop(in_use);
        assert!(only(&fixture.cache).remove().unwrap());
        assert!(!entry.exists());
        assert!(fixture.cache.entries().unwrap().is_empty());
    }

    #[test]
    fn an_entry_without_its_key_files_is_not_completed() {
        let fixture = Fixture::new();
        let recipe = Recipe::new("thing");
        assert!(fixture
            .cache
            .entry(&recipe, |_| Ok(vec!["absent".into()]))
            .is_err());
        assert!(!fixture.cache.directory().join(recipe.entry_name()).exists());
    }
}

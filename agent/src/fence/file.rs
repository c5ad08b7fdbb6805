//! The client authentication file on disk: fenced text in its place, the original beside it, and back. Every change is one
//! rename, so that a crash leaves one of the two. Nobody's edit is ever lost: what pgleap did not write is kept beside.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Doing, Result, StepError};

/// Begins the first line of a fenced file: then come operation and digest.
const MARK: &str = "# pgleap fence ";

/// Ends the first line.
const ADVICE: &str = "clients are kept out by pgleap, which restores the file that lies beside this one with \
                      .pgleap-open behind its name; edit that one";

/// What the file in force is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Not pgleap's.
    Open,
    /// A fence.
    Fenced {
        /// Of this operation.
        operation: String,
        /// It is exactly what pgleap wrote.
        intact: bool,
    },
}

/// The file of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HbaFile {
    /// The real file, not a link to it.
    path: PathBuf,
}

impl HbaFile {
    /// At this path, or where the link there leads.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn at(path: &str) -> Result<HbaFile> {
        let path = fs::canonicalize(path).doing(|| path.to_owned())?;
        Ok(HbaFile { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the original lies while the node is fenced.
    pub fn open_path(&self) -> PathBuf {
        self.beside("pgleap-open")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".");
        name.push(suffix);
        name.into()
    }

    /// The first name of that kind that is free: nothing kept earlier is overwritten.
    fn free(&self, suffix: &str) -> PathBuf {
        let mut path = self.beside(suffix);
        let mut count = 2;
        while path.symlink_metadata().is_ok() {
            path = self.beside(&format!("{suffix}-{count}"));
            count += 1;
        }
        path
    }

    fn read(&self) -> Result<Vec<u8>> {
        fs::read(&self.path).doing(|| self.path.display().to_string())
    }

    /// What is in force once it is loaded.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn content(&self) -> Result<Content> {
        Ok(content(&self.read()?))
    }

    /// Whether it is this text, with the original beside it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn holds(&self, text: &str) -> Result<bool> {
        Ok(self.read()? == text.as_bytes() && self.open_path().exists())
    }

    /// When the file in force was put there, in nanoseconds since 1970: the time of its last rename or change of any kind.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn put_at_ns(&self) -> Result<i128> {
        let metadata = fs::metadata(&self.path).doing(|| self.path.display().to_string())?;
        Ok(i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec()))
    }

    /// The original, whether it is in force or lies beside.
    ///
    /// # Errors
    /// When it cannot be read, or is not UTF-8.
    pub fn original(&self) -> Result<String> {
        let current = self.read()?;
        let (bytes, path) = match content(&current) {
            Content::Open => (current, self.path.clone()),
            Content::Fenced { .. } => {
                let path = self.open_path();
                (fs::read(&path).doing(|| self.lost())?, path)
            }
        };
        String::from_utf8(bytes).map_err(|_| {
            StepError::new(format!(
                "{} holds bytes that are not UTF-8, so pgleap cannot narrow it: write it in UTF-8",
                path.display()
            ))
        })
    }

    fn lost(&self) -> String {
        format!(
            "{} is pgleap's fence, but the original beside it, {}, cannot be read: put the client authentication \
             file that is to be restored there",
            self.path.display(),
            self.open_path().display()
        )
    }

    /// Puts a fenced text in force and keeps the original, which must still be the one the text was made from. Done already
    /// when the text is there. Returns what the operator should know.
    ///
    /// # Errors
    /// When the original was changed meanwhile, the node is fenced for another operation, or a file cannot be written.
    pub fn put(&self, text: &str, made_from: &str) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        let current = self.read()?;
        if self.holds(text)? {
            return Ok(notes);
        }
        if self.original()? != made_from {
            return Err(StepError::new(format!(
                "{} was changed by somebody while it was about to be fenced; try again",
                self.path.display()
            )));
        }
        match (content(&current), content(text.as_bytes())) {
            (Content::Open, _) => self.keep_original(&mut notes)?,
            (Content::Fenced { operation: found, .. }, Content::Fenced { operation, .. })
                if found != operation =>
            {
                return Err(StepError::new(format!(
                    "{} is a fence of another operation, {found}; cancel or finish that one first",
                    self.path.display()
                )));
            }
            (Content::Fenced { intact: false, .. }, _) => self.keep_edited(&current, &mut notes)?,
            _ => {}
        }
        let mode = fs::metadata(&self.path).doing(|| self.path.display().to_string())?.permissions().mode();
        let temporary = self.beside("pgleap-tmp");
        let doing = || format!("writing {}", temporary.display());
        write_new(&temporary, text.as_bytes(), mode).doing(doing)?;
        self.rename(&temporary, &self.path)?;
        Ok(notes)
    }

    /// A second name for the original, or a copy where the file system or its owner forbids that.
    fn keep_original(&self, notes: &mut Vec<String>) -> Result<()> {
        let open = self.open_path();
        if let Ok(left) = fs::read(&open) {
            if left == self.read()? {
                fs::remove_file(&open).doing(|| open.display().to_string())?;
            } else {
                // Somebody replaced the fence by a file of their own, which is the original from now on.
                let kept = self.free("pgleap-replaced");
                self.rename(&open, &kept)?;
                notes.push(format!(
                    "{} was replaced by somebody while it was fenced; what it was before the fence is kept as {}",
                    self.path.display(),
                    kept.display()
                ));
            }
        }
        if fs::hard_link(&self.path, &open).is_err() {
            let metadata = fs::metadata(&self.path).doing(|| self.path.display().to_string())?;
            let temporary = self.beside("pgleap-tmp");
            write_new(&temporary, &self.read()?, metadata.permissions().mode())
                .doing(|| format!("copying {} beside itself", self.path.display()))?;
            self.rename(&temporary, &open)?;
        }
        self.sync()
    }

    fn keep_edited(&self, current: &[u8], notes: &mut Vec<String>) -> Result<()> {
        let kept = self.free("pgleap-edited");
        write_new(&kept, current, 0o600).doing(|| format!("writing {}", kept.display()))?;
        self.sync()?;
        notes.push(format!(
            "{} was edited by somebody while it was fenced; the edited file is kept as {}: apply the edit to the \
             restored file if it is still wanted",
            self.path.display(),
            kept.display()
        ));
        Ok(())
    }

    /// Puts the original back, byte for byte. Done already when no fence is there. Returns what the operator should know.
    ///
    /// # Errors
    /// When the original is not there, or a file cannot be renamed.
    pub fn restore(&self) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        let current = self.read()?;
        let open = self.open_path();
        match content(&current) {
            Content::Fenced { intact, .. } => {
                // Before anything is moved: without it there is nothing to restore.
                fs::metadata(&open).doing(|| self.lost())?;
                if !intact {
                    self.keep_edited(&current, &mut notes)?;
                }
                self.rename(&open, &self.path)?;
            }
            Content::Open => match fs::read(&open) {
                Ok(left) if left == current => {
                    fs::remove_file(&open).doing(|| open.display().to_string())?;
                    self.sync()?;
                }
                Ok(_) => {
                    let kept = self.free("pgleap-replaced");
                    self.rename(&open, &kept)?;
                    notes.push(format!(
                        "{} was replaced by somebody while it was fenced, and stays as it is; what it was before the \
                         fence is kept as {}",
                        self.path.display(),
                        kept.display()
                    ));
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e).doing(|| open.display().to_string()),
            },
        }
        Ok(notes)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).doing(|| format!("renaming {} to {}", from.display(), to.display()))?;
        self.sync()
    }

    fn sync(&self) -> Result<()> {
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let synced = File::open(parent).and_then(|directory| directory.sync_all());
        synced.doing(|| format!("making the names in {} durable", parent.display()))
    }
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode & 0o777).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode & 0o777))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The whole file: a mark, then these lines.
pub(super) fn marked(operation: &str, lines: &str) -> String {
    format!("{MARK}{operation} {}: {ADVICE}\n{lines}", digest(lines.as_bytes()))
}

fn digest(lines: &[u8]) -> String {
    blake3::hash(lines).to_hex().as_str().chars().take(32).collect()
}

fn content(bytes: &[u8]) -> Content {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (first, rest) = bytes.split_at(end);
    let Some(mark) = std::str::from_utf8(first).ok().and_then(|line| line.strip_prefix(MARK)) else {
        return Content::Open;
    };
    let mut words = mark.split([' ', ':']);
    let operation = words.next().unwrap_or_default().to_owned();
    let lines = rest.strip_prefix(b"\n").unwrap_or_default();
    let intact = words.next() == Some(digest(lines).as_str());
    Content::Fenced { operation, intact }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new(original: &[u8]) -> (Place, HbaFile) {
            let place = Place(tempfile::tempdir().unwrap());
            let path = place.0.path().join("pg_hba.conf");
            fs::write(&path, original).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
            let file = HbaFile::at(&path.display().to_string()).unwrap();
            (place, file)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.0.path()).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    const ORIGINAL: &str = "local all all peer\r\n# \u{fc}\n\n";

    #[test]
    fn there_and_back_byte_for_byte_with_mode_and_nothing_left() {
        let (place, file) = Place::new(ORIGINAL.as_bytes());
        let inode = fs::metadata(file.path()).unwrap().ino();
        let text = marked("app-1", "local all \"postgres\" peer\n");
        for _ in 0..2 {
            assert_eq!(file.put(&text, ORIGINAL).unwrap(), Vec::<String>::new());
            assert_eq!(file.content().unwrap(), Content::Fenced { operation: "app-1".into(), intact: true });
            assert_eq!(file.original().unwrap(), ORIGINAL);
            assert_eq!(fs::metadata(file.path()).unwrap().mode() & 0o777, 0o640);
        }
        for _ in 0..2 {
            assert_eq!(file.restore().unwrap(), Vec::<String>::new());
            assert_eq!(file.content().unwrap(), Content::Open);
            assert_eq!(fs::read(file.path()).unwrap(), ORIGINAL.as_bytes());
        }
        assert_eq!(fs::metadata(file.path()).unwrap().ino(), inode);
        assert_eq!(place.names(), ["pg_hba.conf"]);
    }

    #[test]
    fn an_edit_of_the_fence_is_seen_and_kept() {
        let (_place, file) = Place::new(ORIGINAL.as_bytes());
        let text = marked("app-1", "local all \"postgres\" peer\n");
        file.put(&text, ORIGINAL).unwrap();
        fs::write(file.path(), format!("{text}host all all all trust\n")).unwrap();
        assert_eq!(file.content().unwrap(), Content::Fenced { operation: "app-1".into(), intact: false });
        let notes = file.restore().unwrap();
        assert!(notes[0].contains("edited by somebody"), "{notes:?}");
        assert_eq!(fs::read_to_string(file.path()).unwrap(), ORIGINAL);
        assert!(fs::read_to_string(file.beside("pgleap-edited")).unwrap().contains("trust"));
    }

    #[test]
    fn a_file_put_in_the_fences_place_stays() {
        let (place, file) = Place::new(ORIGINAL.as_bytes());
        let text = marked("app-1", "local all \"postgres\" peer\n");
        file.put(&text, ORIGINAL).unwrap();
        fs::write(file.path(), "theirs\n").unwrap();
        assert_eq!(file.content().unwrap(), Content::Open);
        // Fenced again: theirs is the original now.
        let notes = file.put(&text, "theirs\n").unwrap();
        assert!(notes[0].contains("pgleap-replaced"), "{notes:?}");
        fs::write(file.path(), "theirs again\n").unwrap();
        let notes = file.restore().unwrap();
        assert!(notes[0].contains("pgleap-replaced-2"), "{notes:?}");
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "theirs again\n");
        assert_eq!(
            place.names(),
            ["pg_hba.conf", "pg_hba.conf.pgleap-replaced", "pg_hba.conf.pgleap-replaced-2"]
        );
        assert_eq!(fs::read_to_string(file.beside("pgleap-replaced")).unwrap(), ORIGINAL);
    }

    #[test]
    fn another_operations_fence_and_a_changed_original_are_refused() {
        let (_place, file) = Place::new(ORIGINAL.as_bytes());
        assert!(file.put(&marked("app-1", "x\n"), "older\n").is_err());
        file.put(&marked("app-1", "x\n"), ORIGINAL).unwrap();
        let error = file.put(&marked("app-2", "x\n"), ORIGINAL).unwrap_err();
        assert!(error.message.contains("another operation, app-1"), "{error}");
        fs::remove_file(file.open_path()).unwrap();
        assert!(file.restore().unwrap_err().message.contains("restored there"));
        assert!(matches!(file.content().unwrap(), Content::Fenced { .. }), "nothing was moved");
    }

    #[test]
    fn a_crash_after_the_second_name_was_given_leaves_nothing_behind() {
        let (place, file) = Place::new(ORIGINAL.as_bytes());
        fs::hard_link(file.path(), file.open_path()).unwrap();
        assert_eq!(file.restore().unwrap(), Vec::<String>::new());
        assert_eq!(place.names(), ["pg_hba.conf"]);
        fs::hard_link(file.path(), file.open_path()).unwrap();
        assert_eq!(file.put(&marked("app-1", "x\n"), ORIGINAL).unwrap(), Vec::<String>::new());
    }
}

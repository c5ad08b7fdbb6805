//! Digests of files, whole or by masked pages. Reads sequentially in bounded memory, never through a symbolic link.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::mask::{self, Fork, PAGE};

/// Pages read at once.
const BATCH: usize = 128;

/// What of a file goes into its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Every byte: files that were copied have to be the same.
    Whole,
    /// Masked pages: files of which primary and standby each have kept their own.
    Pages(Fork),
}

impl Method {
    /// How a file is to be compared; none when only its size can be.
    ///
    /// - Free space maps are not logged and drift; PostgreSQL repairs them as it goes (freespace/README).
    /// - Forks of unlogged relations are reset when the standby starts (reinit.c).
    pub fn of(linked: bool, fork: Option<Fork>, unlogged: bool) -> Option<Method> {
        match (linked, fork) {
            (false, _) | (true, None) => Some(Method::Whole),
            (true, Some(Fork::Fsm)) => None,
            (true, Some(_)) if unlogged => None,
            (true, Some(Fork::Init)) => Some(Method::Whole),
            (true, Some(fork)) => Some(Method::Pages(fork)),
        }
    }
}

/// BLAKE3 of a file.
///
/// # Errors
/// When it cannot be read, or has become a symbolic link.
pub fn digest(path: &Path, method: Method) -> io::Result<[u8; 32]> {
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits() | nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(at)?;
    let only_page = file.metadata().map_err(at)?.len() == PAGE as u64;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BATCH * PAGE];
    loop {
        let length = fill(&mut file, &mut buffer).map_err(at)?;
        if length == 0 {
            return Ok(*hasher.finalize().as_bytes());
        }
        let read = &mut buffer[..length];
        if let Method::Pages(fork) = method {
            // What is left of a torn last page is taken as it is.
            let (pages, _) = read.as_chunks_mut::<PAGE>();
            for page in pages {
                match fork {
                    Fork::Vm => mask::vm_page(page),
                    _ => mask::main_page(page, only_page),
                }
            }
        }
        hasher.update(read);
    }
}

/// Reads until the buffer is full or the file ends, so that pages stay aligned.
fn fill(file: &mut std::fs::File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_masked_across_batches_and_whole_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let mut bytes = vec![0; PAGE * (BATCH + 3) + 5];
        let last = PAGE * (BATCH + 2);
        bytes[last] = 1; // pd_lsn
        bytes[last + 18..last + 20].copy_from_slice(&(PAGE as u16).to_ne_bytes());
        std::fs::write(&a, &bytes).unwrap();
        bytes[last + 8] = 0xAA; // pd_checksum
        std::fs::write(&b, &bytes).unwrap();
        let of = |path: &Path, method| digest(path, method).unwrap();
        assert_eq!(of(&a, Method::Pages(Fork::Main)), of(&b, Method::Pages(Fork::Main)));
        assert_ne!(of(&a, Method::Whole), of(&b, Method::Whole));
        *bytes.last_mut().unwrap() = 1;
        std::fs::write(&b, &bytes).unwrap();
        assert_ne!(of(&a, Method::Pages(Fork::Main)), of(&b, Method::Pages(Fork::Main)), "torn end");
    }

    #[test]
    fn a_symbolic_link_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), dir.path().join("16384")).unwrap();
        assert!(digest(&dir.path().join("16384"), Method::Whole).is_err());
    }

    #[test]
    fn what_is_compared_how() {
        assert_eq!(
            Method::of(false, Some(Fork::Fsm), false),
            Some(Method::Whole),
            "copies are equal in any case"
        );
        assert_eq!(Method::of(true, Some(Fork::Fsm), false), None);
        assert_eq!(Method::of(true, Some(Fork::Main), true), None);
        assert_eq!(Method::of(true, Some(Fork::Main), false), Some(Method::Pages(Fork::Main)));
        assert_eq!(Method::of(true, None, false), Some(Method::Whole));
    }
}
